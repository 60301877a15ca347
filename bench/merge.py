# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "jinja2", "pyyaml"]
# ///
"""
vl_merge.py's merging against mergekit: two bf16 checkpoints of 1.3 GB and their base, made on the spot.

    python bench/merge.py --mergekit ~/mergekit/bin/python        # a python that can import mergekit 0.1.5
    python bench/merge.py --mergekit PYTHON --methods ties --pairs 3 --folder /dev/shm

First both merge a small model in fp32, and the largest difference of any tensor is printed, relative to its
norm; for dare, whose masks are random, the share of entries that are kept. Then turns alternate, ours and
theirs, each a new process, with the inputs in the page cache, and a ratio is taken inside each pair. Seconds
are of the merge itself, imports left out on both sides, checksums (only ours), fsync and rename included.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "vl_merge_tool.py"
RECIPES = {  # method -> parameters of the models, of all
    "linear": ({"weight": [0.6, 0.4]}, {}), "slerp": ({}, {"t": 0.4}), "task_arithmetic": ({"weight": [0.7, 0.3]}, {}),
    "ties": ({"weight": [0.7, 0.3], "density": [0.5, 0.5]}, {}),
    "dare_ties": ({"weight": [0.7, 0.3], "density": [0.5, 0.5]}, {}),
    "dare_linear": ({"weight": [0.7, 0.3], "density": [0.5, 0.5]}, {}),
    "nuslerp": ({"weight": [0.6, 0.4]}, {}), "model_stock": ({}, {}),
    "breadcrumbs": ({"weight": [0.7, 0.3], "density": [0.5, 0.5]}, {"gamma": 0.01}),
    "breadcrumbs_ties": ({"weight": [0.7, 0.3], "density": [0.5, 0.5]}, {"gamma": 0.01})}
THEIRS = """
import sys, time, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
start = time.time()
run_merge(config, sys.argv[2], MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False))
print(f"{sys.argv[2]}: {time.time() - start:.2f} s")
"""

def make(folder, layers, width, vocab, dtype):
    """base, and a and b tuned from it: a Llama's shapes, small random differences."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "vocab_size": vocab,
              "intermediate_size": 11 * width // 4, "num_hidden_layers": layers, "num_attention_heads": width // 64,
              "num_key_value_heads": max(1, width // 512), "dtype": str(dtype)[6:], "tie_word_embeddings": False}
    D, ff, kv = width, config["intermediate_size"], 64 * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (vocab, D), "model.norm.weight": (D,), "lm_head.weight": (vocab, D)}
    parts = {"self_attn.q_proj": (D, D), "self_attn.k_proj": (kv, D), "self_attn.v_proj": (kv, D), "self_attn.o_proj": (D, D),
             "mlp.gate_proj": (ff, D), "mlp.up_proj": (ff, D), "mlp.down_proj": (D, ff), "input_layernorm": (D,),
             "post_attention_layernorm": (D,)}
    shapes |= {f"model.layers.{i}.{k}.weight": s for i in range(layers) for k, s in parts.items()}
    for seed, name in enumerate(("base", "a", "b")):
        gens = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        tensors = {}
        for key, shape in shapes.items():
            w = torch.randn(shape, generator=gens[0]).mul_(0.02)
            if seed:
                w.add_(torch.randn(shape, generator=gens[1]), alpha=0.004)
            tensors[key] = w.to(dtype)
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config))

def write_recipe(folder, method, dtype):
    """mergekit's YAML (JSON is YAML), read by both."""
    own, everywhere = RECIPES[method]
    models = [{"model": str(folder / name), "parameters": {k: v[i] for k, v in own.items()}}
              for i, name in enumerate(("a", "b"))]
    base = {"slerp": "a", "linear": None, "nuslerp": None}.get(method, "base")
    recipe = {"merge_method": method, "models": models, "parameters": everywhere, "dtype": dtype, "out_dtype": dtype}
    recipe |= {"base_model": str(folder / base)} if base else {}
    file = folder / f"{method}.yml"
    file.write_text(json.dumps(recipe))
    return file

def turn(command, out):
    """-> seconds of the merge, of the process, peak MB"""
    with tempfile.TemporaryFile("w+") as log:
        start = os.times().elapsed
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        whole = os.times().elapsed - start
        log.seek(0)
        text = log.read()
    found = re.findall(rf"^{out}: ([\d.]+) s", text, re.M)
    if status or not found:
        sys.exit(f"{command}: {text[-2000:]}")
    return float(found[-1]), whole, usage.ru_maxrss / 1024

def sides(a, file, out):
    """commands of both, and where they write"""
    ours = [sys.executable, SCRIPT, "merge", "--recipe", file, "--out", out / "ours"]
    return (ours, out / "ours"), ([a.mergekit, "-c", THEIRS, file, out / "theirs"], out / "theirs")

def compare(a, folder):
    """in fp32: largest relative difference of a tensor, or the share of entries of d that dare keeps"""
    make(folder, 2, 256, 1000, torch.float32)
    for method in a.methods:
        (ours, one), (theirs, two) = sides(a, write_recipe(folder, method, "float32"), folder)
        turn(ours, one), turn(theirs, two)
        x, y, base = (load_file(f / "model.safetensors") for f in (one, two, folder / "base"))
        gaps = [((x[k] - y[k]).norm() / y[k].norm()).item() for k in y]
        kept = [sum(((z[k] - base[k]).abs() > 1e-7).sum().item() for k in y) / sum(map(torch.numel, y.values()))
                for z in (x, y)]
        same = "to the bit" if all(x[k].equal(y[k]) for k in y) else f"largest difference {max(gaps):.1e}"
        print(f"{method:18}{f'changed: ours {kept[0]:.4f}, theirs {kept[1]:.4f}' if 'dare' in method else same}", flush=True)
        shutil.rmtree(one), shutil.rmtree(two)

def race(a, folder):
    make(folder, 12, 2048, 32000, torch.bfloat16)
    print(f"\n{'method':18}{'ours s':>8}{'theirs s':>10}  {'theirs/ours':22}{'ours MB':>8}{'theirs MB':>10}   processes, s")
    for method in a.methods:
        file, rows = write_recipe(folder, method, "bfloat16"), []
        for _ in range(a.pairs):
            rows.append([])
            for command, out in sides(a, file, folder):
                rows[-1].append(turn(command, out))
                shutil.rmtree(out)
        ratios = [theirs[0] / ours[0] for ours, theirs in rows]
        ours, theirs = ([median(x) for x in zip(*side)] for side in zip(*rows))
        peaks = [max(row[side][2] for row in rows) for side in (0, 1)]
        ratio = f"{median(ratios):.1f}x [{min(ratios):.1f}, {max(ratios):.1f}]"
        print(f"{method:18}{ours[0]:8.2f}{theirs[0]:10.2f}  {ratio:22}{peaks[0]:8.0f}{peaks[1]:10.0f}"
              f"   {ours[1]:.1f}, {theirs[1]:.1f}", flush=True)

def main():
    p = argparse.ArgumentParser(description="merging, against mergekit")
    p.add_argument("--mergekit", required=True, help="a python that can import mergekit")
    p.add_argument("--methods", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    p.add_argument("--pairs", type=int, default=3, help="timed turns of each side")
    p.add_argument("--folder", help="where checkpoints are made, 6 GB; default: the system's temporary folder")
    a = p.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, load average at start {os.getloadavg()[0]:.2f}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        compare(a, Path(folder, "small"))
        race(a, Path(folder, "large"))
    print(f"command: python bench/merge.py {' '.join(sys.argv[1:])}")

if __name__ == "__main__":
    main()
