"""The benchmarks of bench/ run and compare like with like; no timing is asserted. Run: python -m pytest tests/test_bench.py (a minute of CPU time: imports of peft and transformers)"""
import argparse, collections, importlib.util, json, os, pathlib, re, subprocess, sys
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import nano

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"
if any(importlib.util.find_spec(m) is None for m in ("peft", "transformers")):
    pytest.skip("the peers, peft and transformers, are not installed", allow_module_level=True)

def bench(tmp_path, *args, script=BENCH / "train_step.py"):
    env = os.environ | {"TMPDIR": str(tmp_path)} # a leftover would show
    return subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True, env=env)

def test_train_step_prints_its_table_and_the_losses_agree(tmp_path):
    model = nano.build(tmp_path / "nano")
    done = bench(tmp_path, "--model", model, "--pairs", 1)
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    n, tokens, targets = map(int, re.search(r"^(\d+) rows = (\d+) tokens a step, (\d+) targets", out, re.M).groups())
    assert 17 <= n <= 29 and 1024 - 60 < tokens <= 1024 and tokens / 3 < targets < tokens
    loss = {k: float(v) for k, v in re.findall(r"([\w-]+) ([\d.]+)", re.search("^loss of the first step: (.*)$", out, re.M)[1])}
    assert set(loss) == {"ours", "ours-16", "peft-bf16", "peft-bf16-pure", "peft-fp32"}
    assert abs(loss["ours-16"] - loss["peft-fp32"]) < 1e-4
    assert max(loss.values()) - min(loss.values()) < 0.05 # rounding to 4 bits and to bf16, not another model
    gaps = re.search(r"differ by: loss (\S+), gradient norm (\S+) \(relative\), loss after one update (\S+)$", out, re.M).groups()
    assert all(float(g) < 1e-4 for g in gaps)
    table = {line.split()[0]: line.split()[1:] for line in out.split("\n\n")[1].splitlines()}
    assert list(table) == ["side", "ours", "peft-bf16", "peft-bf16-pure", "peft-fp32"]
    assert float(table["ours"][0]) > 0 and 0.1 < float(table["ours"][1]) < 4 and table["ours"][2] == "4-bit"
    for side in list(table)[2:]:
        speed, ratio, lo, hi, peak = table[side][:5]
        assert ratio == f"{lo.strip('[,')}x" == f"{hi.strip(']')}x" # one pair: the median is the only value
        assert float(speed) > 0 and float(ratio[:-1]) > 0 and 0.1 < float(peak) < 4
    pair = dict(re.findall(r"([\w-]+) ([\d.]+) s", re.search(r"^pair 1/1: (.*)$", out, re.M)[1])) # the last peer's pair is whole
    assert float(table["peft-fp32"][1][:-1]) == pytest.approx(float(pair["peft-fp32"]) / float(pair["ours"]), rel=0.1)
    assert float(table["peft-fp32"][0]) == pytest.approx(tokens / float(pair["peft-fp32"]), rel=0.1)
    assert out.endswith(f"command: python bench/train_step.py --model {model} --pairs 1\n")
    assert not list(tmp_path.glob("tmp*"))

def test_train_step_refuses_to_time_different_steps(tmp_path):
    """rows of one length are not padded; a peer with twice the scale has the same loss (B = 0) and another gradient."""
    (tmp_path / "bench").mkdir()
    script = tmp_path / "bench" / "train_step.py"
    text = (BENCH / "train_step.py").read_text().replace("lora_alpha=ALPHA", "lora_alpha=2 * ALPHA")
    script.write_text(text.replace("ROOT = Path(__file__).resolve().parent.parent", f"ROOT = Path({str(BENCH.parent)!r})"))
    done = bench(tmp_path, "--model", nano.build(tmp_path / "nano"), "--pairs", 1, "--peers", "peft-fp32", "--len", 64, "--tokens", 256, script=script)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "do not compute the same step" in done.stderr
    assert "4 rows = 256 tokens a step, 128 targets; the peer's batch has 0% padding" in done.stdout and "side" not in done.stdout
    assert float(re.search(r"differ by: loss (\S+),", done.stdout)[1]) < 1e-4

@pytest.mark.parametrize("args, word", [
    (["--model", "no/such"], "no/such"), (["--pairs", "0"], "--pairs"), (["--len", "2000"], "--tokens"), (["--tokens", "59"], "--tokens"), (["--len", "-1"], "--len")])
def test_train_step_says_what_is_wrong(tmp_path, args, word):
    model = [] if "--model" in args else ["--model", tmp_path]
    (tmp_path / "config.json").write_text("{}")
    done = bench(tmp_path, *args, *model)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and word in done.stderr and done.stdout == ""

def test_hellaswag_style_has_the_shape_of_hellaswag():
    rows = [json.loads(line) for line in (BENCH / "hellaswag_style.jsonl").read_text().splitlines()]
    assert len(rows) == len({r["question"] for r in rows}) == 40 and all(list(r) == ["question", "choices", "answer", "category"] for r in rows)
    assert collections.Counter((r["category"], r["answer"]) for r in rows) == {(c, k): 5 for c in ("activity", "how-to") for k in range(4)}
    endings = [c for r in rows for c in r["choices"]]
    assert len(endings) == len(set(endings)) == 160 and {len(r["choices"]) for r in rows} == {4}
    for text in [r["question"] for r in rows] + endings:
        assert text == text.strip() and text.isascii() and not re.search(r"  |[\[\]\n]", text) # as the loader cleans them
    for r in rows:
        caption, words = r["category"] == "activity", [len(c.split()) for c in r["choices"]]
        assert re.match(r"[A-Z][\w ]+: [A-Z]" if caption else r"[A-Z][\w -]+: How to [^.]+\. [A-Z]", r["question"]) and r["question"].endswith(".") != caption
        assert all((c[0].islower() if caption else c[0].isupper()) and c[-1] == "." for c in r["choices"])
        assert 8 <= min(words) and max(words) <= 25 if caption else 20 <= min(words) and max(words) <= 45
    longest = [r["choices"].index(max(r["choices"], key=len)) == r["answer"] for r in rows]
    assert 0 < sum(longest) < 20 # the length does not give the right one away

def test_multiple_choice_reads_hellaswag_style_by_the_suite_of_hellaswag(tmp_path):
    spec = importlib.util.spec_from_file_location("multiple_choice", BENCH / "multiple_choice.py")
    mc = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mc)
    assert "hellaswag_style" in mc.SETS
    rows = [json.loads(line) for line in (BENCH / "hellaswag_style.jsonl").read_text().splitlines()]
    ask = lambda n, data: mc.choose(argparse.Namespace(data=data, sets=["hellaswag_style", "hellaswag"], items=n))
    chosen = ask(40, tmp_path) # nothing is prepared there
    assert list(chosen) == ["hellaswag_style"]
    suite, items = chosen["hellaswag_style"]
    assert [{k: r[k] for k in rows[0]} for r in items] == rows and len({r["id"] for r in items}) == 40
    assert [suite.context(r) for r in items] == [r["question"] for r in rows]
    assert [suite.options(r) for r in items] == [[f" {c}" for c in r["choices"]] for r in rows]
    assert collections.Counter(r["category"] for r in ask(8, tmp_path)["hellaswag_style"][1]) == {"activity": 4, "how-to": 4}
    (tmp_path / "hellaswag").mkdir()
    (tmp_path / "hellaswag" / "validation.jsonl").write_text(json.dumps(rows[0]) + "\n")
    both = ask(40, tmp_path)
    assert {k: len(v[1]) for k, v in both.items()} == {"hellaswag": 1, "hellaswag_style": 40} and type(both["hellaswag"][0]) is type(suite)

@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the peer, lm-eval, is not installed (it is not in requirements.txt)")
def test_multiple_choice_chooses_as_lm_eval_on_hellaswag_style(tmp_path):
    model = nano.build(tmp_path / "nano", max_position_embeddings=2048) # else the harness cuts the longer ones
    done = bench(tmp_path, "--model", model, "--data", tmp_path, "--sets", "hellaswag_style", "--items", 4, "--pairs", 1, "--peer-batch", 8, script=BENCH / "multiple_choice.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^hellaswag_style +4 .* 4 of 4 identical", done.stdout, re.M) and "choices identical" in done.stdout and "differ" not in done.stdout
