# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "accelerate", "jinja2"]
# ///
"""
Decoding with lora_undo.py's engine: ms a step and tokens/s, beside transformers' generate on the same model.

    python bench/decode.py                                        # SmolLM2-135M on this CPU, batch 1 and 128
    python bench/decode.py --device cuda --size 70b --layers 80   # random weights of that shape, in NF4

Greedy, no end token. A step is (time of --new tokens less time of one) / (--new - 1): without the prompts. As
in a run, weights are dense where they fit, else dequantised at each step. Turns alternate, a ratio is taken
in each pair. generate runs on the same object, only the loop differs: in fp32 all answers are alike.
"""
import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import lora_undo as lu  # before torch, for its allocator settings
import torch

import sides

def parse_args():
    p = argparse.ArgumentParser(description="decoding with lora_undo.py's engine")
    add = p.add_argument
    sides.model_flags(add)
    add("--batch", type=int, nargs="+", default=[1, 128])
    add("--prompt", type=int, default=64, help="tokens of a prompt")
    add("--new", type=int, default=33, help="new tokens; at least 2")
    add("--pairs", type=int, default=3, help="timed turns")
    return p.parse_args()

def engine(model, prompts, new):
    return [out[0] for out in lu.generate(model, prompts, new, ends=[])]

def plain(model, prompts, new):
    """transformers' own loop on the same model."""
    ids = torch.tensor(prompts, device=model.device)
    model.get_decoder().config._attn_implementation = model.own_attention
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                         max_new_tokens=new, min_new_tokens=new)
    return out[:, ids.shape[1]:].tolist()

def step_time(decode, model, prompts, new):
    """-> seconds of a step after the prompt, ids."""
    seconds = []
    for n in (1, new):
        t0 = time.perf_counter()
        out = decode(model, prompts, n)  # its ids are on the host: nothing is left running
        seconds.append(time.perf_counter() - t0)
    return (seconds[1] - seconds[0]) / (new - 1), out

def main():
    a = parse_args()
    dtype = lu.DTYPES[a.dtype or lu.parse_args(["--device", a.device]).dtype]
    load, rng = os.getloadavg()[0], lu.np.random.default_rng(0)
    model = sides.load_ours(lu, a, 4, dtype, a.prompt + a.new)
    device = torch.cuda.get_device_name() if a.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{device}, load average at start {load:.2f}; torch {torch.__version__}, transformers "
          f"{lu.transformers.__version__}; {str(dtype)[6:]}, prompts of {a.prompt} tokens, {a.new} new ones")
    with lu.dense_weights(model):
        dense = next(lin for _, lin in lu.linears(model)).merged is not None
        print("weights are " + ("dense while decoding" if dense else "dequantised at each step"), flush=True)
        for batch in a.batch:
            prompts = rng.integers(0, model.vocab, (batch, a.prompt)).tolist()
            engine(model, prompts, 2), plain(model, prompts, 2)  # warm up
            steps, ratios = [], []
            for _ in range(a.pairs):
                one, ids = step_time(engine, model, prompts, a.new)
                two, others = step_time(plain, model, prompts, a.new)
                steps, ratios = steps + [one], ratios + [two / one]
            step, same = median(steps), sum(x == y for x, y in zip(ids, others))
            ratio = "{:.2f}x [{:.2f}, {:.2f}]".format(*(f(ratios) for f in (median, min, max)))
            print(f"batch {batch}: {1000 * step:.1f} ms a step, {batch / step:,.0f} tokens/s; "
                  f"{ratio} generate's; {same} of {batch} answers alike", flush=True)
    print(f"peak {lu.peak_gb(a.device):.2f} GB, loading included")
    print(f"command: python bench/decode.py {' '.join(sys.argv[1:])}")

if __name__ == "__main__":
    main()
