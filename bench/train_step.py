# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "accelerate", "jinja2", "peft", "bitsandbytes"]
# ///
"""
One LoRA training step: lora_undo.py's engine against its peers, in one run on one machine.

    python bench/train_step.py                                      # SmolLM2-135M on this CPU, against peft
    python bench/train_step.py --device cuda --size 70b --layers 8  # random weights of that shape, in NF4
    python bench/train_step.py --device cuda --size 70b --layers 80 --peers peft-bnb unsloth --pairs 2

    ours        lora_undo.train itself: packed rows, NF4, micro-batch and checkpointing by choose_split
    peft-bf16   transformers + peft, eager, rows padded right, adapters in fp32 (its default)
    peft-fp32   the same in fp32: the faster one where a CPU does not multiply bf16
    peft-bnb    transformers + peft + bitsandbytes NF4, SDPA, autocast, non-reentrant gradient checkpointing
    liger       the same with liger-kernel's norm, rope, swiglu and fused loss
    unsloth     FastLanguageModel with its own gradient checkpointing

Rank 16 on all seven linears, AdamW, the same rows, weights and start of A: so losses and gradient norms must
agree, and that is checked before a number is printed (on a CPU in fp32, to 1e-4; on the same 4-bit weights in
bf16, to 2e-2). Turns alternate ours, peer, ours, peer, and a ratio is taken inside each pair: machines drift.
A side is a process of its own, for its peak memory, with the same allocator settings and threads. On a CPU it
stays loaded, stopped while another computes; on a GPU it starts anew each turn: two 70B models do not fit.
A block that is "kept" is not checkpointed.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from importlib import metadata, util
from pathlib import Path
from statistics import median

import sides

ROOT = Path(__file__).resolve().parent.parent
PEERS = {"peft-bf16": ["peft"], "peft-fp32": ["peft"], "peft-bnb": ["peft", "bitsandbytes"],
         "liger": ["peft", "bitsandbytes", "liger_kernel"], "unsloth": ["unsloth"]}

def parse_args():
    p = argparse.ArgumentParser(description="one training step of lora_undo.py's engine and of its peers")
    add = p.add_argument
    sides.model_flags(add)
    add("--peers", nargs="*", choices=PEERS, help="default: the dense two; with --layers the three in 4 bits")
    add("--pairs", type=int, default=5, help="timed turns of each peer")
    add("--len", type=int, help="tokens of a row; 0: 35 to 60, as in chat rows (default; with --layers 2048)")
    add("--tokens", type=int, help="of a step, at most; default 1024, with --layers 4 rows")
    add("--micro-tokens", type=int, default=0, help="ours: packed tokens of a forward; 0: the plan's choice")
    add("--keep-blocks", type=int, default=-1, help="ours: blocks not checkpointed; -1: the plan's choice")
    add("--side", help=argparse.SUPPRESS)  # a worker, started by the parent
    a = p.parse_args()
    a.len = (2048 if a.layers else 0) if a.len is None else a.len
    a.tokens = a.tokens or (4 * a.len if a.layers else 1024)
    a.peers = (list(PEERS)[2:] if a.layers else list(PEERS)[:2]) if a.peers is None else a.peers
    a.steps = 3 if a.device == "cuda" else 2  # of a turn
    if a.pairs < 1 or a.len < 0 or a.len == 1 or a.tokens < (a.len or 60):
        p.error("--pairs is at least 1, --len 0 or at least 2, --tokens at least one row (60 with --len 0)")
    if not a.layers and not Path(a.model, "config.json").is_file():
        p.error(f"--model {a.model}: no such model folder (data/smollm2/prepare.py makes the default)")
    return a

# ---- worker: one side, loaded once; a JSON line for each line on stdin
def worker(a):
    answers = os.fdopen(os.dup(1), "w", 1)
    os.dup2(2, 1)  # what a library prints goes to stderr
    sys.path.insert(0, str(ROOT))
    if a.side == "unsloth":
        import unsloth  # noqa: F401, wants to be first
    import lora_undo as lu  # before torch, for its allocator settings
    name = {"peft-bf16": "bf16", "peft-fp32": "fp32", "ours-16": "fp32"}.get(a.side, a.dtype)
    dtype = lu.DTYPES[name or lu.parse_args(["--device", a.device]).dtype]
    make = sides.ours if a.side.startswith("ours") else sides.peer
    turn, docs, what, plan = make(lu, a, dtype)
    device = f"{cpu_name()}, {lu.torch.get_num_threads()} threads"
    lengths = [len(d.ids) for d in docs]
    print(json.dumps({
        "what": what, "plan": plan, "first": turn(), "rows": len(docs), "tokens": sum(lengths),
        "padding": 1 - sum(lengths) / len(docs) / max(lengths),
        "device": lu.torch.cuda.get_device_name() if a.device == "cuda" else device}), file=answers)
    for _ in sys.stdin:
        seconds = [row[0] for row in turn()]
        print(json.dumps({"seconds": median(seconds), "peak": lu.peak_gb(a.device)}), file=answers)

def cpu_name():
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "CPU"

# ---- parent: one side computes at a time
class Side:
    def __init__(self, name, a):
        self.name, self.device, self.process = name, a.device, None
        self.seconds, self.ratios, self.peak, self.ready = [], [], 0.0, None

    def start(self):
        self.errors = tempfile.TemporaryFile("w+")
        env = os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        cmd = [sys.executable, __file__, *sys.argv[1:], "--side", self.name]
        self.process = subprocess.Popen(
            cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env)
        self.ready = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(self.errors.read().strip())
        self.process.send_signal(signal.SIGSTOP)  # OpenMP's waiting threads would hold a core
        return json.loads(line)

    def turn(self):
        """seconds of a step, added to the side's list."""
        if self.process is None:
            self.start()
        self.process.send_signal(signal.SIGCONT)
        print("go", file=self.process.stdin, flush=True)
        row = self.answer()
        self.seconds.append(row["seconds"])
        self.peak = max(self.peak, row["peak"])
        if self.device == "cuda":
            self.stop()

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

def must_agree(one, two, tolerance):
    """loss of two steps, and gradient norm of the first; else what is timed is not one computation."""
    (_, x, norm), (_, x2, _) = one.ready["first"][:2]
    (_, y, norm2), (_, y2, _) = two.ready["first"][:2]
    gaps = abs(x - y), abs(norm / norm2 - 1), abs(x2 - y2)
    print(f"{one.name} and {two.name} differ by: loss {gaps[0]:.1e}, gradient norm {gaps[1]:.1e} (relative), "
          f"loss after one update {gaps[2]:.1e}", flush=True)
    if not all(gap < tolerance for gap in gaps):  # nan is not below either
        sys.exit(f"train_step: more than {tolerance:g}: the sides do not compute the same step")

def compare(a, all_sides):
    """the timed turns, in pairs; a peer that fails is left out, and its last line is printed."""
    mine, peers = all_sides["ours"], [all_sides[name] for name in a.peers]
    if a.device == "cpu" and not a.layers:  # both on the fp32 weights
        exact = all_sides["ours-16"] = Side("ours-16", a)
        plain = all_sides.setdefault("peft-fp32", Side("peft-fp32", a))
        exact.start(), plain.start()
        must_agree(exact, plain, 1e-4)
        for side in {exact, plain} - {*peers}:
            side.stop()
    for i in range(a.pairs):
        for side in list(peers) or [mine]:
            mine.turn()
            try:
                side is mine or side.turn()
            except RuntimeError as e:
                print(f"{side.name} is left out, it ended with: {str(e).splitlines()[-1]}", flush=True)
                peers.remove(side)
                continue
            if i == 0 and "bitsandbytes" in PEERS.get(side.name, []):  # the same 4-bit weights
                must_agree(mine, side, 1e-4 if a.dtype == "fp32" else 2e-2)
            one, two = mine.seconds[-1], side.seconds[-1]
            side.ratios.append(two / one)
            print(f"pair {i + 1}/{a.pairs}: ours {one:.3f} s, {side.name} {two:.3f} s", flush=True)
    return [mine, *peers]

def main():
    a = parse_args()
    if a.side:
        return worker(a)
    load, absent = os.getloadavg()[0], {}  # of others: the workers come next
    for name in a.peers:
        missing = [module for module in PEERS[name] if not util.find_spec(module)]
        if missing:
            print(f"{name} is left out: {', '.join(missing)} is not installed")
            absent[name] = missing
    a.peers = [name for name in a.peers if name not in absent]
    all_sides = {name: Side(name, a) for name in ["ours", *a.peers]}
    try:
        timed = compare(a, all_sides)
    except RuntimeError as e:
        sys.exit(f"train_step: a side ended:\n{e}")
    finally:
        for side in all_sides.values():
            side.stop()
    print_table(a, timed, load)

def print_table(a, timed, load):
    r, modules = timed[0].ready, sorted({module for side in timed for module in PEERS.get(side.name, [])})
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers", *modules)]
    print(f"\n{r['device']}, load average at start {load:.2f}; {', '.join(versions)}")
    print(f"{r['rows']} rows = {r['tokens']} tokens a step; a padded batch is {r['padding']:.0%} padding")
    print(f"\n{'side':10}{'tokens/s':>9}  {'ours/side':20}{'peak GB':>8}{'plan':>6}{'loss':>9}  computes in")
    for side in timed:
        ratio = [f"{f(side.ratios):.2f}" for f in (median, min, max)] if side.ratios else []
        ratio = "{}x [{}, {}]".format(*ratio) if ratio else ""
        plan, loss = side.ready["plan"], side.ready["first"][0][1]
        print(f"{side.name:10}{r['tokens'] / median(side.seconds):9,.0f}  {ratio:20}{side.peak:8.2f}"
              f"{f'{plan:.2f}' if plan else '':>6}{loss:9.4f}  {side.ready['what']}")
    print(f"\ncommand: python bench/train_step.py {' '.join(sys.argv[1:])}".rstrip())

if __name__ == "__main__":
    main()
