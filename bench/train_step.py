# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "peft", "safetensors", "numpy", "tqdm", "jinja2"]
# ///
"""
One LoRA training step on this CPU: lora_undo.py (4-bit base) against peft + transformers, both in one run.

    python bench/train_step.py                          # SmolLM2-135M, chat rows of 35 to 60 tokens, 1024 tokens a step
    python bench/train_step.py --len 256                # rows of one length: the peer pads nothing
    python bench/train_step.py --model DIR --pairs 9    # any Llama-family folder

A step is forward, backward, gradient clip and AdamW on the adapters (rank 16, alpha 32, all seven linear layers), in
one micro-batch, without activation checkpointing; same rows, same start of A, B = 0. Tokens are real tokens, not padding.

    ours             lora_undo.train itself: rows packed, loss in chunks, base in NF4, the dtype it picks for this CPU
    peft-bf16        PeftModel in bf16, adapters in fp32 (peft's default), rows padded right, SDPA, nothing compiled
    peft-bf16-pure   the same with adapters in bf16 too: the faster one where the CPU multiplies bf16 in hardware
    peft-fp32        the same in fp32: the faster one where it does not

Each side is a process of its own that stays loaded and imports lora_undo, so that all have its allocator settings. Only
the side that computes runs: the others are stopped (SIGSTOP), since OpenMP threads that wait can hold a core. Steps alternate ours, peer, ours, peer, one at a time; a ratio is taken inside each pair, and the table gives the
median [min, max] over the pairs, so that a machine that drifts by 2x in minutes does not decide it. Peak is VmHWM
(Linux): loading, libraries and all. Before the timing, ours on the unquantised fp32 weights (ours-16) must give the loss and
gradient norm of peft-fp32, and its loss after one update, within 1e-4; else exit 1.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PEERS = ["peft-bf16", "peft-bf16-pure", "peft-fp32"]
RANK, ALPHA, LR, CLIP = 16, 32, 1e-4, 1.0
TOLERANCE = 1e-4   # nats; relative for the gradient norm


def die(message, code=2):
    print(f"train_step: {message}", file=sys.stderr)
    sys.exit(code)


# ---- worker: one side, loaded once, one JSON line for each line on stdin ----
def make_rows(L, a, V):
    """random chat-like rows -> [Doc] of at most --tokens in all; the first half of each is the prompt, not a target."""
    rng, docs, left = L.np.random.default_rng(0), [], a.tokens
    while (n := a.len or int(rng.integers(35, 61))) <= left:
        docs.append(L.Doc(rng.integers(0, V, n).tolist(), [0] * (n // 2) + [1] * (n - n // 2), f"row {len(docs)}"))
        left -= n
    return docs


def ours(L, a):
    """-> step function, rows, what it is. A call of lora_undo.train with one step: its own data order, clip and AdamW."""
    args = ["train", "--model", a.model, "--device", "cpu", "--rank", RANK, "--alpha", ALPHA, "--lr", LR, "--clip", CLIP,
            "--epochs", 1, "--eval-every", 0, "--max-len", a.tokens, "--micro-tokens", a.tokens]
    args += ["--bits", 16, "--dtype", "fp32"] if a.side == "ours-16" else []
    args = L.parse_args([str(x) for x in args])
    with tempfile.TemporaryDirectory() as folder:   # for the 4-bit cache: each run loads as if it were the first
        args.out = Path(folder)
        model = L.load_model(Path(a.model), args, "cpu", {"fp32": L.torch.float32, "bf16": L.torch.bfloat16}[args.dtype])
    model.add_lora(list(L.LINEARS), RANK, ALPHA, 0)
    docs = make_rows(L, a, model.c["V"])
    args.batch = len(docs)

    def step():
        row = L.train(model, docs, args, quiet=True)[0]
        return row["seconds"], row["loss"], row["grad_norm"]
    return step, docs, f"{args.bits}-bit base, {args.dtype}"


def peer(L, a):
    """-> the same for peft + transformers, as their documentation has it."""
    torch = L.torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    dtype = torch.float32 if a.side == "peft-fp32" else torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype)
    targets = [path.split(".")[1] for path in L.LINEARS.values()]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=targets)
    model = get_peft_model(base, config, autocast_adapter_dtype=a.side != "peft-bf16-pure").train()
    gen = torch.Generator().manual_seed(0)
    for block in base.model.layers:   # the same A as ours, so that the gradients can be compared
        for path in L.LINEARS.values():
            weight = block.get_submodule(path).lora_A["default"].weight
            (lin := L.Linear(1, weight.shape[1])).add_lora(RANK, ALPHA, gen, "cpu")
            weight.data.copy_(lin.A)
    params = [p for p in model.parameters() if p.requires_grad]
    docs = make_rows(L, a, base.config.vocab_size)

    def step():
        opt = torch.optim.AdamW(params, lr=LR, weight_decay=0.0, fused=True)   # a new one each step, as in ours
        t0 = time.perf_counter()
        longest = max(len(d.ids) for d in docs)
        pad = lambda rows, value: torch.tensor([r + [value] * (longest - len(r)) for r in rows])
        labels = pad([[i if m else -100 for i, m in zip(d.ids, d.mask)] for d in docs], -100)
        ids, mask = pad([d.ids for d in docs], 0), pad([[1] * len(d.ids) for d in docs], 0)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, CLIP)
        opt.step()
        opt.zero_grad(set_to_none=True)
        return time.perf_counter() - t0, float(loss.detach()), float(norm)
    return step, docs, f"{str(dtype)[6:]}, adapters {str(params[0].dtype)[6:]}, attention {base.config._attn_implementation}"


def worker(a):
    answers = os.fdopen(os.dup(1), "w", 1)
    os.dup2(2, 1)   # whatever a library prints goes to stderr
    sys.path.insert(0, str(ROOT))
    import lora_undo as L   # first, before torch: its import sets the allocator
    step, docs, what = ours(L, a) if a.side.startswith("ours") else peer(L, a)
    real, grid = sum(len(d.ids) for d in docs), len(docs) * max(len(d.ids) for d in docs)
    print(json.dumps({"what": what, "rows": len(docs), "tokens": real, "targets": sum(sum(d.mask[1:]) for d in docs), "padded": 1 - real / grid,
                      "cpu": L.device_name("cpu"), "torch": L.torch.__version__}), file=answers)
    for _ in sys.stdin:
        seconds, loss, norm = step()
        peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9
        print(json.dumps({"seconds": seconds, "loss": loss, "norm": norm, "peak": peak}), file=answers)


# ---- parent: starts the workers, lets one at a time compute, prints the table ----
class Worker:
    def __init__(self, side, a):
        self.side, self.errors = side, tempfile.TemporaryFile("w+")
        env = os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        cmd = [sys.executable, __file__, "--side", side, "--model", a.model, "--tokens", str(a.tokens), "--len", str(a.len)]
        self.process = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env)

    def answer(self):
        line = self.process.stdout.readline()
        self.process.send_signal(signal.SIGSTOP)
        if not line:
            self.errors.seek(0)
            die(f"{self.side} ended:\n{self.errors.read()[-2000:]}")
        return json.loads(line)

    def step(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()


def main():
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default=str(ROOT / "data/smollm2/model"), help="Hugging Face folder, Llama family")
    p.add_argument("--pairs", type=int, default=5, help="timed pairs of steps for each peer")
    p.add_argument("--tokens", type=int, default=1024, help="at most so many tokens a step")
    p.add_argument("--len", type=int, default=0, help="tokens in each row; 0 = 35 to 60, as in chat rows")
    p.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS, help="what to compare with")
    p.add_argument("--side", choices=["ours", "ours-16", *PEERS], help=argparse.SUPPRESS)   # a worker, started by the parent
    a = p.parse_args()
    if a.side:
        return worker(a)
    if not (Path(a.model) / "config.json").is_file():
        die(f"--model {a.model}: no such model folder (the default is made by data/smollm2/prepare.py)")
    if a.pairs < 1 or a.tokens < (a.len or 60) or a.len < 0 or a.len == 1:
        die("--pairs must be at least 1, --len 0 or at least 2, --tokens at least one row (60 when --len is 0)")
    a.model = str(Path(a.model).resolve())
    load = os.getloadavg()[0]   # of others: the workers come next
    workers, ready = {}, {}
    try:
        for side in dict.fromkeys(["ours-16", "ours", *a.peers, "peft-fp32"]):
            workers[side] = Worker(side, a)
            ready[side] = workers[side].answer()
        r, first = ready["ours"], {side: w.step() for side, w in workers.items()}   # warms up
        (x, y), (x2, y2) = zip(*((first[side], workers[side].step()) for side in ("ours-16", "peft-fp32")))
        diffs = abs(x["loss"] - y["loss"]), abs(x["norm"] / y["norm"] - 1), abs(x2["loss"] - y2["loss"])
        for side in set(workers) - {"ours", *a.peers}:
            workers.pop(side).process.kill()
        print(f"{r['cpu']}; {'' if r['what'].endswith('bf16') else 'no '}bf16 matmul in hardware; load average at start {load:.2f}; torch {r['torch']}")
        print(f"{r['rows']} rows = {r['tokens']} tokens a step, {r['targets']} targets; the peer's batch has {r['padded']:.0%} padding")
        print("loss of the first step: " + ", ".join(f"{side} {s['loss']:.5f}" for side, s in first.items()))
        print("ours-16 and peft-fp32 differ by: loss {:.1e}, gradient norm {:.1e} (relative), loss after one update {:.1e}".format(*diffs), flush=True)
        if not all(d < TOLERANCE for d in diffs):   # not (nan < x) either
            die(f"that is more than {TOLERANCE:g}: the sides do not compute the same step", 1)
        seconds, ratios, peak = {side: [] for side in workers}, {side: [] for side in workers}, {}
        for i in range(a.pairs):
            for side in a.peers:
                for s in ("ours", side):
                    row = workers[s].step()
                    seconds[s], peak[s] = seconds[s] + [row["seconds"]], row["peak"]
                ratios[side].append(seconds[side][-1] / seconds["ours"][-1])
            print(f"pair {i + 1}/{a.pairs}: " + ", ".join(f"{side} {seconds[side][-1]:.3f} s" for side in workers), flush=True)
        print(f"\n{'side':16s}{'tokens/s':>10s}   {'ours/side [min, max]':24s}{'peak GB':>8s}   computes in")
        for side in workers:
            ratio = "{:.2f}x [{:.2f}, {:.2f}]".format(*(f(ratios[side]) for f in (median, min, max))) if ratios[side] else ""
            print(f"{side:16s}{r['tokens'] / median(seconds[side]):10.1f}   {ratio:24s}{peak[side]:8.2f}   {ready[side]['what']}")
        print(f"\ncommand: python bench/train_step.py {' '.join(sys.argv[1:])}".rstrip())
    finally:
        for w in workers.values():
            w.process.kill()
            w.process.wait()


if __name__ == "__main__":
    main()
