"""data/{proxyguard,aegis1,aegis2,canttalk,openaimod,toxicchat}/prepare.py, run as a user runs them.

    python -m pytest -q tests/test_data_guard.py        # about 15 s on one core, no network, no torch, no pyarrow

Fixtures are written here, on the proxy topics, in each set's own format. Where the real file lies in ../shared/data, the loader
also runs on it; otherwise that test is skipped. No test prints a prompt.
"""
import ast
import gzip
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_data import ENV, ROOT, as_csv, jsonl, lines, refused, sha, shared

NAMES = ["aegis1", "aegis2", "canttalk", "openaimod", "toxicchat"]
PINNED = ["aegis1", "aegis2", "openaimod", "toxicchat"]  # sets with a published checksum
TEXTS = ["How is green tea brewed?", 'Tie a "bowline"\nwith one hand.', "Name three kite shapes.", "Force a card on a friend.",
         "Where do robins nest?", "Sum up my letter, please."]
A1 = ["text", "text_type", *[f"labels_{i}" for i in range(5)]]


def run(script, *args, **env):
    script = ROOT / "data" / script / "prepare.py" if isinstance(script, str) else script
    return subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True, env=ENV | env)


def votes(text, kind, *cells):
    return dict(zip(A1, [text, kind, *cells, *[None] * (5 - len(cells))]))


AEGIS1 = {"train": [votes(TEXTS[0], "user_message", "Violence", "Threat, Violence", "Safe"),
                    votes(TEXTS[1], "multi_turn", "Safe", "needs caution", "Safe", "None"),
                    votes(TEXTS[2], "user_message"), votes(TEXTS[3], "llm_response", "Needs Caution", "Needs Caution", "Safe")],
          "test": [votes(TEXTS[4], "user_message", "Safe", "Safe", "Safe"), votes(f" {TEXTS[0]}", "user_message", "Violence", "Safe"),
                   votes(TEXTS[5], "combined", "Profanity", "Needs Caution", "Safe", "Safe", "Other")]}


def item(key, prompt, response, labels, categories="", by=None):
    return {"id": key, "reconstruction_id_if_redacted": None, "prompt": prompt, "response": response, "prompt_label": labels[0],
            "response_label": labels[1], "violated_categories": categories, "prompt_label_source": "human", "response_label_source": by}


US, UU, SS, S, U = ("unsafe", "safe"), ("unsafe", "unsafe"), ("safe", "safe"), ("safe", None), ("unsafe", None)
AEGIS2 = {"train.json": [item("a", TEXTS[0], "Warm the pot.", UU, "Violence, Threat", "llm_jury"), item("b", "REDACTED", None, U, "Threat"),
                         item("c", TEXTS[1], None, S, "Needs Caution, Profanity"), item("d", TEXTS[2], "", SS, "", "human"), item("e", " ", None, S)],
          "refusals_train.json": [item("a", TEXTS[0], "I can't go into tea.", US, "Violence", "refusal_data_augmentation")] * 2,
          "validation.json": [item("f", TEXTS[4], "In hedges.", SS, "Profanity, Needs Caution", "human")],
          "refusals_validation.json": [item("g", TEXTS[3], "No.", US, "Other", "refusal_data_augmentation")],
          "test.json": [item(8, TEXTS[3], None, U, "illegal activity")]}


def dialogue(*distractors, turns=("Hello!", "Hi. What shall it be?", TEXTS[4], "In hedges.")):
    return {"domain": "birds", "scenario": "nests", "system_instruction": "Only robins.",
            "conversation": [{"role": r, "content": t} for r, t in zip(["user", "assistant"] * 3, turns)],
            "distractors": [{"bot turn": b, "distractor": d} for b, d in distractors], "conversation_with_distractors": []}


CANTTALK = {"canttalkaboutthis_topic_control_mixtral.jsonl": [dialogue(("Hi. What shall it be? ", TEXTS[0]), ("In hedges.", TEXTS[1]),
                                                                       ("In hedges.", " ")),
                                                              dialogue(("Never said.", TEXTS[2]), turns=("Hello!", "", " "))],
            "canttalkaboutthis_topic_control_human_test_set.jsonl": [dialogue(("Hi. What shall it be?", TEXTS[3]))]}
ZERO = dict.fromkeys(["S", "H", "V", "HR", "SH", "S3", "H2", "V2"], 0)
OPENAIMOD = [{"prompt": TEXTS[0]} | ZERO, {"prompt": TEXTS[1], "S": 0, "S3": 0}, {"prompt": TEXTS[2], "V": 1, "V2": 0, "H": None},
             {"prompt": TEXTS[3]} | ZERO | {"H": 1, "H2": 1}]
TOXIC = ["conv_id", "user_input", "model_output", "human_annotation", "toxicity", "jailbreaking", "openai_moderation"]
TOXICCHAT = {split: as_csv(TOXIC, *[[i, t, "Warm,\nthe pot.", h, x, j, "[]"] for i, (t, h, x, j) in enumerate(rows)]) for split, rows in {
    "train": [(TEXTS[0], True, 1, 0), (TEXTS[1], False, 0, 0), (" ", True, 0, 0)], "test": [(TEXTS[2], True, 0, 1), (TEXTS[3], False, 0, 0)]}.items()}
SMALL = {"aegis1": {f"aegis_{s}_v1.jsonl": lines(rows) for s, rows in AEGIS1.items()},
         "aegis2": {f: json.dumps(rows) for f, rows in AEGIS2.items()}, "canttalk": {f: lines(rows) for f, rows in CANTTALK.items()},
         "openaimod": {"samples-1680.jsonl": lines(OPENAIMOD)},
         "toxicchat": {f"toxic-chat_annotation_{s}.csv": text for s, text in TOXICCHAT.items()}}


def source(name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in SMALL[name].items():
        (folder / file).write_bytes(text.encode())
    return folder / "samples-1680.jsonl" if name == "openaimod" else folder


@pytest.fixture
def small(tmp_path):
    return lambda name: (source(name, tmp_path / "src"), tmp_path / "new" / "out")


def row(key, prompt, label, kind, response=None, judged=None, categories=(), caution=False, labels=(), **more):
    messages = [{"role": "user", "content": prompt}] + [{"role": "assistant", "content": response}] * (response is not None)
    return {"id": key, "messages": messages, "prompt": prompt, "response": response, "prompt_label": label, "response_label": judged,
            "categories": list(categories), "needs_caution": caution, "kind": kind, "labels": list(labels)} | more


def topic(key, label, *turns):
    return {"id": key, "system": "Only robins.", "messages": [{"role": r, "content": t} for r, t in zip(["user", "assistant"] * 3, turns)],
            "label": label, "domain": "birds", "scenario": "nests"}


ALL8 = ["sexual", "hate", "violence", "harassment", "self-harm", "sexual/minors", "hate/threatening", "violence/graphic"]
HELLO = ("Hello!", "Hi. What shall it be?")
EXPECTED = {
    "aegis1": {"train.jsonl": [
        row("aegis1-train-1", TEXTS[0], "unsafe", "user_message", categories=["Violence", "Threat"],
            labels=["Violence", "Threat, Violence", "Safe"], unlisted=[]),
        row("aegis1-train-2", TEXTS[1], "safe", "multi_turn", labels=["Safe", "Needs Caution", "Safe"], unlisted=[]),
        row("aegis1-train-4", TEXTS[3], "safe", "llm_response", caution=True, labels=["Needs Caution", "Needs Caution", "Safe"], unlisted=[])],
        "test.jsonl": [
        row("aegis1-test-1", TEXTS[4], "safe", "user_message", labels=["Safe"] * 3, unlisted=[]),
        row("aegis1-test-2", TEXTS[0], "unsafe", "user_message", categories=["Violence"], labels=["Violence", "Safe"], unlisted=[]),
        row("aegis1-test-3", TEXTS[5], "safe", "combined", caution=True,
            labels=["Profanity", "Needs Caution", "Safe", "Safe", "Other"], unlisted=[])]},
    "aegis2": {"train.jsonl": [
        row("aegis2-train-a", TEXTS[0], "unsafe", "dialogue", "Warm the pot.", "unsafe", ["Violence", "Threat"], response_source="llm_jury"),
        row("aegis2-train-c", TEXTS[1], "safe", "prompt", None, None, ["Needs Caution", "Profanity"], True, response_source=None),
        row("aegis2-train-d", TEXTS[2], "safe", "prompt", response_source=None),
        *[row(f"aegis2-train-a-refusal{again}", TEXTS[0], "unsafe", "refusal", "I can't go into tea.", "safe", ["Violence"],
              response_source="refusal_data_augmentation") for again in ("", "-2")]],
        "validation.jsonl": [
        row("aegis2-validation-f", TEXTS[4], "safe", "dialogue", "In hedges.", "safe", ["Profanity", "Needs Caution"], response_source="human"),
        row("aegis2-validation-g-refusal", TEXTS[3], "unsafe", "refusal", "No.", "safe", ["Other"], response_source="refusal_data_augmentation")],
        "test.jsonl": [row("aegis2-test-8", TEXTS[3], "unsafe", "prompt", None, None, ["Illegal Activity"], response_source=None)]},
    "canttalk": {"train.jsonl": [topic("canttalk-train-1-1-off", "off-topic", *HELLO, TEXTS[0]),
                                 topic("canttalk-train-1-1-on", "on-topic", *HELLO, TEXTS[4]),
                                 topic("canttalk-train-1-2-off", "off-topic", *HELLO, TEXTS[4], "In hedges.", TEXTS[1])],
                 "test.jsonl": [topic("canttalk-test-1-1-off", "off-topic", *HELLO, TEXTS[3]),
                                topic("canttalk-test-1-1-on", "on-topic", *HELLO, TEXTS[4])]},
    "openaimod": {"test.jsonl": [
        row("openaimod-1", TEXTS[0], "safe", "known", known=ALL8), row("openaimod-2", TEXTS[1], "safe", "partial", known=["sexual", "sexual/minors"]),
        row("openaimod-3", TEXTS[2], "unsafe", "known", categories=["violence"], known=["violence", "violence/graphic"]),
        row("openaimod-4", TEXTS[3], "unsafe", "known", categories=["hate", "hate/threatening"], known=ALL8)]},
    "toxicchat": {"train.jsonl": [row("toxicchat-train-1", TEXTS[0], "unsafe", "human", jailbreaking=0),
                                  row("toxicchat-train-2", TEXTS[1], "safe", "auto", jailbreaking=0)],
                  "test.jsonl": [row("toxicchat-test-1", TEXTS[2], "safe", "human", jailbreaking=1),
                                 row("toxicchat-test-2", TEXTS[3], "safe", "auto", jailbreaking=0)]}}
for s in ("train", "test"):
    EXPECTED["toxicchat"][f"{s}_human.jsonl"] = EXPECTED["toxicchat"][f"{s}.jsonl"][:1]
META = {"aegis1": {"mapping": "permissive", "rule": "majority", "tie": "unsafe", "disjoint": False, "dropped": {"train": {"no vote": 1}, "test": {}}},
        "aegis2": {"mapping": "permissive", "rule": "first", "tie": "decided before the release",
                   "dropped": {"train": {"redacted": 1, "empty": 1}, "validation": {}, "test": {}}},
        "canttalk": {"dialogues": {"train": 2, "test": 1}, "dropped": {"train": {"empty": 1, "bot turn not found": 1}, "test": {}}},
        "openaimod": {"known_only": False}, "toxicchat": {"empty": {"train": 1, "test": 0}}}


@pytest.mark.parametrize("name", NAMES)
def test_small_source(name, small):
    src, out = small(name)
    p = run(name, "--src", src, "--out", out, "--any-version")
    assert p.returncode == 0 and p.stderr and all(x.startswith("warning: ") for x in p.stderr.splitlines()), p.stderr
    assert sorted(f.name for f in out.iterdir()) == sorted([*EXPECTED[name], "meta.json"])  # no temporary file left
    for file, rows in EXPECTED[name].items():
        assert jsonl(out / file) == rows
        assert len({r["id"] for r in rows}) == len(rows)
    meta = json.loads((out / "meta.json").read_text())
    assert {k: meta[k] for k in META[name]} == META[name] and meta["revision"] is None and meta["licence"]
    assert (sum(meta["n"].values()) if isinstance(meta["n"], dict) else meta["n"]) == sum(map(len, EXPECTED[name].values()))
    for text in [*TEXTS, "bowline", "hedges", "the pot"]:
        assert text not in p.stdout + p.stderr  # counts, never texts
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    assert run(name, "--src", src, "--out", out, "--any-version").returncode == 0
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}  # the same bytes again
    # without the flag the difference stops the run, and the good files stay
    p = run(name, "--src", src, "--out", out)
    assert p.returncode == 2 and p.stderr.count("\n") == 1 and p.stderr.endswith("; --any-version accepts it\n"), p.stderr
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}
    assert (name in PINNED) == ("sha256" in p.stderr)


PATCH = {"aegis1": [('"train": 10798, "test": 1199', '"train": 4, "test": 3')],
         "aegis2": [("25007", "5"), ("5000", "2"), ("1245", "1"), ("200,", "1,"), ("1964", "1")],
         "canttalk": [('"train": 1080', '"train": 2')], "openaimod": [("N, UNSAFE = 1680, 522", "N, UNSAFE = 4, 2")],
         "toxicchat": [('"train": 5082, "test": 5083', '"train": 3, "test": 2'), ("HUMAN_TEST = 2853, 362", "HUMAN_TEST = 1, 0")]}


def patched(name, folder, counts):
    """A copy of the script whose pinned checksums, and with counts its counts, are those of the small source."""
    code = (ROOT / "data" / name / "prepare.py").read_text(encoding="utf-8")
    for old, new in PATCH[name] if counts else []:
        assert old in code, old
        code = code.replace(old, new)
    sums = re.findall(r'"([0-9a-f]{64})"', code)
    assert len(sums) == (len(SMALL[name]) if name in PINNED else 0)
    order = sorted(SMALL[name], key=lambda file: "test" in file) if name != "aegis2" else SMALL[name]  # as in the script: train first
    for old, file in zip(sums, order):
        code = code.replace(old, sha(folder / file))
    script = folder.parent / "alone" / "prepare.py"
    script.parent.mkdir()
    script.write_text(code, encoding="utf-8")
    return script


@pytest.mark.parametrize("name", NAMES)
def test_the_right_counts_and_checksums_need_no_flag(name, small, tmp_path):
    """Also shows that the script runs alone."""
    src, _ = small(name)
    script = patched(name, tmp_path / "src", counts=True)
    p = run(script, "--src", src)  # default --out: beside itself
    assert p.returncode == 0 and p.stderr == "", p.stderr
    meta = json.loads((script.parent / "meta.json").read_text())
    assert bool(meta["revision"]) == (name in PINNED) and ("://" in str(meta["source"])) == (name in PINNED)
    for file, rows in EXPECTED[name].items():
        assert jsonl(script.parent / file) == rows


@pytest.mark.parametrize("name, message", [("aegis1", "train_v1.jsonl: 4 rows, expected 10798"), ("aegis2", "train.json: 5 rows, expected 25007"),
                                           ("canttalk", "mixtral.jsonl: 2 dialogues, 3 rows, expected 1080"),
                                           ("openaimod", "4 rows, 2 unsafe, expected 1680 and 522"), ("toxicchat", "train.csv: 3 rows, expected 5082")])
def test_wrong_counts_stop_the_run(name, message, small, tmp_path):
    src, out = small(name)
    refused(run(patched(name, tmp_path / "src", counts=False), "--src", src, "--out", out), f"{message}; --any-version accepts it", out)


def test_toxicchat_counts_of_the_human_part(small, tmp_path):
    src, out = small("toxicchat")
    script = patched("toxicchat", tmp_path / "src", counts=True)
    script.write_text(script.read_text().replace("HUMAN_TEST = 1, 0", "HUMAN_TEST = 1, 1"))
    refused(run(script, "--src", src, "--out", out), "1 rows with human annotation, 0 toxic, expected 1 and 1", out)


@pytest.mark.parametrize("name", NAMES)
def test_missing_source_no_network_unknown_flag_unwritable(name, small, tmp_path):
    src, out = small(name)
    gone = tmp_path / "gone" / next(iter(SMALL[name]))
    refused(run(name, "--src", gone, "--out", out, "--any-version"), "cannot be read" if name != "canttalk" else str(gone), out)
    refused(run(name, "--out", out), "cannot be read", out)
    refused(run(name, "--any-versions", "--src", src, "--out", out), "--any-versions", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    if name != "openaimod":
        refused(run(name, "--src", empty, "--out", out), "expected", out)
    (tmp_path / "file").write_text("x")
    p = run(name, "--src", src, "--out", tmp_path / "file" / "out", "--any-version")
    assert p.returncode == 2 and "cannot be written" in p.stderr.splitlines()[-1] and "Traceback" not in p.stderr


FIRST = {name: next(iter(files)) for name, files in SMALL.items()}
BAD = [  # set, text in its first file, what stands there instead, the message after the path of the file
    ("aegis1", '"text": ', '"words": ', ":1: text: expected"), ("aegis1", '"text_type": ', '"type": ', ":1: text_type: expected"),
    ("aegis1", '"labels_0": "Safe"', '"labels_0": 3', ":2: labels_0: expected"), ("aegis1", "{", "", ":1: row: expected"),
    ("aegis2", '"prompt": "How', '"words": "How', ": item 1: prompt: expected"), ("aegis2", '"unsafe"', '"bad"', ": item 1: prompt_label: expected"),
    ("aegis2", '"response_label": "unsafe"', '"response_label": "no"', ": item 1: response_label: expected"),
    ("aegis2", '"response_label": "unsafe"', '"response_label": null', ": item 1: response_label: expected"),
    ("aegis2", '"llm_jury"', '"me"', ": item 1: response_label_source: expected"), ("aegis2", '"Violence, Threat"', "7", ": item 1: violated_cat"),
    ("aegis2", '"id": "a"', '"id": ""', ": item 1: id: expected"), ("aegis2", "[", "{", ":1: file: expected a list"),
    ("aegis2", '"Warm the pot."', "[]", ": item 1: response: expected"),
    ("canttalk", '"system_instruction"', '"system"', ":1: system_instruction: expected"), ("canttalk", '"role": "user"', '"role": "bot"', ":1: conv"),
    ("canttalk", '"bot turn"', '"turn"', ":1: bot turn: expected"), ("canttalk", '"distractors"', '"others"', ":1: distractors: expected"),
    ("canttalk", '"domain"', '"field"', ":1: domain: expected"),
    ("openaimod", '"S": 0', '"S": 2', ":1: S: expected 0 or 1"), ("openaimod", '"S": 0, "S3": 0', '"T": 0', ":2: labels: expected"),
    ("openaimod", '"prompt"', '"text"', ":1: prompt: expected"), ("openaimod", '"H": 0', '"H": true', ":1: H: expected"),
    ("toxicchat", "user_input", "input", ":1: header: expected"), ("toxicchat", "True,1", "yes,1", ":3: human_annotation: expected"),
    ("toxicchat", "True,1", "True,2", ":3: toxicity: expected"), ("toxicchat", ",False", "", ":6: row: expected 7 fields")]


@pytest.mark.parametrize("name, old, new, message", BAD)
def test_bad_row(name, old, new, message, small, tmp_path):
    src, out = small(name)
    path = tmp_path / "src" / FIRST[name]
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    p = run(name, "--src", src, "--out", out, "--any-version")
    refused(p, f"{path}{message}", out)
    assert not any(text in p.stdout + p.stderr for text in TEXTS)


def test_bytes_that_are_no_text(tmp_path):
    for name in NAMES:
        src, out = source(name, tmp_path / name), tmp_path / "out" / name
        path = tmp_path / name / FIRST[name]
        path.write_bytes(b"\xff\xfe\x00prompt")
        refused(run(name, "--src", src, "--out", out, "--any-version"), str(path), out)


@pytest.mark.parametrize("name, old", [("aegis1", "Threat, Violence"), ("aegis2", "Violence, Threat")])
def test_unknown_category(name, old, small, tmp_path):
    src, out = small(name)
    path = tmp_path / "src" / FIRST[name]
    path.write_text(path.read_text().replace(old, "Juggling"))
    p = run(name, "--src", src, "--out", out, "--any-version")
    assert p.returncode == 0 and re.search(r":1: labels_1: expected a category|item 1: violated_categories: expected categor", p.stderr)
    assert "Juggling" in jsonl(out / "train.jsonl")[0]["unlisted" if name == "aegis1" else "categories"]


CELLS = [["Violence", "Safe"], ["Needs Caution", "Safe", "Safe"], ["Needs Caution", "Needs Caution", "Safe"], ["Violence", "Needs Caution", "Safe"],
         ["Safe", "Safe", "Violence, Threat"], ["Needs Caution"], ["Safe, Needs Caution", "Safe, Needs Caution", "Safe"], ["Safe", "Safe", "Safe"]]
RULES = [  # mapping, rule, tie, the labels of CELLS (u, s, - for a row left out)
    ("permissive", "majority", "unsafe", "ussssss" "s"), ("permissive", "majority", "drop", "-ssssss" "s"),
    ("defensive", "majority", "unsafe", "usuusuu" "s"),
    ("drop", "majority", "unsafe", "ussus-s" "s"), ("drop", "majority", "drop", "-ss-s-s" "s"), ("permissive", "any", "unsafe", "ussuuss" "s"),
    ("defensive", "any", "unsafe", "uuuuuuu" "s"), ("defensive", "safety-eval", "unsafe", "usuusuu" "s")]


@pytest.mark.parametrize("mapping, rule, tie, labels", RULES)
def test_aegis1_rules(mapping, rule, tie, labels, tmp_path):
    src, out = tmp_path / "train.jsonl", tmp_path / "out"
    src.write_text(lines(votes(f"Knot {i}.", "user_message", *cells) for i, cells in enumerate(CELLS)))
    p = run("aegis1", "--src", src, "--out", out, "--any-version", "--mapping", mapping, "--rule", rule, "--tie", tie)
    assert p.returncode == 0 and f"mapping {mapping}, rule {rule}, tie {tie}" in p.stdout, p.stderr
    assert f"kinds: user_message {8 - labels.count('-')} ({labels.count('u')} unsafe)" in p.stdout
    found = {r["id"]: r["prompt_label"][0] for r in jsonl(out / "train.jsonl")}
    assert "".join(found.get(f"aegis1-train-{i}", "-") for i in range(1, 9)) == labels
    meta = json.loads((out / "meta.json").read_text())
    assert (meta["mapping"], meta["rule"], meta["tie"]) == (mapping, rule, tie)
    assert sum(meta["dropped"]["train"].values()) == labels.count("-")
    if (mapping, rule, tie) == ("permissive", "majority", "unsafe"):  # what the script maps again is what the flag would do
        defensive = RULES[2][3]
        assert all(r["needs_caution"] == (labels[i] == "s" and defensive[i] == "u") for i, r in enumerate(jsonl(out / "train.jsonl")))


def test_aegis1_names_of_the_policy(tmp_path):
    src, out = tmp_path / "train.jsonl", tmp_path / "out"
    src.write_text(lines([votes("A knot.", "user_message", "hate/identity HATE, Other", "Hate /identity hate", "Needs Caution, Other")]))
    p = run("aegis1", "--src", src, "--out", out, "--any-version")
    assert p.returncode == 0 and "category" not in p.stderr
    assert [(r["categories"], r["unlisted"]) for r in jsonl(out / "train.jsonl")] == [(["Hate /identity hate"], ["Other"])]


def test_aegis1_other_forms_and_flags(small, tmp_path):
    src, out = small("aegis1")
    refused(run("aegis1", "--src", src, "--rule", "safety-eval", "--out", out), "--mapping defensive", out)
    p = run("aegis1", "--src", src, "--out", out, "--any-version", "--disjoint")
    assert p.returncode == 0 and [r["id"] for r in jsonl(out / "test.jsonl")] == ["aegis1-test-1", "aegis1-test-3"] and "0 test rows" in p.stdout
    refused(run("aegis1", "--src", src / "aegis_test_v1.jsonl", "--disjoint", "--out", tmp_path / "no"), "both splits", tmp_path / "no")
    table = tmp_path / "test.csv"
    table.write_bytes(as_csv(A1, *[[r[k] for k in A1] for r in AEGIS1["test"]]).encode())
    p = run("aegis1", "--src", table, "--out", tmp_path / "csv", "--any-version")
    assert p.returncode == 0 and jsonl(tmp_path / "csv" / "test.jsonl") == EXPECTED["aegis1"]["test.jsonl"], p.stderr
    assert not (tmp_path / "csv" / "train.jsonl").exists()


def test_aegis1_parquet(tmp_path):
    """Without pyarrow one clear line; with a stand-in for it the rows."""
    src, out = tmp_path / "x_test.parquet", tmp_path / "out"
    src.write_text(json.dumps(AEGIS1["test"]))
    stand_in = "import json\nclass read_table:\n  def __init__(self, f): self.f = f\n  def to_pylist(self): return json.load(self.f)"
    for code, message in (("raise ImportError", "needs the package pyarrow"), (stand_in, None)):
        folder = tmp_path / str(bool(message))
        (folder / "pyarrow").mkdir(parents=True)
        (folder / "pyarrow" / "__init__.py").write_text("")
        (folder / "pyarrow" / "parquet.py").write_text(code)
        p = run("aegis1", "--src", src, "--out", out, "--any-version", PYTHONPATH=str(folder))
        if message:
            refused(p, message, out)
    assert p.returncode == 0 and jsonl(out / "test.jsonl") == EXPECTED["aegis1"]["test.jsonl"], p.stderr


@pytest.mark.parametrize("mapping, rule, caution", [("permissive", "first", ["c"]), ("defensive", "first", ["c"]), ("defensive", "any", ["c", "f"])])
def test_aegis2_mapping(mapping, rule, caution, small):
    src, out = small("aegis2")
    p = run("aegis2", "--src", src, "--out", out, "--any-version", "--mapping", mapping, "--rule", rule)
    rows = [r for f in ("train", "validation", "test") for r in jsonl(out / f"{f}.jsonl")]
    assert p.returncode == 0 and [r["id"][-1] for r in rows if r["needs_caution"]] == caution and f"caution {mapping}" in p.stdout
    assert {r["id"][-1] for r in rows if r["prompt_label"] == "unsafe"} - set("al2") == set("8") | (set(caution) if mapping == "defensive" else set())


def test_aegis2_id_twice(small, tmp_path):
    src, out = small("aegis2")
    (src / "test.json").write_text(json.dumps(AEGIS2["test.json"] * 2))
    p = run("aegis2", "--src", src / "test.json", "--out", out, "--any-version")
    assert p.returncode == 0 and "1 ids twice" in p.stderr and sorted(f.name for f in out.iterdir()) == ["meta.json", "test.jsonl"]
    (src / "other.json").write_text("[]")
    refused(run("aegis2", "--src", src / "other.json", "--out", tmp_path / "no"), "expected one of train.json", tmp_path / "no")


def test_openaimod_packed_and_known_only(small, tmp_path):
    src, out = small("openaimod")
    packed = tmp_path / "samples-1680.jsonl.gz"
    packed.write_bytes(gzip.compress(src.read_bytes()))
    p = run("openaimod", "--src", packed, "--known-only", "--out", out, "--any-version")
    assert p.returncode == 0 and jsonl(out / "test.jsonl") == [r for r in EXPECTED["openaimod"]["test.jsonl"] if r["kind"] == "known"]
    assert json.loads((out / "meta.json").read_text())["known_only"] is True
    packed.write_bytes(packed.read_bytes()[:-9])
    refused(run("openaimod", "--src", packed, "--out", tmp_path / "no", "--any-version"), "not a gzip file", tmp_path / "no")


def test_real_openaimod_part(tmp_path):
    src = shared("openai_moderation/samples_minus_S3_even.jsonl")
    refused(run("openaimod", "--src", src, "--out", tmp_path / "no"), sha(src), tmp_path / "no")
    p = run("openaimod", "--src", src, "--out", tmp_path, "--any-version")
    rows = jsonl(tmp_path / "test.jsonl")
    assert p.returncode == 0 and len(rows) == 798 and Counter(r["prompt_label"] for r in rows) == {"unsafe": 232, "safe": 566}
    assert "sexual 79/459, hate 80/365, violence 52/697, harassment 40/694, self-harm 29/695" in p.stdout  # as its README counts
    assert not any(r["prompt"] in p.stdout + p.stderr for r in rows)


def test_sources_are_pinned_and_copies_identical():
    trees = {}
    for folder in sorted((ROOT / "data").iterdir()):
        if (folder / "prepare.py").is_file():
            code = (folder / "prepare.py").read_text(encoding="utf-8")
            trees[f"data/{folder.name}/prepare.py"] = (code, {
                n.name: ast.get_source_segment(code, n) for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)})
    copies = 0
    for name in [*NAMES, "proxyguard"]:
        code, functions = trees[f"data/{name}/prepare.py"]
        assert f"python data/{name}/prepare.py" in code and ("pyarrow" in code.split("# ///\n")[0]) == ("read_parquet" in functions)
        if name != "proxyguard":
            m = runpy.run_path(str(ROOT / "data" / name / "prepare.py"))
            assert re.fullmatch("[0-9a-f]{40}", m["REVISION"]) and f"/{m['REVISION']}/" in m["URL"] and "licence" in m["__doc__"].lower()
            assert m["LICENCE"] and max(map(len, code.split("\n"))) <= 120
        for origin, function in re.findall(r"^# copied from (\S+): (\w+)$", code, re.M):
            assert functions[function] == trees[origin][1][function], f"{name}: {function}"
            copies += 1
    assert copies >= 35


# ---- the proxy guard set ----

GUARD = ROOT / "data" / "proxyguard"
FILES = ["train", "validation", "test", "topic_train", "topic_test", "stream"]
UNSAFE_KINDS, SAFE_KINDS = {"direct", "comply", "refusal"}, {"ordinary", "contrast", "caution"}
NOVEL = re.compile("(?i)whistl|pigeon")


def norm(text):
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("guard")
    p = run(GUARD / "prepare.py", "--out", out, PYTHONHASHSEED="0")
    assert (p.returncode, p.stderr) == (0, "")
    return out


@pytest.fixture(scope="module")
def made(out):
    return {name: jsonl(out / f"{name}.jsonl") for name in FILES}


@pytest.fixture(scope="module")
def seeds():
    proxy = {p.stem: jsonl(p) for p in (ROOT / "data" / "proxy" / "seeds").glob("*.jsonl")}
    return proxy, {p.stem: jsonl(p) for p in (GUARD / "seeds").glob("*.jsonl")}


def test_two_runs_write_the_same_bytes_and_the_comments_are_the_output(out, tmp_path):
    p = run(GUARD / "prepare.py", "--out", tmp_path, PYTHONHASHSEED="1")
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f"{name}.jsonl" for name in FILES)  # and no temporary file
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()
    pasted = (GUARD / "prepare.py").read_text(encoding="utf-8").split("\n# output:\n")[1]
    assert pasted == "".join(f"# {line}\n" for line in p.stdout.splitlines())


def test_rows_are_consistent(made):
    for name in ("train", "validation", "test", "stream"):
        assert len({r["id"] for r in made[name]}) == len({json.dumps(r["messages"]) for r in made[name]}) == len(made[name])
        for r in made[name]:
            assert set(r) == {"id", "messages", "prompt", "response", "prompt_label", "response_label", "categories", "needs_caution", "kind",
                              "labels"} | {"stream": {"policy"}, "train": {"subject"}}.get(name, set())
            roles = [m["role"] for m in r["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
            assert r["prompt"] == [m["content"] for m in r["messages"] if m["role"] == "user"][-1]
            assert r["response"] == (r["messages"][-1]["content"] if roles[-1] == "assistant" else None)
            assert (r["response"] is None) == (r["response_label"] is None)
            assert r["prompt_label"] == ("unsafe" if r["categories"] else "safe") and len(r["categories"]) <= 1
            assert r["needs_caution"] == (r["kind"] == "caution") and (len(roles) > 2) == (r["kind"] == "multi")
            if r["kind"] in UNSAFE_KINDS | SAFE_KINDS:
                assert (r["prompt_label"] == "unsafe") == (r["kind"] in UNSAFE_KINDS)
            assert r["response_label"] == {"comply": "unsafe", "refusal": "safe"}.get(r["kind"], r["response_label"])
            if r["kind"] == "multi" and r["response"]:  # without the kind refusal no response is a refusal
                assert r["response_label"] == r["prompt_label"]
            assert len(r["labels"]) == 5 and set(r["labels"]) <= {"safe", "needs caution", "P1", "P2", "P3", "P4", "P5", "P6"}
            assert not re.search("[{}]", "".join(m["content"] for m in r["messages"]))


def test_sizes_and_shares(made):
    assert sum(map(len, made.values())) >= 4000
    for name, n in (("train", 3000), ("validation", 400), ("test", 800), ("topic_train", 1400), ("topic_test", 200), ("stream", 800)):
        assert n <= len(made[name]) <= 1.25 * n
    for name in ("train", "validation", "test"):
        kinds = Counter((r["kind"], r["prompt_label"]) for r in made[name])
        assert {k for k, _ in kinds} == {"direct", "phrasing", "wrapped", "ordinary", "contrast", "caution", "refusal", "comply", "multi"}
        for kind in ("phrasing", "wrapped", "multi"):  # the form alone must not decide
            assert .6 < kinds[kind, "unsafe"] / kinds[kind, "safe"] < 1.7
        for wrapper in {r["id"].split("-")[2] for r in made[name] if r["kind"] == "wrapped"}:
            assert len({r["prompt_label"] for r in made[name] if f"-wrapped-{wrapper}-" in r["id"]}) == 2
        topics = Counter(r["categories"][0] for r in made[name] if r["categories"])
        assert len(topics) == (6 if name == "test" else 4) and max(topics.values()) - min(topics.values()) <= .05 * sum(topics.values())
    for kind, forms in (("multi", {"last", "earlier", "followup"}),):
        assert {tuple(r["id"].split("-")[2:4])[0] for r in made["train"] if r["kind"] == kind} == forms
    wrappers = {n: {r["id"].split("-")[2] for r in made[n] if r["kind"] == "wrapped"} for n in ("train", "validation", "test")}
    assert wrappers["test"] - wrappers["train"] == wrappers["test"] - wrappers["validation"] == {"expert", "fiction"}
    for size in (100, 400):  # a prefix is a fair small version
        share = [sum(r["prompt_label"] == "unsafe" for r in rows) / len(rows) for rows in (made["train"][:size], made["train"])]
        assert abs(share[0] - share[1]) < .03


def test_nothing_of_the_novel_categories_outside_test(made):
    for name in set(FILES) - {"test"}:
        assert not NOVEL.search(json.dumps(made[name])) and not re.search("P[56]", json.dumps(made[name]))
    novel = [r for r in made["test"] if r["categories"] and r["categories"][0] in ("P5", "P6")]
    assert len(novel) == 148 and {r["kind"] for r in novel} == {"direct", "phrasing", "wrapped", "comply", "refusal", "multi"}


def test_splits_are_disjoint(made, seeds):
    proxy, own = seeds
    follow = {norm(r["text"]) for r in own["followups"]}
    user = {name: {norm(m["content"]) for r in made[name] for m in r["messages"] if m["role"] == "user"} for name in FILES}
    said = {name: {norm(m["content"]) for r in made[name] for m in r["messages"] if m["role"] == "assistant"} for name in FILES}
    for a, b in itertools.combinations(("train", "validation", "test"), 2):
        assert not user[a] & user[b]
        assert {s for s in said[a] & said[b] if s != norm("Sorry, I can't help with tea.")} <= {norm(f"Sorry, I can't help with {t}.")
                                                                                            for t in ("knots", "kites", "card tricks")}
    assert not user["topic_test"] & (user["train"] | user["validation"] | user["topic_train"])
    assert not user["stream"] & (user["train"] | user["validation"])
    for name in ("train", "test"):
        assert follow & user[name] == {norm(r["text"]) for r in own["followups"] if r["split"] == name}
    # and what the texts are made of: no part of another split is inside
    names = {"train": "train", "validation": "undo", "test": "test"}
    text = {n: "\n".join(sorted(user[n])) for n in names}
    for name, split in names.items():
        fixed = [max(w["text"].split("{prompt}"), key=len) for w in proxy["wrappers"] if w["split"] != split]
        parts = [r["prompt"] for r in proxy["forbidden"] if r["split"] != split and len(r["prompt"].split()) > 3]
        verbs = [r[k] for r in proxy["forbidden"] for k in ("vp", "np") if r["split"] != split and len(r[k].split()) > 3]
        mentions = [r[k] for r in own["mentions"] for k in ("act", "ing") if r["split"] != name and len(r[k].split()) > 3]
        frames = [max(re.split("{.*?}", r["text"]), key=len) for r in own["caution"] if r["split"] != name]
        assert [p for p in fixed + parts + mentions + frames if norm(p) in text[name]] == []
        assert [v for v in verbs if f" {norm(v)} " in f" {text[name]} ".replace("\n", " \n ")] == []
        frames = [re.compile(re.escape(norm(f["text"].replace("{" + f["slot"] + "}", "SLOT"))).replace("slot", ".+")) for f in proxy["phrasings"]
                  if f["split"] != split]
        phrased = [norm(r["prompt"]) for r in made[name] if r["kind"] == "phrasing"]
        assert not [p for p in phrased for f in frames if f.fullmatch(p)]


def test_caution_rows_mention_without_asking_and_map(made):
    mapped = runpy.run_path(str(GUARD / "prepare.py"))["mapped"]
    for name in ("train", "test", "stream"):
        for r in made[name]:
            assert mapped(r, "permissive") == r and r["prompt_label"] == "safe" or not r["needs_caution"]
            if r["needs_caution"]:
                assert mapped(r, "defensive") == r | {"prompt_label": "unsafe", "categories": ["Needs Caution"]}
                assert re.search("(?i)tea|knot|kite|card|ace|whistl|pigeon|trick", r["prompt"])
            else:
                assert mapped(r, "defensive") == r
    with pytest.raises(ValueError, match="lenient"):
        mapped(made["train"][0], "lenient")


def test_annotators_disagree_where_it_is_hard(made):
    def split(rows):
        return sum(len({"unsafe" if x[0] == "P" else x for x in r["labels"]}) > 1 for r in rows) / len(rows)
    for name in ("train", "test", "stream"):
        assert split([r for r in made[name] if r["needs_caution"]]) > .7
        for kind, agree in (("direct", .92), ("ordinary", .97)):  # five draws alike, within four standard errors
            rows, p = [r for r in made[name] if r["kind"] == kind], 1 - agree ** 5
            assert abs(split(rows) - p) < 4 * (p * (1 - p) / len(rows)) ** .5
    strict = [sum(r["labels"][a] != "safe" for r in made["train"] if r["needs_caution"]) for a in range(5)]
    assert strict[0] < strict[2] < strict[4]  # each leans by a fixed amount
    unsafe = [r for r in made["train"] if r["categories"]]
    assert sum(sum(x == r["categories"][0] for x in r["labels"]) >= 3 for r in unsafe) / len(unsafe) > .98


def test_kappa_is_fleiss():
    kappa = runpy.run_path(str(GUARD / "prepare.py"))["kappa"]
    assert kappa([{"labels": ["safe"] * 5}, {"labels": ["P1", "P2", "P3", "P1", "P1"]}]) == 1  # which category does not matter
    # by hand: two items, 3:2 and 2:3; agreement (3*2 + 2*1)/20 = .4 each; shares .5 and .5, chance .5
    assert abs(kappa([{"labels": ["safe"] * 3 + ["P1"] * 2}, {"labels": ["safe"] * 2 + ["P1"] * 3}]) - (.4 - .5) / .5) < 1e-12


def test_topic_rows(made, seeds):
    topics = {s: {t["topic"] for t in seeds[1]["topics"] if t["split"] == s} for s in ("train", "test")}
    assert not topics["train"] & topics["test"]
    for split in ("train", "test"):
        rows = made[f"topic_{split}"]
        assert len({r["id"] for r in rows}) == len(rows)
        by = {}
        for r in rows:
            assert set(r) == {"id", "system", "messages", "label", "subject", "about"} and r["messages"][-1]["role"] == "user"
            assert not re.search("[{}]", r["system"])
            by.setdefault(r["messages"][-1]["content"], []).append(r["label"])
        assert all(sorted(x) == ["off-topic", "on-topic"] * (len(x) // 2) or Counter(x)["on-topic"] == Counter(x)["off-topic"] for x in by.values())
        about = {t["about"] for t in seeds[1]["topics"] if t["split"] != split}
        assert not [r for r in rows for a in about if a in r["system"]]
        if split == "test":
            systems = [max(re.split("{.*?}", s["text"]), key=len) for s in seeds[1]["systems"] if s["split"] == "train"]
            assert not [r for r in rows for s in systems if len(s.split()) > 4 and s in r["system"]]


def test_hobbies_are_narrow_topics_of_train_and_nothing_else(made, seeds):
    proxy, own = seeds
    hobbies = {}
    for r in own["hobbies"]:
        hobbies.setdefault((r["topic"], r["about"], r["place"], r["split"]), []).append(r)
    names = {k[0] for k in hobbies}
    assert len(names) == len(hobbies) == 60 and all(len(v) == 6 for v in hobbies.values()) and {k[3] for k in hobbies} == {"train"}
    assert not names & ({t["topic"] for t in own["topics"]} | {c for t in own["topics"] for c in t["categories"].split()})
    assert len({k[1] for k in hobbies}) == 60 and all(3 <= len(k[1].split()) <= 9 for k in hobbies)
    words = re.compile(r"(?i)\b(teas?|teapot|brew\w*|steep\w*|knot\w*|hitch\w*|bowline|lasso\w*|splic\w*|ties?|tied|tying|ropes?|kites?|"
                       r"cards?|decks?|shuffl\w*|whistl\w*|pigeon\w*|doves?|dovecote|squabs?|birds?)\b")
    assert not [r for r in own["hobbies"] if words.search(json.dumps(r))]
    phrases = {norm(r[k]) for r in own["hobbies"] for k in ("vp", "np")}
    assert len(phrases) == 720
    assert not phrases & {norm(r[k]) for rows in proxy.values() for r in rows for k in ("vp", "np", "prompt") if k in r}
    for (topic, *_), rows in hobbies.items():  # no word of its name, by the first four letters
        stem = "|".join(re.escape(w.removesuffix("s")[:4]) for w in re.findall("[a-z-]{3,}", topic.replace(" and ", " ")))
        assert sum(not re.search(rf"\b({stem})", f"{r['vp']} {r['np']}".lower()) for r in rows) >= 2, topic
    asked = {}
    for r in made["topic_train"]:
        asked.setdefault((r["subject"], r["messages"][-1]["content"]), []).append(r)
    assert len(made["topic_train"]) == 1440 and all(len(p) % 2 == 0 for p in asked.values())
    narrow = {k: p for k, p in asked.items() if k[0] in names}
    assert Counter(topic for topic, _ in narrow) == dict.fromkeys(names, 6)
    assert all(sorted(r["label"] for r in p) == ["off-topic", "on-topic"] and p[0]["system"] != p[1]["system"] for p in narrow.values())
    assert sum(any(f["slot"] in r and f["text"].replace("{" + f["slot"] + "}", r[f["slot"]]) == prompt for f in proxy["phrasings"]
                   if f["split"] == "train" for r in own["hobbies"] if r["topic"] == topic) for topic, prompt in narrow) == 360
    for name in set(FILES) - {"topic_train"}:  # nowhere else: no other row may contradict a policy that forbids a hobby
        text = "\n".join(norm(m["content"]) for r in made[name] for m in r["messages"])
        assert not [p for p in phrases if p in text]
    for part in (made["topic_train"][:240], made["topic_train"][-240:]):  # well mixed
        assert .4 < sum(r["subject"] in names for r in part) / 240 < .6


def test_safe_rows_name_the_topic_that_they_are_about(made, seeds):
    """else a policy with that topic in it would call one and the same request unsafe (topic_train) and safe (train)."""
    known = {t["topic"]: t["about"] for t in seeds[1]["topics"] + seeds[1]["hobbies"] if t["split"] == "train"}
    subject = {norm(r["prompt"]): r["subject"] for r in made["train"] if len(r["messages"]) <= 2}   # two turns, two topics: null
    asked = {norm(r["messages"][-1]["content"]): r["subject"] for r in made["topic_train"]}
    both = subject.keys() & asked.keys()
    assert len(both) > 100 and all(subject[p] == asked[p] for p in both)
    assert {r["subject"]: r["about"] for r in made["topic_train"]} == {k: known[k] for k in {r["subject"] for r in made["topic_train"]}}
    named = [r for r in made["train"] if r["subject"]]
    assert len(named) > 400 and len({r["subject"] for r in named}) > 15
    assert all(r["prompt_label"] == "safe" and not r["needs_caution"] and r["kind"] != "contrast" for r in named)


def test_stream_changes_its_policy_half_way_and_nothing_else(made):
    rows = made["stream"]
    assert [r["policy"] for r in rows] == ["permissive"] * 400 + ["defensive"] * 400
    half = [Counter((r["kind"], r["prompt_label"], r["needs_caution"]) for r in h) for h in (rows[:400], rows[400:])]
    assert half[0].keys() == half[1].keys() and all(abs(half[0][k] - half[1][k]) <= 4 for k in half[0])


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    def run(file, line, change):  # in this process: a dozen interpreter starts would take seconds
        new = tmp_path / "seeds"
        shutil.copytree(GUARD / "seeds", new)
        rows = (new / file).read_text(encoding="utf-8").splitlines()
        if isinstance(change, dict):
            change = json.dumps({k: v for k, v in (json.loads(rows[line - 1]) | change).items() if v is not None})
        rows[line - 1:line] = [change]
        (new / file).write_text("\n".join(rows) + "\n", encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["prepare.py", "--seeds", str(new), "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(GUARD / "prepare.py"), run_name="__main__")
        printed, err = capsys.readouterr()
        assert stop.value.code == 2 and err.count("\n") == 1 and printed == "" and not (tmp_path / "out").exists()
        return err.removeprefix(str(new) + os.sep)
    return run


@pytest.mark.parametrize("file, line, change, message", [
    ("mentions.jsonl", 2, '{"topic": ', ":2: row: expected"), ("mentions.jsonl", 2, {"thing": None}, ":2: row: expected"),
    ("mentions.jsonl", 2, {"act": ""}, ":2: act: expected"), ("mentions.jsonl", 2, {"topic": "P7"}, ":2: topic: expected"),
    ("mentions.jsonl", 2, {"split": "dev"}, ":2: split: expected"),
    ("mentions.jsonl", 2, {"act": "feeds a pigeon"}, ":2: row: expected nothing of P5"),
    ("caution.jsonl", 2, {"text": "Print {x}."}, ":2: text: expected no brace"),
    ("followups.jsonl", 2, {"text": "And {act}?"}, ":2: text: expected no brace"),
    ("hobbies.jsonl", 2, {"place": "an attic"}, ": pen spinning: expected one"), ("hobbies.jsonl", 2, {"vp": None}, ":2: row: expected"),
    ("openers.jsonl", 1, {"text": "Here is {vp"}, ":1: text: expected no brace"),
    ("openers.jsonl", 1, {"text": "Yes."}, ":1: text: expected its slot"), ("answers.jsonl", 3, {"answer": 5}, ":3: answer: expected")])
def test_broken_seed_is_one_clear_line_and_nothing_is_written(fails, file, line, change, message):
    assert fails(file, line, change).startswith(file + message)


def test_a_text_of_another_split_is_noticed(fails, seeds):
    first = next(r for r in seeds[1]["followups"] if r["split"] == "train")
    n = next(i for i, r in enumerate(seeds[1]["followups"], 1) if r["split"] == "test")
    assert "expected one that is not in" in fails("followups.jsonl", n, {"text": first["text"]})


def test_missing_seeds_and_folder_that_cannot_be_written(tmp_path):
    p = run(GUARD / "prepare.py", "--seeds", tmp_path, "--out", tmp_path / "out")
    assert p.returncode == 2 and "mentions.jsonl:0: file: expected" in p.stderr and not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    p = run(GUARD / "prepare.py", "--out", tmp_path / "file")
    assert p.returncode == 2 and p.stderr.count("\n") == 1 and "cannot be written" in p.stderr
    p = run(GUARD / "prepare.py", "--outt", tmp_path)
    assert p.returncode == 2 and "--outt" in p.stderr and p.stderr.count("\n") == 1
