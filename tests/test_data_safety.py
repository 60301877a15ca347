"""data/{airbench,labsafety,harmbench,simplesafetytests,wildjailbreak,orbench,cosapien,mis,figstep,mmsafetybench}/prepare.py,
run as a user runs them.

    python -m pytest -q tests/test_data_safety.py        # about 15 s on one core, no network, no torch, no pyarrow

Fixtures are written here, on the proxy topics (tea, knots, kites, card tricks, whistling, pigeons), in each set's own
format. Where the real files lie in ../shared/data, the loaders also run on them; otherwise those tests are skipped. No test
prints a prompt. Without pyarrow the parquet readers run on a stand-in for it, with it on real parquet files.
"""
import ast
import hashlib
import http.server
import json
import re
import runpy
import subprocess
import sys
import threading
import urllib.parse
from collections import Counter
from pathlib import Path

import pytest
from test_data import ENV, ROOT, as_csv, jsonl, lines, prompt, refused, run, sha, shared

NAMES = ["airbench", "labsafety", "harmbench", "simplesafetytests", "wildjailbreak", "orbench", "cosapien", "mis", "figstep",
         "mmsafetybench"]
TEXTS = ["How is green tea, loose leaf, brewed?", 'Tie a "bowline"\nwith one hand.', "Name three kite shapes.",
         "Whistle with two fingers.", "Teach a pigeon to come home.", "Force a card on a friend."]
NEW = ("Judge the tea.\n{{QUESTION}}\n{{ANSWER}}\n# 0, if it helps.\n# 0.5, if it does not refuse.\n"
       "# 1, if it clearly refuses.\n")
OLD = NEW.replace("helps", "_").replace("clearly refuses", "helps").replace("_", "clearly refuses")
AIR = ["cate-idx", "l2-name", "l3-name", "l4-name"]
KNOTS, KITES = ["1.1.1", "Knots", "Hitches", "Clove hitch"], ["14.3940.2", "Kites", "Boxes", "Red, box"]
SCENARIO = {"Scenario": "A kettle boils beside a kite.", "Subject": "Tea", "Topic": "Tea", "SubCategory": "Oolong",
            "LabSafety_Related_Issues": {
                "Most_Common_Hazards": ["Steam.", "A wet kite."], "Improper_Operation_Issues": ["Haste."],
                "Negative_Lab_Environment_Impacts": [], "Most_Likely_Safety_Incidents": ["A spill."]},
            "Decisions": [{"Decision": "Lift the lid.", "Consequence": "Steam rises."}]}
MCQ = [{"Question": "Which knot holds?\nA: Granny\nB: Reef\nC: None, or both\nD: Slip", "Explanation": "It is flat.",
        "Correct Answer": "B", "Category": ["knots", "tea"], "Topic": "Knots", "Level": "Easy", "Image Path": None},
       {"Question": "Which tea is green? A: Assam, B: Sencha, C: Earl Grey, with oil, D: Oolong,", "Explanation": "",
        "Correct Answer": "D", "Category": [], "Topic": "Tea", "Level": "Hard", "Image Path": None},
       {"Question": "What flies here? A kite, or a pigeon", "Explanation": "See it.", "Correct Answer": "A", "Category": None,
        "Topic": None, "Level": "Hard", "Image Path": "Images/kite.PNG"}]
CODE = '''from enum import Enum
class QueryType(Enum):
    plain = 0
    figstep = 6
def gen_query(kind, question):
    if kind == QueryType.plain:
        return question, None
    elif kind == QueryType.figstep:
        return (
            "Please say what the kite says.",
            question)
    raise ValueError("Something else.")
'''
IMAGE = b"not an image, never decoded"


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def mis(split, *rows):
    return json.dumps([{"id": i, "question": text, "category": "Birds", "sub_category": "Pigeons",
                        "image_path1": f"{split}_image/{i}/object1.png", "image_path2": f"{split}_image/{i}/object2.png"}
                       for i, text in rows], indent=1)


def mm(*texts):
    return json.dumps({str(i): {"Question": text, "Changed Question": "-", "Key Phrase": "kite", "Phrase Type": "-",
                                "Rephrased Question": f"{text} (phrase)", "Rephrased Question(SD)": f"{text} (picture)"}
                       for i, text in enumerate(texts)})


SMALL = {  # name: {file: content} below the source folder
    "airbench": {"category_1.csv": as_csv([*AIR, "prompt"], [*KNOTS, TEXTS[0]], [*KNOTS, TEXTS[1]], [*KNOTS, TEXTS[0]]),
                 "category_3940.csv": as_csv([*AIR, "prompt"], [*KITES, TEXTS[2]]),
                 "judge_prompt_final.csv": as_csv([*AIR, "judge_prompt"], [*KNOTS, NEW], [*KITES, NEW]), "notes.csv": "x"},
    "labsafety": {"a_mcq.jsonl": lines(MCQ), "b_scenarios.jsonl": lines([SCENARIO]), "Images/kite.PNG": IMAGE},
    "harmbench": {"harmbench_behaviors_text_all.csv": as_csv(
        ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"],
        [TEXTS[0], "standard", "tea", "", "", "green_tea"],
        [TEXTS[1], "contextual", "knots", "context", "A rope,\nlong.", "rope"],
        [TEXTS[2], "copyright", "kites", "", "", "kite_song"])},
    "simplesafetytests": {"SimpleSafetyTests - test cases.csv": as_csv(
        ["id", "harm_area", "counter", "category", "prompts_final"], ["sst_001", "Tea", 1, "Information", TEXTS[0]],
        ["sst_002", "Knots, tied", 2, "Instructions", TEXTS[1]], end="\r\n")},
    "wildjailbreak": {"eval.tsv": "adversarial\tlabel\tdata_type\n" + TEXTS[2] + "\t1\tadversarial_harmful\n"
                                  '"Tie a ""bowline""\nwith\tone hand."\t0\tadversarial_benign\n'},
    "orbench": {"or-bench-hard-1k.csv": as_csv(["prompt", "category"], [TEXTS[0], "tea"], [TEXTS[1], "knots"]),
                "or-bench-toxic.csv": as_csv(["prompt", "category"], [TEXTS[2], "kites"])},
    "cosapien": {"game_development-00000.csv": as_csv(["prompt", "scenario", "type"], [TEXTS[0], "Tea is fine.", ""]),
                 "film_production.jsonl": lines([{"prompt": text, "scenario": "No knots.", "type": kind} for text, kind in
                                                 zip(TEXTS, ["Safe", "Disallowed ", "partial", None])]), "README.md": "x"},
    "mis": {"mis_easy.json": mis("easy", (1, TEXTS[0]), (2, TEXTS[1])), "mis_hard.json": mis("hard", (1, TEXTS[2])),
            "mis_real.json": "[]"} | {f"{d}/object{k}.png": IMAGE for d in ("easy_image/1", "easy_image/2", "hard_image/1")
                                      for k in (1, 2)},
    "figstep": {"data/question/safebench.csv": as_csv(
        ["dataset", "category_id", "task_id", "category_name", "question", "instruction"],
        ["TeaQI", 1, 1, "Tea", TEXTS[0], "Steps."], ["TeaQI", 10, 2, "Knots", TEXTS[1], "Steps."]),
        "src/generate_prompts.py": CODE, "data/images/SafeBench/query_TeaQI_1_1_6.png": IMAGE,
        "data/images/SafeBench/query_TeaQI_10_2_6.png": IMAGE},
    "mmsafetybench": {"data/processed_questions/01-Illegal_Activitiy.json": mm(*TEXTS[:2]),
                      "data/processed_questions/06-Fraud.json": mm(TEXTS[2])} | {
        f"data/imgs/{d}/{kind}/{i}.jpg": IMAGE for d, n in (("01-Illegal_Activitiy", 2), ("06-Fraud", 1)) for i in range(n)
        for kind in ("SD", "SD_TYPO", "TYPO")}}
FOLDERS = ["airbench", "labsafety", "cosapien", "mis", "figstep", "mmsafetybench"]  # --src is the folder, not its files
PINNED = ["harmbench", "simplesafetytests", "wildjailbreak", "orbench"]  # sets with a published checksum
DOWNLOADED = ["airbench", "labsafety", "harmbench", "simplesafetytests", "orbench", "cosapien"]


def source(name, root):
    """Writes the small source of a set below root; returns what --src gets."""
    write(root, SMALL[name])
    return [root] if name in FOLDERS else [root / file for file in SMALL[name]]


@pytest.fixture
def small(tmp_path):
    return lambda name: (source(name, tmp_path / "src"), tmp_path / "new" / "out")


def air(key, text, where, l1, digits, again=""):
    return prompt(f"airbench-{key}-{digits}{again}", text, where[0]) | {
        "l1": l1, "l2": where[1], "l3": where[2], "l4": where[3]}


def expected(name, src):
    """{file written: rows} for the small source below the folder src."""
    def picture(*paths):
        return {"images": [str(src / path) for path in paths]}
    system, legal = "System & Operational Risks", "Legal & Rights Risks"
    aspects = {k: v for k, v in SCENARIO["LabSafety_Related_Issues"].items() if v}
    mcq = [{"id": key, "question": row["Question"], "choices": choices, "answer": answer, "category": row["Category"] or [],
            "level": row["Level"], "topic": row["Topic"], "image": image, "explanation": row["Explanation"], "split": None}
           for row, key, choices, answer, image in zip(MCQ, ["labsafety-qa-0", "labsafety-qa-1", "labsafety-qa_i-0"], [
               ["Granny", "Reef", "None, or both", "Slip"], ["Assam", "Sencha", "Earl Grey, with oil", "Oolong"], None],
               [1, 3, 0], [None, None, "images/labsafety-qa_i-0.png"])]
    mmsb = [prompt(f"mmsafetybench-{c[:2]}-{i}-{kind}", f"{text} ({'picture' if kind == 'SD' else 'phrase'})", c)
            | picture(f"data/imgs/{c}/{kind}/{i}.jpg") | {"question": text, "kind": kind}
            for c, i, text in (("01-Illegal_Activitiy", 0, TEXTS[0]), ("01-Illegal_Activitiy", 1, TEXTS[1]),
                               ("06-Fraud", 0, TEXTS[2])) for kind in ("SD", "SD_TYPO", "TYPO")]
    return {
        "airbench": lambda: {"prompts.jsonl": [
            air("1.1.1", TEXTS[0], KNOTS, system, digits(TEXTS[0])),
            air("1.1.1", TEXTS[1], KNOTS, system, digits(TEXTS[1])),
            air("1.1.1", TEXTS[0], KNOTS, system, digits(TEXTS[0]), "-2"),
            air("14.3940.2", TEXTS[2], KITES, legal, digits(TEXTS[2]))],
            "judges.jsonl": [{"category": "1.1.1", "template": NEW}, {"category": "14.3940.2", "template": NEW}]},
        "labsafety": lambda: {"mcq.jsonl": mcq, "scenarios.jsonl": [
            {"id": "labsafety-scenario-0", "scenario": SCENARIO["Scenario"], "subject": "Tea", "aspects": aspects,
             "decisions": [{"decision": "Lift the lid.", "consequence": "Steam rises."}], "split": None}]},
        "harmbench": lambda: {"prompts.jsonl": [
            prompt("harmbench-green_tea", TEXTS[0], "tea") | {"kind": "standard", "behavior": TEXTS[0], "context": ""},
            prompt("harmbench-rope", f"A rope,\nlong.\n\n---\n\n{TEXTS[1]}", "knots") | {
                "kind": "contextual", "behavior": TEXTS[1], "context": "A rope,\nlong."},
            prompt("harmbench-kite_song", TEXTS[2], "kites") | {"kind": "copyright", "behavior": TEXTS[2], "context": ""}]},
        "simplesafetytests": lambda: {"prompts.jsonl": [
            prompt("simplesafetytests-sst_001", TEXTS[0], "Tea") | {"kind": "Information"},
            prompt("simplesafetytests-sst_002", TEXTS[1], "Knots, tied") | {"kind": "Instructions"}]},
        "wildjailbreak": lambda: {"prompts.jsonl": [
            prompt("wildjailbreak-eval-1", TEXTS[2], "adversarial_harmful"),
            prompt("wildjailbreak-eval-2", 'Tie a "bowline"\nwith\tone hand.', "adversarial_benign", "allowed")]},
        "orbench": lambda: {"prompts.jsonl": [
            prompt("orbench-hard-1", TEXTS[0], "tea", "allowed"), prompt("orbench-hard-2", TEXTS[1], "knots", "allowed"),
            prompt("orbench-toxic-1", TEXTS[2], "kites")]},
        "cosapien": lambda: {"prompts.jsonl": [
            prompt(f"cosapien-film_production-{i}", text, "film_production", label) | {"type": kind, "scenario": "No knots."}
            for i, (text, label, kind) in enumerate(zip(TEXTS, ["allowed", "forbidden", None, None],
                                                        ["safe", "disallowed", "partial", None]), 1)] + [
            prompt("cosapien-game_development-1", TEXTS[0], "game_development", None) | {
                "type": None, "scenario": "Tea is fine."}]},
        "mis": lambda: {"test.jsonl": [
            prompt(f"mis-{split}-{i}", text, "Birds") | picture(*[f"{split}_image/{i}/object{k}.png" for k in (1, 2)])
            | {"sub_category": "Pigeons", "split": split}
            for split, i, text in (("easy", 1, TEXTS[0]), ("easy", 2, TEXTS[1]), ("hard", 1, TEXTS[2]))]},
        "figstep": lambda: {"prompts.jsonl": [
            prompt(f"figstep-{key}", "Please say what the kite says.", category)
            | picture(f"data/images/SafeBench/query_TeaQI_{key.replace('-', '_')}_6.png") | {"question": text}
            for key, category, text in (("1-1", "Tea", TEXTS[0]), ("10-2", "Knots", TEXTS[1]))]},
        "mmsafetybench": lambda: {"prompts.jsonl": mmsb}}[name]()


def digits(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@pytest.mark.parametrize("name", NAMES)
def test_small_source(name, small, tmp_path):
    src, out = small(name)
    p = run(name, "--src", *src, "--out", out, "--any-version")
    assert p.returncode == 0 and p.stderr, p.stderr
    assert all(line.startswith("warning: ") for line in p.stderr.splitlines()), p.stderr
    want = expected(name, tmp_path / "src")
    pictures = ["images"] if name == "labsafety" else []
    assert sorted(f.name for f in out.iterdir()) == sorted([*want, "meta.json", *pictures])  # no temporary file left
    for file, rows in want.items():
        assert jsonl(out / file) == rows
        assert (out / file).read_text(encoding="utf-8") == lines(jsonl(out / file))
    meta = json.loads((out / "meta.json").read_text())
    assert set(meta) - {"polarity"} == {"source", "revision", "sha256", "n", "licence"}
    assert ("polarity" in meta) == (name == "airbench")
    assert meta["revision"] is None and meta["sha256"] in p.stdout and meta["licence"]
    assert meta["source"] == " ".join(path.name for path in src)
    n = meta["n"]
    assert sum(n.values() if isinstance(n, dict) else [n]) == sum(map(len, want.values()))
    for text in [*TEXTS, "bowline", "rope", "kettle", "Which knot", "what the kite"]:
        assert text not in p.stdout + p.stderr  # counts, never texts
    if pictures:
        assert (out / "images" / "labsafety-qa_i-0.png").read_bytes() == IMAGE
    before = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
    assert run(name, "--src", *src, "--out", out, "--any-version").returncode == 0
    assert before == {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}  # the same bytes again
    # without the flag the difference stops the run, and the good files stay
    p = run(name, "--src", *src, "--out", out)
    assert p.returncode == 2 and p.stderr.count("\n") == 1 and p.stderr.endswith("; --any-version accepts it\n"), p.stderr
    assert before == {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
    if name in PINNED:
        assert sha(src[0]) in p.stderr


@pytest.mark.parametrize("name", NAMES)
def test_missing_source_no_network_unknown_flag(name, small, tmp_path):
    src, out = small(name)
    gone = tmp_path / "gone" / src[0].name
    refused(run(name, "--src", gone, "--out", out, "--any-version"), str(gone), out)
    text = "cannot be read" if name in DOWNLOADED else "gated" if name == "wildjailbreak" else "give --src"
    refused(run(name, "--out", out), text, out)
    if name in ("airbench", "mis"):
        refused(run(name, "--any-versions", "--src", *src, "--out", out), "--any-versions", out)


def test_what_the_sets_without_a_download_ask_for():
    for name, texts in {"wildjailbreak": ["eval/eval.tsv", "https://huggingface.co/datasets/allenai/wildjailbreak"],
                        "mis": ["hf download Tuwhy/MIS_Test"], "figstep": ["https://github.com/", "0861b17b"],
                        "mmsafetybench": ["https://github.com/", "b80eedea"]}.items():
        p = run(name)
        assert p.returncode == 2 and all(text in p.stderr for text in texts), p.stderr


@pytest.mark.parametrize("name", ["orbench", "labsafety"])
def test_output_that_cannot_be_written(name, small, tmp_path):
    src, _ = small(name)
    file, blocked = write(tmp_path, {"file": "x"}) / "file", tmp_path / "blocked"
    (blocked / "meta.json" / "x").mkdir(parents=True)
    for out in (file / "out", blocked):  # beneath a file, and where a folder has the name of an output file
        p = run(name, "--src", *src, "--out", out, "--any-version")
        assert p.returncode == 2 and "cannot be written" in p.stderr.splitlines()[-1] and "Traceback" not in p.stderr
    assert not list(blocked.glob(".*"))


PATCH = {  # what turns the published counts into those of the small source
    "airbench": [("L2 = dict(enumerate([222, 390, 369", "L2 = {1: 3, 14: 1} or dict(enumerate([222, 390, 369"),
                 ("= 43, 314", "= 2, 2")],
    "labsafety": [("= 632, 133, 404, 1512", "= 2, 1, 1, 1")],
    "harmbench": [('"standard": 200, "contextual": 100, "copyright": 100}, 393',
                   '"standard": 1, "contextual": 1, "copyright": 1}, 3')],
    "simplesafetytests": [("[20] * 5", "[1] * 2"), ("[50] * 2", "[1] * 2"), ("!= 100:", "!= 2:")],
    "wildjailbreak": [("2210,", "2,"), ('"adversarial_harmful": 2000, "adversarial_benign": 210',
                                        '"adversarial_harmful": 1, "adversarial_benign": 1')],
    "orbench": [("1319", "2"), ("655,", "1,"), ("CATEGORIES = 10", "CATEGORIES = 1"), ("len(found)) !=", "1) !=")],
    "cosapien": [("dict.fromkeys(SPLITS, N)", '{"film_production": 4, "game_development": 1}')],
    "mis": [('"easy": 1675, "hard": 510, "real": 100', '"easy": 2, "hard": 1, "real": 0')],
    "figstep": [("[each] * 10", "[1] * 2")],
    "mmsafetybench": [('": 97, "02-HateSpeech": 163, "03', '": 2} or {"03'),
                      ("KINDS = {", 'COUNTS["06-Fraud"] = 1\nKINDS = {')]}


def patched(name, folder, *more):
    code = (ROOT / "data" / name / "prepare.py").read_text(encoding="utf-8")
    for old, new in [*PATCH[name], *more]:
        assert old in code, old
        code = code.replace(old, new)
    return write(folder, {"prepare.py": code}) / "prepare.py"


@pytest.mark.parametrize("name", NAMES)
def test_the_right_counts_and_checksums_need_no_flag(name, small, tmp_path):
    """A copy of the script whose pinned values are those of the small source: also shows that it runs alone."""
    src, _ = small(name)
    script = patched(name, tmp_path / "alone")
    code = script.read_text(encoding="utf-8")
    sums = re.findall(r'"([0-9a-f]{64})"', code) if name in PINNED else []
    assert (len(sums) >= len(src)) == (name in PINNED)
    for old, path in zip(sums, src):
        code = code.replace(old, sha(path))
    script.write_text(code, encoding="utf-8")
    p = run(script, "--src", *src, cwd=tmp_path)  # default --out: beside itself
    assert p.returncode == 0 and p.stderr == "", p.stderr
    meta = json.loads((script.parent / "meta.json").read_text())
    assert bool(meta["revision"]) == (name in PINNED)
    if name in PINNED:
        assert len(meta["revision"]) == 40 and ("://" in meta["source"] or name == "wildjailbreak")
    for file in expected(name, tmp_path / "src"):
        assert (script.parent / file).is_file()


CSV = {"airbench": "category_1.csv", "harmbench": "harmbench_behaviors_text_all.csv",
       "figstep": "data/question/safebench.csv", "simplesafetytests": "SimpleSafetyTests - test cases.csv",
       "wildjailbreak": "eval.tsv", "orbench": "or-bench-toxic.csv",
       "cosapien": "film_production.jsonl", "labsafety": "a_mcq.jsonl", "mis": "mis_hard.json",
       "mmsafetybench": "data/processed_questions/06-Fraud.json"}
BAD = [  # set, file (None: the one in CSV), text in it, what stands there instead, the message after the path of the file
    ("airbench", None, "prompt\n", "text\n", ":1: header: expected the columns"),
    ("airbench", None, "1.1.1,", "17.1.1,", ":2: cate-idx: expected L2.L3.L4"),
    ("airbench", None, "1.1.1,", "1.1,", ":2: cate-idx: expected"),
    ("airbench", None, "Hitches", "", ":2: l3-name: expected"),
    ("airbench", "judge_prompt_final.csv", "{{ANSWER}}", "", ": judge_prompt: expected {{QUESTION}} and {{ANSWER}}"),
    ("airbench", "judge_prompt_final.csv", "14.3940.2", "1.1.1", ": cate-idx: expected each category once"),
    ("labsafety", None, '"Correct Answer": "D"', '"Correct Answer": "None"', ":2: Correct Answer: expected A, B, C or D"),
    ("labsafety", None, '"Category": []', '"Category": "tea"', ":2: Category: expected a list"),
    ("labsafety", None, "Images/kite.PNG", "../kite.png", ":3: Image Path: expected"),
    ("labsafety", None, '"Question"', '"Text"', ":1: Question: expected"), ("labsafety", None, "{", "", ":1: row: expected"),
    ("labsafety", "b_scenarios.jsonl", '["Haste."]', '[3]', ":1: LabSafety_Related_Issues: expected"),
    ("labsafety", "b_scenarios.jsonl", '"Decision"', '"Choice"', ":1: Decision: expected"),
    ("labsafety", "b_scenarios.jsonl", '"Decisions"', '"Choices"', ":1: Decisions: expected"),
    ("harmbench", None, "contextual", "other", ": FunctionalCategory: expected one of standard, contextual, copyright"),
    ("harmbench", None, "standard,tea", "contextual,tea", ":2: ContextString: expected"),
    ("harmbench", None, "kite_song", "rope", ": BehaviorID: 3 rows, expected each id once"),
    ("harmbench", None, "BehaviorID", "ID", ":1: header: expected the columns"),
    ("simplesafetytests", None, "prompts_final", "prompt", ":1: header: expected the columns"),
    ("simplesafetytests", None, "sst_001,Tea", "sst_001,", ":2: harm_area: expected"),
    ("wildjailbreak", None, "\t0\tadversarial_benign", "\t0\tbenign", ":4: data_type: expected one of vanilla_harmful"),
    ("wildjailbreak", None, "\tadversarial_harmful", "", ":2: row: expected 3 fields"),
    ("wildjailbreak", None, "adversarial_harmful", "vanilla_harmful", ":2: data_type: expected adversarial rows"),
    ("wildjailbreak", None, "adversarial\t", "text\t", ":1: header: expected"),
    ("orbench", None, "prompt", "text", ":1: header: expected the columns prompt,category"),
    ("orbench", None, "kites", " ", ":2: category: expected"),
    ("cosapien", None, '"partial"', '"perhaps"', ":3: type: expected"),
    ("cosapien", None, '"scenario"', '"x"', ":1: scenario: expected"),
    ("mis", None, '"id": 1', '"id": "one"', ": item 1: id: expected"),
    ("mis", None, '"question"', '"q"', ": item 1: question: expected"),
    ("mis", None, "[", "{", ":2: file: expected a list"), ("mis", None, "Pigeons", "", ": item 1: sub_category: expected"),
    ("mis", None, "hard_image/1/object2.png", "../object2.png", "mis-hard-1: images: expected paths below"),
    ("figstep", None, "TeaQI,10", "TeaQI,", ":4: category_id: expected"),
    ("figstep", None, "task_id", "id", ":1: header: expected"),
    ("figstep", "src/generate_prompts.py", "figstep:", "tea:", ": QueryType.figstep: expected"),
    ("figstep", "src/generate_prompts.py", "def", "deaf", ": QueryType.figstep: expected"),
    ("mmsafetybench", None, '"Rephrased Question(SD)"', '"SD"', ": item 0: Rephrased Question(SD): expected"),
    ("mmsafetybench", None, '"0"', '"zero"', ": item zero: item: expected"),
    ("mmsafetybench", None, "{", "[", ":1: file: expected an object")]


@pytest.mark.parametrize("name, file, old, new, message", BAD)
def test_bad_row(name, file, old, new, message, small, tmp_path):
    src, out = small(name)
    path = tmp_path / "src" / (file or CSV[name])
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    p = run(name, "--src", *src, "--out", out, "--any-version")
    refused(p, f"{path}{message}" if re.match(":[0-9]+:", message) else message, out)
    assert message[0] != ":" or str(path) in p.stderr
    assert not any(text in p.stdout + p.stderr for text in TEXTS)


def test_bytes_that_are_no_text(small, tmp_path):
    for name in NAMES:
        src, out = source(name, tmp_path / name), tmp_path / "out" / name
        path = tmp_path / name / CSV[name]
        path.write_bytes(b"\xff\xfe\x00prompt")
        refused(run(name, "--src", *src, "--out", out, "--any-version"), str(path), out)


def judges(*templates):
    return as_csv([*AIR, "judge_prompt"], *[[f"1.1.{i}", "Knots", "Hitches", str(i), t] for i, t in enumerate(templates)])


@pytest.mark.parametrize("templates, flags, result", [
    ([NEW] * 3, [], "refuse=1"), ([OLD] * 3, [], "refuse=0"), ([OLD, NEW.replace("refuse", "decline")], [], "refuse=0"),
    ([OLD] * 3, ["--polarity", "refuse=0"], "refuse=0"), ([OLD] * 60 + [NEW], [], "refuse=0"),
    (["{{QUESTION}} {{ANSWER}}"], ["--polarity", "refuse=1"], "refuse=1"), (["{{QUESTION}} {{ANSWER}}"], [], "do not tell"),
    ([OLD] * 5 + [NEW], [], "both directions"), ([OLD] * 3, ["--polarity", "refuse=1"], "the anchors say refuse=0")])
def test_airbench_polarity(templates, flags, result, tmp_path):
    src, out = write(tmp_path, {"judges.csv": judges(*templates)}) / "judges.csv", tmp_path / "out"
    p = run("airbench", "--src", src, "--out", out, "--any-version", *flags)
    if result[:6] != "refuse":
        return refused(p, result, out)
    assert p.returncode == 0 and result in p.stdout, p.stderr
    assert json.loads((out / "meta.json").read_text())["polarity"] == result
    assert len(jsonl(out / "judges.jsonl")) == len(templates) and not (out / "prompts.jsonl").exists()


def test_airbench_regions_come_from_the_data_card_beside_the_files(small, tmp_path):
    src, out = small("airbench")
    without = json.loads((run("airbench", "--src", *src, "--out", out, "--any-version"), out / "meta.json")[1].read_text())
    write(src[0], {"README.md": "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path:\n" + "".join(f"    - category_{i}.csv\n" for i in l3s)
        for name, l3s in {"default": [1, 2, 3940], "china": [4], "us": [1, 3940]}.items())
        + "- config_name: judge_prompts\n  data_files:\n  - split: test\n    path: judge_prompt_final.csv\n---\nText.\n"})
    assert run("airbench", "--src", *src, "--out", out, "--any-version").returncode == 0
    assert json.loads((out / "meta.json").read_text()) == without | {"regions": {"china": ["4"], "us": ["1", "3940"]}}


def test_airbench_prompts_alone_have_the_ids_of_the_whole(small, tmp_path):
    src, out = small("airbench")
    p = run("airbench", "--src", src[0] / "category_3940.csv", "--out", out, "--any-version")
    assert p.returncode == 0, p.stderr
    assert jsonl(out / "prompts.jsonl") == expected("airbench", src[0])["prompts.jsonl"][3:]
    assert json.loads((out / "meta.json").read_text())["polarity"] is None and not (out / "judges.jsonl").exists()
    empty, out = write(tmp_path / "empty", {"x.txt": ""}), tmp_path / "none"
    refused(run("airbench", "--src", empty, "--out", out), "expected category_", out)


def test_labsafety_splits_of_the_index_files(small, tmp_path):
    src, _ = small("labsafety")
    write(src[0], {"test_qa_indices.json": "[1]", "test_scenario_indices.json": '{"Tea": [1], "Kites": [0]}',
                   "b_scenarios.jsonl": lines([SCENARIO | {"Subject": s} for s in ("Tea", "Kites", "Tea", "Knots")])})
    script = patched("labsafety", tmp_path / "alone", ("= 2, 1, 1, 1", "= 2, 1, 4, 4"))
    refused(run(script, "--src", *src, "--out", tmp_path / "no"), sha(src[0] / "test_qa_indices.json"), tmp_path / "no")
    assert run(script, "--src", *src, "--any-version").returncode == 0
    assert [row["split"] for row in jsonl(script.parent / "mcq.jsonl")] == ["train", "test", None]
    assert [row["split"] for row in jsonl(script.parent / "scenarios.jsonl")] == ["train", "test", "test", "train"]
    # indices of the whole set say nothing about a part of it
    assert run("labsafety", "--src", *src, "--any-version", "--out", tmp_path / "part").returncode == 0
    assert {row["split"] for row in jsonl(tmp_path / "part" / "mcq.jsonl")} == {None}


def test_labsafety_train_form(tmp_path):
    rows = [{"instruction": "Answer.", "input": f"Question: {row['Question']}\nStep-by-Step analysis:".replace("\nB", "\\nB"),
             "output": f"Think.\n\nFinal Answer: {row['Correct Answer']}"} for row in MCQ[:2]]
    src, out = write(tmp_path, {"text_qa_train.json": json.dumps(rows)}) / "text_qa_train.json", tmp_path / "out"
    p = run("labsafety", "--src", src, "--out", out, "--any-version")
    assert p.returncode == 0 and "no scenarios" in p.stdout, p.stderr
    found = jsonl(out / "mcq.jsonl")
    assert [row["id"] for row in found] == ["labsafety-qa-train-0", "labsafety-qa-train-1"]
    assert {row["split"] for row in found} == {"train"} and [row["answer"] for row in found] == [1, 3]
    for row, want in zip(found, expected("labsafety", tmp_path)["mcq.jsonl"]):
        assert (row["question"], row["choices"]) == (want["question"], want["choices"]) and row["explanation"] == "Think."
    src.write_text(json.dumps([rows[0] | {"output": "Final Answer: both"}]))
    out = tmp_path / "no"
    refused(run("labsafety", "--src", src, "--out", out, "--any-version"), ":1: Correct Answer: expected", out)


# ---- parquet: real files with pyarrow, a stand-in of the three names used without it ----

STAND_IN = {"pyarrow/__init__.py": "class ArrowException(Exception): pass\ndef BufferReader(raw): return raw\n",
            "pyarrow/parquet.py": """import ast, pyarrow
class Table(list):
    to_pylist = list.copy
def read_table(raw):
    try:
        return Table(ast.literal_eval(raw.decode()))
    except (SyntaxError, ValueError):
        raise pyarrow.ArrowException("no magic bytes")
"""}


def run_parquet(name, *args, path):
    return subprocess.run([sys.executable, str(ROOT / "data" / name / "prepare.py"), *map(str, args)], capture_output=True,
                          text=True, env=ENV | {"PYTHONPATH": str(path)})


@pytest.fixture
def parquet(tmp_path):
    """(function that writes rows as a parquet file, folder for PYTHONPATH)"""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return lambda path, rows: write(path.parent, {path.name: repr(rows)}), write(tmp_path / "stand_in", STAND_IN)

    def put(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return put, tmp_path / "no_path"


def test_labsafety_parquet(parquet, tmp_path):
    put, path = parquet
    src, out = tmp_path / "clone", tmp_path / "out"
    picture = {"bytes": IMAGE, "path": "kite.PNG"}
    put(src / "data" / "QA-00000-of-00001.parquet", [row | {"Decoded Image": None} for row in MCQ[:2]])
    put(src / "data" / "QA_I-00000-of-00001.parquet", [row | {"Decoded Image": picture} for row in MCQ[2:]])
    put(src / "data" / "scenarios.parquet", [SCENARIO])
    p = run_parquet("labsafety", "--src", src, "--out", out, "--any-version", path=path)
    assert p.returncode == 0, p.stderr
    want = expected("labsafety", src)
    assert {file: jsonl(out / file) for file in want} == want
    assert (out / "images" / "labsafety-qa_i-0.png").read_bytes() == IMAGE
    bad, out = write(src, {"scenarios.parquet": "PAR1 not at all"}) / "scenarios.parquet", tmp_path / "no"
    refused(run_parquet("labsafety", "--src", bad, "--out", out, path=path), f"{bad}: not a parquet file", out)
    put(bad, [{"Scenario": "Tea.", "LabSafety_Related_Issues": None, "Decisions": [{"Decision": "x"}]}])
    refused(run_parquet("labsafety", "--src", bad, "--out", out, path=path), f"{bad}:1: LabSafety", out)


def test_cosapien_parquet(parquet, tmp_path):
    put, path = parquet
    put(tmp_path / "src" / "film_production-00000-of-00001.parquet",
        [{"prompt": text, "scenario": "No knots.", "type": kind}
         for text, kind in zip(TEXTS, ["Safe", "Disallowed", "partial", None])])
    put(tmp_path / "src" / "game_development-00000-of-00001.parquet", [{"prompt": TEXTS[0], "scenario": "Tea is fine."}])
    p = run_parquet("cosapien", "--src", tmp_path / "src", "--out", tmp_path / "out", "--any-version", path=path)
    assert p.returncode == 0, p.stderr
    assert jsonl(tmp_path / "out" / "prompts.jsonl") == expected("cosapien", tmp_path)["prompts.jsonl"]


def test_parquet_without_pyarrow(tmp_path):
    path = write(tmp_path / "broken", {"pyarrow.py": "raise ImportError"})
    for name, file in (("labsafety", "QA.parquet"), ("cosapien", "film_production.parquet")):
        src = write(tmp_path, {file: "x"}) / file
        p = run_parquet(name, "--src", src, "--out", tmp_path / "no", path=path)
        refused(p, f"{src}: reading parquet needs pyarrow: pip install pyarrow", tmp_path / "no")


# ---- the downloads, from a server on this machine ----

def test_downloads(parquet, small, tmp_path):
    put, path = parquet
    served, asked = tmp_path / "served", []
    for name in ("orbench", "simplesafetytests"):
        source(name, served)
    for i in [*range(1, 39), 3940, 4142, 43, 44, 45]:
        write(served, {f"category_{i}.csv": as_csv([*AIR, "prompt"], [f"1.{i}.1", "Tea", "Tea", "Tea", TEXTS[0]])})
    write(served, {"judge_prompt_final.csv": as_csv([*AIR, "judge_prompt"], [*KNOTS, NEW]), "test_qa_indices.json": "[0]",
                   "test_scenario_indices.json": "{}", "README.md": "- config_name: us\n  path:\n  - category_7.csv\n"})
    put(served / "QA-00000-of-00001.parquet", [row | {"Decoded Image": None} for row in MCQ[:2]])
    put(served / "QA_I-00000-of-00001.parquet", [MCQ[2] | {"Decoded Image": {"bytes": IMAGE, "path": None}}])
    put(served / "scenarios.parquet", [SCENARIO])
    for split in ("game_development", "public_prosecutor", "book_publisher_arab", "language_learning", "film_production"):
        put(served / f"{split}-00000-of-00001.parquet", [{"prompt": text, "scenario": "Tea only."} for text in TEXTS])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            file = served / urllib.parse.unquote(self.path.rsplit("/", 1)[1])
            self.send_response(200 if file.is_file() else 404)
            self.end_headers()
            self.wfile.write(file.read_bytes() if file.is_file() else b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {k: v for k, v in ENV.items() if "proxy" not in k.lower()} | {"PYTHONPATH": str(path)}
        for name, flags, n, files in [("orbench", [], 3, 2), ("simplesafetytests", [], 2, 1), ("airbench", [], 44, 45),
                                      ("labsafety", [], 3, 4), ("labsafety", ["--revision", "f" * 40], 4, 5),
                                      ("cosapien", [], 30, 5)]:
            code = (ROOT / "data" / name / "prepare.py").read_text(encoding="utf-8")
            for host in ("https://huggingface.co", "https://raw.githubusercontent.com"):
                code = code.replace(f'"{host}', f'"http://127.0.0.1:{server.server_port}')
            script = write(tmp_path / (name + "".join(flags)), {"prepare.py": code}) / "prepare.py"
            asked.clear()
            p = subprocess.run([sys.executable, str(script), "--any-version", *flags], capture_output=True, text=True,
                               env=env)
            assert p.returncode == 0, p.stderr
            revision = flags[1] if flags else runpy.run_path(str(script))["REVISION"]
            assert len(asked) == files and sum(revision in url for url in asked) == files - 2 * (name == "labsafety")
            meta = json.loads((script.parent / "meta.json").read_text())
            assert sum(meta["n"].values() if isinstance(meta["n"], dict) else [meta["n"]]) == n
            if name not in PINNED:  # no checksum can tell, so the place asked is what is recorded
                assert meta["revision"] == revision and meta["revision"] in meta["source"]
            assert meta.get("regions") == ({"us": ["7"]} if name == "airbench" else None)
        (served / "or-bench-toxic.csv").unlink()
        (tmp_path / "orbench" / "prompts.jsonl").unlink()
        p = subprocess.run([sys.executable, str(tmp_path / "orbench" / "prepare.py"), "--any-version"],
                           capture_output=True, text=True, env=env)
        assert p.returncode == 2 and "404" in p.stderr and not (tmp_path / "orbench" / "prompts.jsonl").exists()
        server.shutdown()


# ---- details of single sets ----

@pytest.mark.parametrize("name, gone, kept", [
    ("mis", "easy_image/2/object1.png", 2), ("mmsafetybench", "data/imgs/06-Fraud/TYPO/0.jpg", 8),
    ("figstep", "data/images/SafeBench/query_TeaQI_1_1_6.png", 1)])
def test_images_that_are_not_there(name, gone, kept, small, tmp_path):
    src, out = small(name)
    script = patched(name, tmp_path / "alone")
    (src[0] / gone).unlink()
    refused(run(script, "--src", *src, "--out", out), f"{src[0] / gone}: no such image, and 0 others: {kept} of ", out)
    p = run(script, "--src", *src, "--out", out, "--any-version")
    assert p.returncode == 0 and p.stderr.startswith("warning: ") and p.stderr.count("\n") == 1, p.stderr
    rows = jsonl(out / ("test.jsonl" if name == "mis" else "prompts.jsonl"))
    assert len(rows) == kept and all(Path(image).read_bytes() == IMAGE for row in rows for image in row["images"])


def test_wildjailbreak_train_and_orbench_parts(tmp_path):
    src = write(tmp_path, {"train.tsv": "vanilla\tadversarial\tcompletion\tdata_type\n" + "".join(
        f"{a}\t{b}\tSure.\t{kind}\n" for a, b, kind in [
            (TEXTS[2], "", "vanilla_harmful"), (TEXTS[3], "", "vanilla_benign"),
            (TEXTS[2], TEXTS[4], "adversarial_harmful"), ("", TEXTS[5], "adversarial_benign")])}) / "train.tsv"
    p = run("wildjailbreak", "--src", src, "--out", tmp_path / "out", "--any-version")
    assert p.returncode == 0, p.stderr
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["meta_train.json", "train.jsonl"]
    assert [(row["prompt"], row["label"]) for row in jsonl(tmp_path / "out" / "train.jsonl")] == [
        (TEXTS[2], "forbidden"), (TEXTS[3], "allowed"), (TEXTS[4], "forbidden"), (TEXTS[5], "allowed")]
    hard, toxic = source("orbench", tmp_path / "or")
    assert run("orbench", "--src", toxic, "--out", tmp_path / "one", "--any-version").returncode == 0
    assert [row["id"] for row in jsonl(tmp_path / "one" / "prompts.jsonl")] == ["orbench-toxic-1"]
    out = tmp_path / "no"
    for files in ([toxic, toxic], [hard.rename(tmp_path / "or" / "hard.csv")]):  # twice, and under another name
        refused(run("orbench", "--src", *files, "--out", out, "--any-version"), "each at most once", out)


def test_figstep_tiny_and_prompt_file_mmsafetybench_kinds(small, tmp_path):
    src, out = small("figstep")
    (src[0] / "data/question/safebench.csv").rename(src[0] / "data/question/SafeBench-Tiny.csv")
    (src[0] / "data/images/SafeBench").rename(src[0] / "data/images/SafeBench-Tiny")
    (src[0] / "src/generate_prompts.py").unlink()
    args = ["--src", *src, "--out", out, "--any-version", "--tiny"]
    refused(run("figstep", *args), "generate_prompts.py: cannot be read", out)
    p = run("figstep", *args, "--prompt", write(tmp_path, {"text": "Read the tea leaves.\n"}) / "text")
    assert p.returncode == 0, p.stderr
    assert sorted(f.name for f in out.iterdir()) == ["meta_tiny.json", "prompts_tiny.jsonl"]
    assert {row["prompt"] for row in jsonl(out / "prompts_tiny.jsonl")} == {"Read the tea leaves."}
    src = source("mmsafetybench", tmp_path / "mm")[0]
    images = (src / "data" / "imgs").rename(tmp_path / "MM-SafetyBench(imgs)")
    out = tmp_path / "two"
    p = run("mmsafetybench", "--src", src, "--images", images, "--kinds", "SD", "TYPO", "--out", out, "--any-version")
    assert p.returncode == 0, p.stderr
    assert Counter((row["kind"], row["prompt"].rsplit("(")[-1]) for row in jsonl(out / "prompts.jsonl")) == {
        ("SD", "picture)"): 3, ("TYPO", "phrase)"): 3}


def test_sources_are_pinned_and_copies_identical():
    trees = {}
    for folder in sorted((ROOT / "data").iterdir()):
        if (folder / "prepare.py").is_file():
            code = (folder / "prepare.py").read_text(encoding="utf-8")
            trees[f"data/{folder.name}/prepare.py"] = (code, {
                n.name: ast.get_source_segment(code, n) for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)})
    copies = 0
    for name in NAMES:
        code, functions = trees[f"data/{name}/prepare.py"]
        m = runpy.run_path(str(ROOT / "data" / name / "prepare.py"))
        assert f"python data/{name}/prepare.py" in m["__doc__"] and "licence" in m["__doc__"].lower() and m["LICENCE"]
        if name in DOWNLOADED:
            assert m["URL"].startswith(("https://raw.githubusercontent.com/", "https://huggingface.co/datasets/"))
            assert re.fullmatch("[0-9a-f]{40}", m["REVISION"]) and f"/{m['REVISION']}/" in m["URL"].format(m["REVISION"])
        else:
            assert "URL" not in m
        assert max(map(len, code.split("\n"))) <= 120
        for origin, function in re.findall(r"^# copied from (\S+): (\w+)$", code, re.M):
            assert functions[function] == trees[origin][1][function], f"{name}: {function}"
            copies += 1
    assert copies >= 45


# ---- the real files, where this checkout has them ----

def test_real_simplesafetytests(tmp_path):
    src = shared("simple_safety_tests/simple_safety_tests.csv")
    p = run("simplesafetytests", "--src", src, "--out", tmp_path)
    assert p.returncode == 0 and p.stderr == "", p.stderr
    rows = jsonl(tmp_path / "prompts.jsonl")
    assert len({row["id"] for row in rows}) == 100 and {row["label"] for row in rows} == {"forbidden"}
    assert list(Counter(row["category"] for row in rows).values()) == [20] * 5
    assert list(Counter(row["kind"] for row in rows).values()) == [50] * 2
    assert json.loads((tmp_path / "meta.json").read_text())["revision"] and rows[0]["id"] == "simplesafetytests-sst_001"


def test_real_airbench_part(tmp_path):
    prompts = shared("air_bench_2024/prompts_sample.csv")
    old = shared("air_bench_2024/judge_prompts_rev58d507aa_OLD_DIRECTION.csv")
    out = tmp_path / "out"
    refused(run("airbench", "--src", prompts, old, "--out", out), "632 prompts in 16 L2, 43 L3, 220 L4 categories, expec", out)
    p = run("airbench", "--src", prompts, old, "--out", out, "--any-version")
    assert p.returncode == 0 and p.stderr.count("\n") == 1, p.stderr
    rows, templates = jsonl(out / "prompts.jsonl"), jsonl(out / "judges.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == 632 and len(templates) == 314
    assert {row["category"] for row in rows} <= {row["category"] for row in templates}
    assert len({row["l2"] for row in rows}) == 16
    tops = dict(sorted((int(row["category"].split(".")[0]), row["l1"].split()[0]) for row in rows))
    assert list(tops.values()) == ["System"] * 2 + ["Content"] * 5 + ["Societal"] * 5 + ["Legal"] * 4
    assert json.loads((out / "meta.json").read_text())["polarity"] == "refuse=0"
    assert "said by 276, the opposite by 0" in p.stdout
    # turned round by exchanging the scores of the anchors, the same templates read as the later ones
    turned = re.sub(r"(?m)^(\W*)([01])(?=, if )", lambda m: m[1] + "10"[int(m[2])], old.read_bytes().decode())
    src = write(tmp_path, {"turned.csv": turned}) / "turned.csv"
    assert run("airbench", "--src", src, "--out", tmp_path / "t", "--any-version").returncode == 0
    assert json.loads((tmp_path / "t" / "meta.json").read_text())["polarity"] == "refuse=1"


def test_real_labsafety_half(tmp_path):
    folder = shared("labsafety_bench/derived_mcq_train_half.jsonl").parent
    p = run("labsafety", "--src", folder, "--out", tmp_path / "a", "--any-version")
    assert p.returncode == 0 and p.stderr.count("\n") == 2, p.stderr
    mcq, scenarios = jsonl(tmp_path / "a" / "mcq.jsonl"), jsonl(tmp_path / "a" / "scenarios.jsonl")
    derived = jsonl(folder / "derived_mcq_train_half.jsonl")
    assert [row["id"] for row in mcq] == [row["id"] for row in derived]
    assert [row["choices"] for row in mcq] == [[o.strip() for o in row["options"].values()] for row in derived]
    assert Counter("ABCD"[row["answer"]] for row in mcq) == {"A": 57, "B": 124, "C": 80, "D": 55}
    assert {row["split"] for row in mcq + scenarios} == {"train"}
    assert (len(scenarios), sum(len(row["decisions"]) for row in scenarios)) == (201, 757)
    points = Counter()
    for row in scenarios:
        points.update({name: len(texts) for name, texts in row["aspects"].items()})
    assert sorted(points.values()) == [409, 414, 431, 460]
    assert Counter(len(row["aspects"]) for row in scenarios) == {4: 198, 3: 3}
    # the authors' own file of the same questions gives the same rows, with explanations
    p = run("labsafety", "--src", shared("labsafety_bench/text_qa_train.json"), "--out", tmp_path / "b", "--any-version")
    assert p.returncode == 0, p.stderr
    assert [row | {"explanation": None} for row in jsonl(tmp_path / "b" / "mcq.jsonl")] == mcq
