"""bench/: the same step is timed on both sides; what is not the same is refused. No timing is asserted."""
import argparse
import collections
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import nano
import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
needs = {name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
         for name in ("peft", "bitsandbytes")}

def bench(script, *args):
    return subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True)

def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def table(out):
    """the last table: {side: (tokens/s, rest of the line)}"""
    rows = out.split("\nside ")[1].split("\n\n")[0].splitlines()[1:]
    return {row.split()[0]: row.split()[1:] for row in rows}

def gaps(out):
    line = next(line for line in out.splitlines() if "differ by" in line)
    return [float(gap) for gap in re.findall(r"\d\.\de[+-]\d+", line)]

@needs["peft"]
def test_train_step_on_a_folder(tmp_path):
    model = nano.build(tmp_path / "nano")
    done = bench(BENCH / "train_step.py", "--model", model, "--pairs", 1, "--peers", "peft-bf16", "unsloth")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(gaps(done.stdout)) < 1e-4  # fp32, unquantised, against peft-fp32
    assert "unsloth is left out: unsloth is not installed" in done.stdout
    assert "20 rows = 1008 tokens a step" in done.stdout
    rows = table(done.stdout)
    assert list(rows) == ["ours", "peft-bf16"]
    ratio, low, high = (float(x.strip("x[],")) for x in rows["peft-bf16"][1:4])
    assert ratio == low == high > 0  # one pair: its ratio is the median
    assert f"command: python bench/train_step.py --model {model}" in done.stdout

@needs["bitsandbytes"]
@needs["peft"]
def test_random_weights_of_a_size_have_bitsandbytes_bits(tmp_path):
    """the GPU's path at a small shape: the same NF4 on both sides, half of the blocks checkpointed."""
    done = bench(BENCH / "train_step.py", "--layers", 2, "--size", "tiny", "--len", 16, "--dtype", "fp32",
                 "--pairs", 1, "--peers", "peft-bnb", "--keep-blocks", 1, "--micro-tokens", 32)
    assert done.returncode == 0, done.stderr
    assert max(gaps(done.stdout)) < 1e-4
    assert list(table(done.stdout)) == ["ours", "peft-bnb"]
    assert "32 tokens a forward, 1 of 2 blocks kept" in done.stdout and "4 rows = 64 tokens" in done.stdout

@needs["peft"]
def test_another_scale_is_not_timed(tmp_path):
    """B is 0 at the start: the loss is the same, the gradient is not."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "lora_undo.py").symlink_to(BENCH.parent / "lora_undo.py")
    (tmp_path / "evals.py").symlink_to(BENCH.parent / "evals.py")
    for name in ("train_step.py", "sides.py"):
        text = (BENCH / name).read_text().replace("lora_alpha=ALPHA", "lora_alpha=2 * ALPHA")
        (tmp_path / "bench" / name).write_text(text)
    model = nano.build(tmp_path / "nano")
    done = bench(tmp_path / "bench/train_step.py", "--model", model, "--peers", "peft-fp32")
    assert done.returncode == 1 and "do not compute the same step" in done.stderr
    assert gaps(done.stdout)[0] < 1e-4 < gaps(done.stdout)[1] and "pair" not in done.stdout

@pytest.mark.parametrize("args, word", [
    (["--model", "no/such"], "no/such"), (["--pairs", "0"], "--pairs"), (["--len", "2000"], "--tokens")])
def test_train_step_says_what_is_wrong(args, word):
    done = bench(BENCH / "train_step.py", *args)
    assert done.returncode == 2 and word in done.stderr.splitlines()[-1]

def test_generate_times_the_same_ids(tmp_path):
    model = nano.build(tmp_path / "nano")
    done = bench(BENCH / "generate.py", "--model", model, "--batch", 6, "--new", 24, "--dtype", "fp32",
                 "--pairs", 1)
    assert done.returncode == 0, done.stderr
    _, check, timed = done.stdout.split("\nfloat32")
    names = {"generate": 6, "5 samples, prompt 512": 5, "5 samples, prompt 64": 5, "more thought": 6}
    for table in (check, timed):
        for line, (name, rows) in zip(table.splitlines()[2:], names.items()):
            assert line.startswith(name) and ("samples" in name or line.endswith(f"{rows} of {rows}"))
            speed, ratio, low, high = line.removeprefix(name).split()[:4]
            assert float(speed.replace(",", "")) > 0
            assert ratio.strip("x") == low.strip("[,") == high.strip("]")  # one pair: its ratio is the median
    assert f"command: python bench/generate.py --model {model}" in timed

def test_generate_more_thought_goes_on_where_it_would_end(monkeypatch):
    """on a model that counts up: 5 ends a thought, two words stand in for it, no more than ROUNDS times."""
    monkeypatch.syspath_prepend(BENCH)
    g = load("generate")

    def count_up(model, prompts, max_new, ends, steer=None):
        out = []
        for row, prompt in enumerate(prompts):
            ids, due = [], []
            while len(ids) < max_new:
                drawn = (prompt + ids)[-1] + 1
                if not due:
                    due = steer(row, ids, drawn) if steer else [drawn] * (drawn not in ends)
                if not due:
                    break
                ids.append(due.pop(0))
            out.append([ids])
        return out
    monkeypatch.setattr(g.lu, "generate", count_up)
    monkeypatch.setattr(g, "ROUNDS", 2)
    for new, first, second in ((99, [3, 4, 9, 2, 3, 4, 9, 2, 3, 4], [4, 9, 2, 3, 4, 9, 2, 3, 4]),
                               (4, [3, 4, 9, 2], [4, 9, 2, 3]), (3, [3, 4, 9], [4, 9, 2])):
        for more in (g.more_thought, g.more_thought_anew):
            assert more(None, [[2], [3]], {5}, [9, 2], new) == [first, second]

def test_seeds_prints_one_table_and_draws(tmp_path):
    def metric(value):
        return {"value": value, "ci95": [0, 1], "n": 120}
    for seed, after in enumerate((0.0, 0.01, 0.05)):
        result = {"before": {"refusal/direct": metric(0.975), "perplexity": metric(8.5 + seed)},
                  "after": {"refusal/direct": metric(after)}, "cost": {"seconds": 3}, "rows": [1]}
        (tmp_path / f"run{seed}").mkdir()
        (tmp_path / f"run{seed}/results.json").write_text(json.dumps(result))
    done = bench(BENCH / "seeds.py", *sorted(tmp_path.glob("run*")), "--out", tmp_path / "figure.png")
    assert done.returncode == 0, done.stderr
    assert "| refusal/direct | 120 | 97.5, 97.5, 97.5 | 97.5 | 0.0, 1.0, 5.0 | 2.0 |" in done.stdout
    assert "| perplexity | 120 | 8.50, 9.50, 10.50 | 9.50 |  |  |" in done.stdout
    assert "cost" not in done.stdout
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

def test_hellaswag_style_has_the_shape_of_hellaswag():
    rows = [json.loads(line) for line in (BENCH / "hellaswag_style.jsonl").read_text().splitlines()]
    assert len({r["question"] for r in rows}) == len(rows) == 40
    counts = collections.Counter((r["category"], r["answer"]) for r in rows)
    assert counts == {(kind, k): 5 for kind in ("activity", "how-to") for k in range(4)}
    endings = [c for r in rows for c in r["choices"]]
    assert len(set(endings)) == 160 and {len(r["choices"]) for r in rows} == {4}
    for text in [r["question"] for r in rows] + endings:
        assert text == text.strip() and not re.search(r"  |[\[\]\n]", text)  # as the loader cleans them
    longest = [r["choices"].index(max(r["choices"], key=len)) == r["answer"] for r in rows]
    assert 0 < sum(longest) < 20  # the length does not give the right one away

def test_multiple_choice_reads_items_and_hellaswag_style(tmp_path):
    mc = load("multiple_choice")
    rows = [json.loads(line) for line in (BENCH / "hellaswag_style.jsonl").read_text().splitlines()]
    head = {"suite": "mmlu", "kind": "choice", "domain": "knowledge", "about": "x"}
    head["shots"] = {"tea": "Shots.\n\n"}
    items = [{"id": str(n), "shots": "tea", "context": f"Q{n}\nA. a\nB. b\nC. c\nD. d\nAnswer:", "answer": 1,
              "choices": list("ABCD"), "category": str(n)} for n in range(3)]
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu/items.jsonl").write_text("\n".join(map(json.dumps, [head, *items])))
    wanted = ["hellaswag_style", "hellaswag", "mmlu"]
    chosen = mc.choose(argparse.Namespace(data=tmp_path, sets=wanted, items=2))
    assert list(chosen) == ["hellaswag_style", "mmlu"]  # the other is not prepared there
    asked = [(str(n), "Shots.\n\n", items[n]["context"], list("ABCD")) for n in range(2)]
    assert chosen["mmlu"] == asked
    known = {r["question"]: r["choices"] for r in rows}
    assert all(known[context] == choices for _, _, context, choices in chosen["hellaswag_style"])

def test_multiple_choice_counts_what_differs():
    mc = load("multiple_choice")
    items = [(str(n), "", "", ["a", "bbbb"]) for n in range(3)]
    mine = [[-1.0, -2.0], [-1.0, -2.0], [-1.0, -1.00001]]
    theirs = [[-1.0, -2.0], [-2.0, -1.0], [-1.00001, -1.0]]
    assert mc.compare(items, mine, theirs) == (["1"], 1)  # acc differs; a tie; acc_norm is the longer one's
    assert mc.LETTERED.fullmatch("Q\nA. a\nB. b\nC. c\nD. d\nAnswer:").groups() == ("Q", "a", "b", "c", "d")
