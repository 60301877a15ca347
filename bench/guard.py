# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "safetensors", "numpy", "tqdm", "matplotlib", "huggingface_hub"]
# ///
"""
A guard's verdicts a second on this machine: guard_train.py against transformers, same weights, same rows, one run.

    python bench/guard.py                              # the permissive guard of `python guard_train.py`, policy of about 400 tokens
    python bench/guard.py --format text --adapter DIR  # another guard; --adapter none = the untuned model
    python bench/guard.py --model DIR --rows 32 --pairs 7

    ours       Guard.score: one forward a row, the policy's keys and values computed once and shared, two rows of the head
    generate   transformers' generate of the whole verdict, greedy, SDPA attention, rows by length and padded left
    forward    one plain forward of policy + row in transformers, SDPA, logits of the last place only: no prefix is shared

The sides alternate (ours, generate, ours, forward) on the same new rows in each pair; a ratio is taken inside a pair and the table has the median
[min, max] over pairs. The policy's own pass is inside our time, in every pair again. All three run in the dtype that guard_train picks, with the
adapter merged, at most --batch rows at once, and without responses, so that each needs one verdict. Agreement: is the first-token verdict the generated one?
"""
import argparse, os, sys, time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import guard_train as gt   # first: its import sets the allocator, for all sides
import numpy as np
import torch


def die(message):
    print(f"guard: {message}", file=sys.stderr)
    sys.exit(2)


def peer(g):
    """transformers' own model with the guard's merged weights."""
    lm = gt.transformers.AutoModelForCausalLM.from_pretrained(g.a.model, dtype=g.head.dtype, attn_implementation="sdpa").eval()
    for i, block in enumerate(lm.model.layers):
        for name, part in gt.LINEARS.items():
            getattr(getattr(block, part), name).weight.data.copy_(getattr(getattr(g.body.layers[i], part), name).lin.weight)
    lm.config.num_hidden_layers = g.blocks   # a guard may be the model's first blocks
    return lm


def padded(rows, pad):
    T = max(map(len, rows))
    ids = torch.tensor([[pad] * (T - len(r)) + r for r in rows])
    return ids, torch.tensor([[0] * (T - len(r)) + [1] * len(r) for r in rows])


def by_length(rows, batch):
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[j:j + batch] for j in range(0, len(order), batch)]


@torch.inference_mode()
def forward(lm, g, rows, batch):
    out = np.zeros(len(rows))
    for part in by_length(rows, batch):
        ids, mask = padded([rows[i] for i in part], g.eos)
        pos = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = lm(input_ids=ids, attention_mask=mask, position_ids=pos, logits_to_keep=1, use_cache=False).logits[:, -1].float()
        out[part] = logits[:, g.sides[1]].logsumexp(-1) - logits[:, g.sides[0]].logsumexp(-1)
    return out


@torch.inference_mode()
def generate(lm, g, rows, batch, max_new):
    out = [None] * len(rows)
    for part in by_length(rows, batch):
        ids, mask = padded([rows[i] for i in part], g.eos)
        new = lm.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new, do_sample=False, eos_token_id=g.eos, pad_token_id=g.eos)[:, ids.shape[1]:]
        for i, row in zip(part, new):
            out[i] = g.tok.decode(row, skip_special_tokens=True)
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default=str(ROOT / "data/smollm2/model"), help="Hugging Face folder")
    p.add_argument("--adapter", default=str(ROOT / "out/guard_train/tiny-seed0/adapter/permissive"), help="PEFT folder of the guard, or none")
    p.add_argument("--data", default=str(ROOT / "data/proxyguard/test.jsonl"), help="guard rows")
    p.add_argument("--format", default="json", choices=["json", "text"], help="what the guard writes")
    p.add_argument("--policy-tokens", type=int, default=400, help="about so many: categories are added until the policy is that long")
    p.add_argument("--rows", type=int, default=64, help="rows in each pair")
    p.add_argument("--batch", type=int, default=32, help="rows at once")
    p.add_argument("--pairs", type=int, default=3, help="each on new rows")
    p.add_argument("--max-new", type=int, default=48, help="tokens of a generated verdict at most")
    p.add_argument("--dtype", default="auto", choices=["auto", "bf16", "fp32"])
    b = p.parse_args()
    if not (Path(b.model) / "config.json").is_file():
        die(f"--model {b.model}: no such model folder (the default is made by data/smollm2/prepare.py)")
    if b.adapter != "none" and not Path(b.adapter).is_dir():
        die(f"--adapter {b.adapter}: no such folder; run python guard_train.py train first, or give --adapter none")
    if min(b.rows, b.batch, b.pairs, b.max_new) < 1:
        die("--rows, --batch, --pairs and --max-new must be at least 1")
    a = gt.parse_args(["--model", b.model, "--format", b.format, "--frame", "short", "--dtype", b.dtype, "--device", "cpu", "--max-len", "256"])
    g, proxy = gt.Guard(a), gt.policy(gt.taxonomy("proxy"), "permissive", gt.NOVEL["proxy"])
    cats = proxy[:1]
    for c in proxy[1:] + gt.taxonomy("aegis2"):   # the proxy's own categories first, so that its guard has something to find
        if len(g.question(cats)[0]) < b.policy_tokens:
            cats = cats + [c]
    items = [i for i in gt.read_items(b.data, gt.taxonomy("proxy")) if i.turns[-1][0] == "user"]
    if len(items) < b.rows * (b.pairs + 1):
        die(f"{b.data}: {len(items)} rows without a response, {b.rows * (b.pairs + 1)} are needed for {b.pairs} pairs of {b.rows} and a warm-up")
    head, tail = g.question(cats)
    given = g.json[0] if b.format == "json" else []
    g.load(None if b.adapter == "none" else b.adapter)
    load = os.getloadavg()[0]
    with g.merged():
        lm = peer(g)
        sides = {
            "ours": lambda turns: (setattr(g, "memo", (None, None)), g.score(cats, turns, desc="ours"))[1][:, 0],
            "generate": lambda turns: generate(lm, g, [head + g.rest(t, head, tail) for t in turns], b.batch, b.max_new),
            "forward": lambda turns: forward(lm, g, [head + g.rest(t, head, tail) + given for t in turns], b.batch)}
        g.batches = lambda rows: by_length(rows, b.batch)   # the same batches on all sides
        lengths = [len(g.rest(i.turns, head, tail)) for i in items]
        print(f"{gt.device_name('cpu')}; {a.dtype}; load average at start {load:.2f}; torch {torch.__version__}, transformers {gt.transformers.__version__}")
        print(f"format {b.format}; policy of {len(head)} tokens, rows of {median(lengths):.0f} (median) to {max(lengths)} tokens; {b.rows} rows a pair, {b.batch} at once", flush=True)
        for side in sides.values():
            side([i.turns for i in items[:min(4, b.rows)]])   # warms up
        seconds, ratios, odds, texts, plain = {s: [] for s in sides}, {"generate": [], "forward": []}, [], [], []
        for k in range(b.pairs):
            turns = [i.turns for i in items[b.rows * (k + 1):][:b.rows]]
            for other in ratios:
                pair = {}
                for side in ("ours", other):
                    t0 = time.perf_counter()
                    got = sides[side](turns)
                    pair[side] = time.perf_counter() - t0
                    seconds[side].append(pair[side])
                    if side == other:
                        (texts if side == "generate" else plain).extend(got)
                    elif other == "forward":
                        odds.extend(got)
                ratios[other].append(pair[other] / pair["ours"])
            print(f"pair {k + 1}/{b.pairs}: " + ", ".join(f"{s} {seconds[s][-1]:.2f} s" for s in sides), flush=True)
    verdicts = [gt.parse_verdict(t, cats) for t in texts]
    same = [v is not None and v.prompt == (o > 0) for v, o in zip(verdicts, odds)]
    print(f"\n{'side':10s}{'items/s':>9s}   ours is faster by [min, max]")
    for s in sides:
        r = ratios.get(s)
        print(f"{s:10s}{b.rows / median(seconds[s]):9.1f}" + (f"   {median(r):.2f}x [{min(r):.2f}, {max(r):.2f}]" if r else ""))
    lo, hi = gt.evals.wilson(sum(same), len(same))
    print(f"\nfirst-token verdict = generated verdict: {sum(same)} of {len(same)} ({np.mean(same):.1%} [{lo:.1%}, {hi:.1%}]), {sum(v is None for v in verdicts)} not parsed, "
          f"{sum(v is not None and v.prompt for v in verdicts)} unsafe; "
          f"= plain forward's: {np.mean((np.array(odds) > 0) == (np.array(plain) > 0)):.1%}, log-odds differ by at most {np.abs(np.array(odds) - np.array(plain)).max():.2g}")
    print(f"\ncommand: python bench/guard.py {' '.join(sys.argv[1:])}".rstrip())


if __name__ == "__main__":
    main()
