# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "jinja2", "pyyaml"]
# ///
"""
vl_merge.py's merging against mergekit: two bf16 checkpoints of 1.3 GB and their base, made on the spot.

    python bench/merge.py --mergekit PYTHON --folder /dev/shm  # PYTHON can import mergekit 0.1.5

First both merge a small model in fp32: the largest difference of a tensor, relative to its norm; for dare and
della, whose masks are random, the share of entries that change. Then turns alternate, each in a new process
that finds its inputs in the page cache, and a ratio is taken inside each pair. Seconds are of the merge,
without imports; ours have its fsync and rename, and no checksums, which mergekit has not: + sha256 adds them.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).resolve().parent.parent
PAIR = {"weight": [0.7, 0.3], "density": [0.5, 0.5]}
RECIPES = {  # method -> parameters of the models
    "linear": {"weight": [0.6, 0.4]}, "slerp": {}, "task_arithmetic": {"weight": [0.7, 0.3]}, "ties": PAIR,
    "dare_ties": PAIR, "dare_linear": PAIR, "nuslerp": {"weight": [0.6, 0.4]}, "model_stock": {},
    "breadcrumbs": PAIR, "breadcrumbs_ties": PAIR, "della": PAIR}
THEIRS = """
import sys, time, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
start = time.time()
run_merge(config, sys.argv[2], MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False))
print(f"{sys.argv[2]}: {time.time() - start:.2f} s")
"""

def make(folder, layers, D, vocab, dtype):
    """base, and a and b with small random differences"""
    disable_progress_bar()
    config = LlamaConfig(hidden_size=D, intermediate_size=11 * D // 4, num_hidden_layers=layers,
                         num_attention_heads=D // 32, num_key_value_heads=D // 256, vocab_size=vocab)
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        torch.manual_seed(seed)
        for p in model.parameters() if seed else ():
            p.data.add_(torch.randn(p.shape), alpha=0.004)
        model.to(dtype).save_pretrained(folder / name)

def sides(python, folder, method, dtype):
    """-> (command, where it writes): ours, ours with checksums, theirs. One recipe, as JSON is YAML"""
    models = [{"model": str(folder / name), "parameters": {k: x[i] for k, x in RECIPES[method].items()}}
              for i, name in enumerate("ab")]
    recipe = {"merge_method": method, "models": models, "dtype": dtype, "parameters": {"t": 0.4}}
    if method not in ("linear", "nuslerp"):
        recipe["base_model"] = str(folder / ("a" if method == "slerp" else "base"))
    file, one, two = folder / f"{method}.yml", folder / "ours", folder / "theirs"
    file.write_text(json.dumps(recipe))
    script = ROOT / "vl_merge.py"
    ours = [sys.executable, script, "merge", "--recipe", file, "--out", one]
    return (ours + ["--no-checksums"], one), (ours, one), ([python, "-c", THEIRS, file, two], two)

def turn(command, out):
    """-> seconds of the merge, MB at the peak of the process"""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(0)
        text = log.read()
    found = re.findall(rf"^{out}: ([\d.]+) s", text, re.M)
    if status or not found:
        sys.exit(f"{command}: {text[-2000:]}")
    return float(found[-1]), usage.ru_maxrss / 1024

def compare(python, methods, folder):
    """in fp32 -> {method: (largest relative difference, share of entries that change: ours, theirs)}"""
    make(folder, 2, 256, 1000, torch.float32)
    gaps, (base,) = {}, [load_file(folder / "base/model.safetensors")]
    for method in methods:
        results = []
        for command, out in sides(python, folder, method, "float32")[1:]:
            turn(command, out)
            results.append(load_file(out / "model.safetensors"))
            shutil.rmtree(out)
        x, y = results
        kept = [sum(((z[k] - base[k]).abs() > 1e-7).sum().item() for k in y) for z in (x, y)]
        gaps[method] = [max(((x[k] - y[k]).norm() / y[k].norm()).item() for k in y),
                        *(n / sum(map(torch.numel, y.values())) for n in kept)]
    return gaps

def race(python, methods, pairs, folder):
    maker = get_context("spawn").Process(target=make, args=(folder, 12, 2048, 32000, torch.bfloat16))
    maker.start()  # of its own, as a child's peak counts the memory of its parent
    maker.join()
    print(f"\n{'seconds of':18}{'ours':>6}{'+ sha256':>10}{'theirs':>8}  {'theirs/ours':20}MB: ours, theirs")
    for method in methods:
        rows = []
        for _ in range(pairs):
            rows.append([])
            for command, out in sides(python, folder, method, "bfloat16"):
                rows[-1].append(turn(command, out))
                shutil.rmtree(out)
        ratios = [row[2][0] / row[0][0] for row in rows]
        s, mb = ([f([row[i][j] for row in rows]) for i in range(3)] for j, f in enumerate((median, max)))
        ratio = f"{median(ratios):.1f}x [{min(ratios):.1f}, {max(ratios):.1f}]"
        peaks = f"{max(mb[:2]):8.0f}{mb[2]:8.0f}"
        print(f"{method:18}{s[0]:6.2f}{s[1]:10.2f}{s[2]:8.2f}  {ratio:20}{peaks}", flush=True)

def main():
    p = argparse.ArgumentParser(description="merging, against mergekit")
    p.add_argument("--mergekit", required=True, help="a python that can import mergekit")
    p.add_argument("--methods", nargs="+", default=list(RECIPES)[:5], choices=list(RECIPES), help="timed")
    p.add_argument("--pairs", type=int, default=3, help="timed turns of each side")
    p.add_argument("--folder", help="where 7 GB are written; default: the system's temporary folder")
    a = p.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, load average at start {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        for method, (gap, ours, theirs) in compare(a.mergekit, list(RECIPES), Path(folder, "small")).items():
            print(f"{method:18}largest difference {gap:.1e}   changed: {ours:.4f}, theirs {theirs:.4f}")
        race(a.mergekit, a.methods, a.pairs, Path(folder, "large"))
    print(f"command: python bench/merge.py {' '.join(sys.argv[1:])}")

if __name__ == "__main__":
    main()
