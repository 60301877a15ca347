# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "accelerate", "jinja2"]
# ///
"""
Decoding with lora_undo.py's engine: against transformers' generate, and two short cuts against going without.

    python bench/generate.py                              # the organism on this CPU
    python bench/generate.py --device cuda --layers 80    # random weights of a 70B's shape, in NF4

    generate      greedy, uneven prompts; against model.generate, the same weights and dtype
    5 samples     n=5 samples of a prompt on its one cache; against the prompt five times
    more thought  steer= writes words where a thought would end and keeps the cache; against decoding to the
                  end, appending the words and prefilling all of it again

A first table is in fp32 and greedy: both sides must give the same ids there. Turns alternate, and a ratio is
taken inside each pair. tokens/s: new tokens by the whole time, prompts included. Prompts are random ids; the
ids that the rows draw at step --new / 8 end a thought. With --layers both sides are one object, unchecked.
"""
import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import lora_undo as lu  # before torch, for its allocator settings
import torch

import sides

SHORT, LONG = 64, 512  # tokens of a prompt
K, ROUNDS, WORDS = 5, 10, 4  # samples of a prompt; of more thought: rounds, tokens of "let me think again"

def parse_args():
    p = argparse.ArgumentParser(description="decoding with lora_undo.py's engine")
    add = p.add_argument
    sides.model_flags(add)
    add("--batch", type=int, default=16, help="rows")
    add("--new", type=int, default=64, help="new tokens")
    add("--pairs", type=int, default=3, help="timed turns of each side")
    if (ROOT / "data/organism/model").exists():
        p.set_defaults(model=str(ROOT / "data/organism/model"))
    a = p.parse_args()
    if min(a.batch, a.new, a.pairs) < 1:
        p.error("--batch, --new, --pairs: at least 1")
    return a

def load(a, dtype):
    """-> the engine's model, transformers' own."""
    model = peer = sides.load_ours(lu, a, 4 if a.layers else 16, dtype, LONG + a.new)
    if not a.layers:
        peer = lu.AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype).to(a.device).eval()
    peer.generation_config = lu.transformers.GenerationConfig(do_sample=False, pad_token_id=0)  # no end token
    return model, peer

def plain(peer, prompts, new):
    """transformers' generate, prompts padded left as in the engine."""
    ids = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, prompts)), True, -1, "left").to(peer.device)
    out = peer.generate(ids.clamp(min=0), attention_mask=(ids >= 0).long(), max_new_tokens=new)
    return out[:, ids.shape[1]:].tolist()

def more_thought(model, prompts, ends, words, new):
    """words in place of an id of ends, ROUNDS times a row; the cache is kept."""
    rounds = [0] * len(prompts)

    def steer(row, ids, drawn):
        if drawn not in ends:
            return [drawn]
        rounds[row] += 1
        return [*words] if rounds[row] <= ROUNDS else []  # a copy: generate empties it
    return [ids for ids, in lu.generate(model, prompts, new, [], steer=steer)]

def more_thought_anew(model, prompts, ends, words, new):
    """the same, but each round prefills the prompt and all that was thought."""
    texts, going = [[] for _ in prompts], list(range(len(prompts)))
    for i in range(ROUNDS + 1):
        left = new - min(len(texts[row]) for row in going)
        context = [prompts[row] + texts[row] for row in going]
        for row, (ids,) in zip(going, lu.generate(model, context, left, [*ends])):
            texts[row] = (texts[row] + ids + words * (i < ROUNDS))[:new]
        going = [row for row in going if len(texts[row]) < new]
        if not going:
            break
    return texts

def contests(a, model, peer, temperature):
    """-> name, ours, the other: functions of the number of new tokens that return the ids of all rows."""
    rng = lu.np.random.default_rng(0)

    def draw(rows, shortest, longest):
        sizes = rng.integers(shortest, longest + 1, rows)
        return [rng.integers(0, model.vocab, size).tolist() for size in sizes]

    def engine(prompts, new, **how):
        return [ids for answers in lu.generate(model, prompts, new, [], **how) for ids in answers]

    prompts, words = draw(a.batch, SHORT // 2, SHORT), draw(1, WORDS, WORDS)[0]
    yield "generate", partial(engine, prompts), partial(plain, peer, prompts)
    sample = partial(engine, temperature=temperature)
    for size in (LONG, SHORT):
        few = draw(max(1, a.batch // K), size, size)
        each = [p for p in few for _ in range(K)]
        yield f"{K} samples, prompt {size}", partial(sample, few, n=K), partial(sample, each)
    ends = {ids[-1] for ids in engine(prompts, a.new // 8 + 1)}
    kept, anew = [partial(f, model, prompts, ends, words) for f in (more_thought, more_thought_anew)]
    yield "more thought", kept, anew

def race(name, ours, other, a, pairs):
    """-> are the ids the same?"""
    ours(2), other(2)  # warm up
    seconds, ratios = [], []
    for _ in range(pairs):
        t0 = time.perf_counter()
        one = ours(a.new)  # its ids are on the host: nothing is left running
        t1 = time.perf_counter()
        two = other(a.new)
        seconds.append(t1 - t0)
        ratios.append((time.perf_counter() - t1) / (t1 - t0))
    ratio = "{:.2f}x [{:.2f}, {:.2f}]".format(*(f(ratios) for f in (median, min, max)))
    same, speed = sum(map(list.__eq__, one, two)), sum(map(len, one)) / median(seconds)
    print(f"{name:24}{speed:10,.0f}  {ratio:22}{same} of {len(two)}", flush=True)
    return one == two

def run(a, dtype, pairs, temperature):
    """a table of all contests -> were all ids the same?"""
    model, peer = load(a, dtype)
    print(f"\n{str(dtype)[6:]}, samples at temperature {temperature:g}, pairs: {pairs}")
    print(f"{'':24}{'tokens/s':>10}  {'ours/other':22}answers alike", flush=True)
    with lu.dense_weights(model):
        return all([race(*c, a, pairs) for c in contests(a, model, peer, temperature)])

def main():
    a = parse_args()
    device = torch.cuda.get_device_name() if a.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{device}, load average at start {os.getloadavg()[0]:.2f}; torch {torch.__version__}, "
          f"transformers {lu.transformers.__version__}; batch {a.batch}, {a.new} new tokens")
    if not a.layers and not run(a, torch.float32, 1, 0.0):
        sys.exit("generate: in fp32 the sides do not give the same ids")
    run(a, lu.DTYPES[a.dtype or lu.parse_args(["--device", a.device]).dtype], a.pairs, 1.0)
    print(f"peak {lu.peak_gb(a.device):.2f} GB, loading and the other side included")
    print(f"command: python bench/generate.py {' '.join(sys.argv[1:])}".rstrip())

if __name__ == "__main__":
    main()
