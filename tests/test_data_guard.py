"""The prepare.py of the guard sets on small files of each set's own layout; the rows of data/proxyguard.

    python -m pytest -q tests/test_data_guard.py        # about 4 s on one core, no network, no torch

Fixtures are on the proxy topics. No test prints a prompt.
"""
import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from test_fetch import ROOT, TEXTS, as_csv, jsonl, lines, prepare, put, sha, shared

CELLS = [f"labels_{i}" for i in range(5)]


def votes(text, kind, *cells):
    return {"text": text, "text_type": kind} | dict(zip(CELLS, [*cells, *[None] * (5 - len(cells))]))


def item(key, prompt, response, labels, categories="", by=None):
    return {"id": key, "prompt": prompt, "response": response, "prompt_label": labels[0],
            "response_label": labels[1], "violated_categories": categories, "response_label_source": by}


def dialogue(*distractors, turns=("Hello!", "Hi. What shall it be?", TEXTS[4], "In hedges.")):
    return {"domain": "birds", "scenario": "nests", "system_instruction": "Only robins.",
            "conversation": [{"role": r, "content": t} for r, t in zip(["user", "assistant"] * 3, turns)],
            "distractors": [{"bot turn": b, "distractor": d} for b, d in distractors]}


A1_TRAIN = [votes(TEXTS[0], "user_message", "Violence", "Threat, Violence", "Safe"),
            votes(TEXTS[1], "multi_turn", "Safe", "needs caution", "Safe", "None"),
            votes(TEXTS[2], "user_message"), votes(TEXTS[3], "llm_response", *["Needs Caution"] * 2, "Safe")]
A1_TEST = [votes(f" {TEXTS[0]}", "user_message", "hate/identity HATE, Other", "Economic Harm")]
S, U, SS = ("safe", None), ("unsafe", None), ("safe", "safe")
US, UU = ("unsafe", "safe"), ("unsafe", "unsafe")
REFUSAL = item("a", TEXTS[0], "I can't go into tea.", US, "Violence", "refusal_data_augmentation")
ZERO = dict.fromkeys(["S", "H", "V", "HR", "SH", "S3", "H2", "V2"], 0)
ALL8 = ["sexual", "hate", "violence", "harassment", "self-harm", "sexual/minors", "hate/threatening",
        "violence/graphic"]
TOXIC = ["user_input", "model_output", "human_annotation", "toxicity", "jailbreaking"]
SOURCE = {
    "aegis1": {"a_train.jsonl": lines(A1_TRAIN), "a_test.jsonl": lines(A1_TEST)},
    "aegis2": {"train.json": json.dumps([
        item("a", TEXTS[0], "Warm the pot.", UU, "Violence, Threat", "llm_jury"),
        item("b", "REDACTED", None, U, "Threat"), item("c", TEXTS[1], None, S, "Needs Caution, Profanity"),
        item("d", TEXTS[2], "", SS, "Profanity, Needs Caution", "human"), item("e", " ", None, S)]),
        "refusals_train.json": json.dumps([REFUSAL, REFUSAL]),
        "test.json": json.dumps([item(8, TEXTS[3], None, U, "illegal activity")])},
    "canttalk": {"canttalkaboutthis_topic_control_mixtral.jsonl": lines([
        dialogue(("Hi. What shall it be? ", TEXTS[0]), ("In hedges.", TEXTS[1]), ("In hedges.", " ")),
        dialogue(("Never said.", TEXTS[2]), turns=("Hello!", "", " "))])},
    "openaimod": {"samples-1680.jsonl": lines([
        {"prompt": TEXTS[0]} | ZERO, {"prompt": TEXTS[1], "S": 0, "S3": 0},
        {"prompt": TEXTS[2], "V": 1, "V2": 0, "H": None}, {"prompt": TEXTS[3]} | ZERO | {"H": 1, "H2": 1}])},
    "toxicchat": {"toxic-chat_annotation_test.csv": as_csv(
        TOXIC, [TEXTS[2], "Warm,\nthe pot.", True, 1, 1], [TEXTS[3], "", False, 0, 0],
        [TEXTS[4], "", True, 0, 0], [" ", "", True, 0, 0])}}


def row(key, prompt, label, kind, response=None, judged=None, categories=(), caution=False, **more):
    said = [] if response is None else [{"role": "assistant", "content": response}]
    return {"id": key, "messages": [{"role": "user", "content": prompt}, *said], "prompt": prompt,
            "response": response, "prompt_label": label, "response_label": judged,
            "categories": list(categories), "needs_caution": caution, "kind": kind, "labels": []} | more


def topic(key, label, *turns):
    roles = zip(["user", "assistant"] * 3, ("Hello!", "Hi. What shall it be?", *turns))
    return {"id": key, "system": "Only robins.", "messages": [{"role": r, "content": t} for r, t in roles],
            "label": label, "domain": "birds", "scenario": "nests"}


TOXIC_TEST = [row("toxicchat-test-1", TEXTS[2], "unsafe", "human", jailbreaking=1),
              row("toxicchat-test-2", TEXTS[3], "safe", "auto", jailbreaking=0),
              row("toxicchat-test-3", TEXTS[4], "safe", "human", jailbreaking=0)]
EXPECTED = {
    "aegis1": {"train.jsonl": [
        row("aegis1-train-1", TEXTS[0], "unsafe", "user_message", categories=["Violence", "Threat"],
            labels=["Violence", "Threat, Violence", "Safe"], unlisted=[]),
        row("aegis1-train-2", TEXTS[1], "safe", "multi_turn", labels=["Safe", "Needs Caution", "Safe"],
            unlisted=[]),
        row("aegis1-train-4", TEXTS[3], "safe", "llm_response", caution=True,
            labels=["Needs Caution", "Needs Caution", "Safe"], unlisted=[])],
        "test.jsonl": [
        row("aegis1-test-1", TEXTS[0], "unsafe", "user_message", categories=["Hate /identity hate"],
            labels=["Hate /identity hate, Other", "Economic Harm"], unlisted=["Other", "Economic Harm"])]},
    "aegis2": {"train.jsonl": [
        row("aegis2-train-a", TEXTS[0], "unsafe", "dialogue", "Warm the pot.", "unsafe",
            ["Violence", "Threat"], response_source="llm_jury"),
        row("aegis2-train-c", TEXTS[1], "safe", "prompt", None, None, ["Needs Caution", "Profanity"], True,
            response_source=None),
        row("aegis2-train-d", TEXTS[2], "safe", "prompt", categories=["Profanity", "Needs Caution"],
            response_source=None),
        *[row(f"aegis2-train-a-refusal{again}", TEXTS[0], "unsafe", "refusal", "I can't go into tea.", "safe",
              ["Violence"], response_source="refusal_data_augmentation") for again in ("", "-2")]],
        "test.jsonl": [row("aegis2-test-8", TEXTS[3], "unsafe", "prompt", categories=["Illegal Activity"],
                           response_source=None)]},
    "canttalk": {"train.jsonl": [topic("canttalk-train-1-1-off", "off-topic", TEXTS[0]),
                                 topic("canttalk-train-1-1-on", "on-topic", TEXTS[4]),
                                 topic("canttalk-train-1-2-off", "off-topic", TEXTS[4], "In hedges.",
                                       TEXTS[1])]},
    "openaimod": {"test.jsonl": [
        row("openaimod-1", TEXTS[0], "safe", "known", known=ALL8),
        row("openaimod-2", TEXTS[1], "safe", "partial", known=["sexual", "sexual/minors"]),
        row("openaimod-3", TEXTS[2], "unsafe", "known", categories=["violence"],
            known=["violence", "violence/graphic"]),
        row("openaimod-4", TEXTS[3], "unsafe", "known", categories=["hate", "hate/threatening"],
            known=ALL8)]},
    "toxicchat": {"test.jsonl": TOXIC_TEST, "test_human.jsonl": TOXIC_TEST[::2]}}
DROPPED = {"aegis1": {"train": {"no vote": 1}, "test": {}},
           "aegis2": {"train": {"redacted": 1, "empty": 1}, "test": {}},
           "canttalk": {"train": {"empty": 1, "bot turn not found": 1}}}
PINS = {"aegis1": {"COUNTS": {"train": 4, "test": 1}}, "aegis2": {}, "canttalk": {"COUNTS": 2},
        "openaimod": {"COUNTS": {"safe": 2, "unsafe": 2}},
        "toxicchat": {"COUNTS": {"test": 4}, "HUMAN_TEST": {"unsafe": 1, "safe": 1}}}


@pytest.mark.parametrize("name", SOURCE)
def test_rows_of_a_small_source(name, prepare, tmp_path):
    src, out, pins = put(tmp_path / "src", SOURCE[name]), tmp_path / "out", dict(PINS[name])
    sums = {file: sha(text) for file, text in SOURCE[name].items()}
    if name == "aegis2":
        pins["FILES"] = {file: (len(json.loads(text)), sums[file]) for file, text in SOURCE[name].items()}
    elif name != "canttalk":
        pins["SHA256"] = {split: sums[file] for file in sums for split in ("train", "test") if split in file}
    if name == "openaimod":
        src, pins["SHA256"] = src / "samples-1680.jsonl", sums["samples-1680.jsonl"]
    code, printed, err = prepare(name, "--src", src, "--out", out, **pins)
    assert (code, err) == (0, "")
    assert sorted(f.name for f in out.iterdir()) == sorted([*EXPECTED[name], "meta.json"])
    assert all(jsonl(out / file) == rows for file, rows in EXPECTED[name].items())
    meta = json.loads((out / "meta.json").read_text())
    assert meta.get("dropped") == DROPPED.get(name) and bool(meta["revision"]) == (name != "canttalk")
    assert not any(text in printed for text in [*TEXTS, "bowline", "hedges", "the pot"])
    code, _, err = prepare(name, "--src", src, "--out", out)  # other than published: nothing is written
    assert code == 2 and err.endswith("; --any-version accepts it\n") and err.count("\n") == 1


BAD = [  # set, text in its first file, what stands there instead, a part of the message
    ("aegis1", '"text": ', '"words": ', ":1: text, text_type: expected"),
    ("aegis1", "labels_", "label ", "no vote"),
    ("aegis1", '"labels_0": "Safe"', '"labels_0": 3', ":2: labels_0: expected"),
    ("aegis1", "Threat, Violence", "Juggling", ":1: labels_1: expected a category of Aegis 1.0"),
    ("aegis2", '"response_label": "unsafe"', '"response_label": null', ":1: response_label: expected"),
    ("aegis2", '"llm_jury"', '"me"', ":1: response_label_source: expected"),
    ("aegis2", "Violence, Threat", "Juggling", ":1: violated_categories: expected categories of Aegis 2.0"),
    ("aegis2", '"id": "a"', '"id": "c"', "train.jsonl: different ids: 4, expected 5"),
    ("canttalk", '"bot turn"', '"turn"', ":1: bot turn: expected"),
    ("openaimod", '"S": 0', '"S": 2', ":1: S: expected one of 0, 1"),
    ("openaimod", '"H": 0', '"H": true', ":1: labels: expected"),
    ("openaimod", '"S": 0, "S3": 0', '"T": 0', ":2: labels: expected"),
    ("toxicchat", "True,1", "yes,1", ": human_annotation: expected")]


@pytest.mark.parametrize("name, old, new, message", BAD)
def test_a_bad_row_is_told_by_file_line_and_field(name, old, new, message, prepare, tmp_path):
    src = put(tmp_path / "src", SOURCE[name])
    path = src / next(iter(SOURCE[name]))
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, -1 if old == "labels_" else 1).encode())
    src = path if name == "openaimod" else src
    code, printed, err = prepare(name, "--src", src, "--out", tmp_path / "out", "--any-version")
    assert message in err and code == (0 if "categor" in message or "ids" in message else 2), err
    assert not any(text in printed + err for text in TEXTS)


VOTES = [["Violence", "Safe"], ["Needs Caution", "Safe", "Safe"], ["Needs Caution", "Needs Caution", "Safe"],
         ["Violence", "Needs Caution", "Safe"], ["Safe", "Safe", "Violence, Threat"], ["Needs Caution"],
         ["Safe, Needs Caution", "Safe, Needs Caution", "Safe"], ["Safe", "Safe", "Safe"],
         ["Violence, Needs Caution", "Safe"]]


@pytest.mark.parametrize("flags, labels", [  # of VOTES: u unsafe, s safe, - left out
    ("permissive majority unsafe", "usssssssu"), ("permissive majority drop", "-sssssss-"),
    ("defensive majority unsafe", "usuusuusu"), ("drop majority unsafe", "ussus-ssu"),
    ("drop majority drop", "-ss-s-ss-"), ("permissive any unsafe", "ussuusssu"),
    ("defensive any unsafe", "uuuuuuusu")])
def test_the_label_of_aegis1_is_a_choice(flags, labels, prepare, tmp_path):
    src = put(tmp_path, {"train.jsonl": lines(votes(f"Knot {i}.", "m", *v) for i, v in enumerate(VOTES))})
    mapping, rule, tie = flags.split()
    choice = ["--mapping", mapping, "--rule", rule, "--tie", tie]
    code, printed, _ = prepare("aegis1", "--src", src, "--out", tmp_path / "out", "--any-version", *choice)
    assert code == 0 and f"mapping {mapping}, rule {rule}, tie {tie}" in printed
    found = {r["id"]: r["prompt_label"][0] for r in jsonl(tmp_path / "out" / "train.jsonl")}
    assert "".join(found.get(f"aegis1-train-{i}", "-") for i in range(1, 10)) == labels


def test_the_taxonomy_of_aegis1_is_complete():
    code = (ROOT / "data" / "aegis1" / "prepare.py").read_text()
    names = set(re.findall(r'"([^"\n]+)"', code[code.index("SAFE, CAUTION"):code.index("KNOWN = ")]))
    assert len(names) == 1 + 13 + 9 + 1 and {"Safe", "Needs Caution", "Other", "Hate /identity hate"} <= names


@pytest.mark.parametrize("mapping, rule, unsafe", [("permissive", "any", ""), ("defensive", "first", "c"),
                                                   ("defensive", "any", "cd")])
def test_needs_caution_of_aegis2(mapping, rule, unsafe, prepare, tmp_path):
    src = put(tmp_path, SOURCE["aegis2"])
    choice = ["--mapping", mapping, "--rule", rule, "--any-version"]
    assert prepare("aegis2", "--src", src, "--out", tmp_path / "o", *choice)[0] == 0
    rows = [r for r in jsonl(tmp_path / "o" / "train.jsonl") if r["kind"] == "prompt"]
    assert "".join(r["id"][-1] for r in rows if r["prompt_label"] == "unsafe") == unsafe


def test_real_openaimod_part(prepare, tmp_path):
    src = shared("openai_moderation/samples_minus_S3_even.jsonl")
    assert prepare("openaimod", "--src", src, "--out", tmp_path)[0] == 2  # a part is not the published file
    code, printed, _ = prepare("openaimod", "--src", src, "--out", tmp_path, "--any-version")
    rows = jsonl(tmp_path / "test.jsonl")
    assert code == 0 and Counter(r["prompt_label"] for r in rows) == {"unsafe": 232, "safe": 566}
    for name, positive, known in [("sexual", 79, 459), ("hate", 80, 365), ("violence", 52, 697)]:
        assert sum(name in r["categories"] for r in rows) == positive
        assert sum(name in r["known"] for r in rows) == known


# ---- the proxy guard set: made here, so its properties are tested instead of its checksums

FILES = ["train", "validation", "test", "topic_train", "topic_test", "stream"]


def norm(text):
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out, script = tmp_path_factory.mktemp("guard"), ROOT / "data" / "proxyguard" / "prepare.py"
    run = subprocess.run([sys.executable, script, "--out", out], capture_output=True, text=True, check=True)
    code = script.read_text(encoding="utf-8")  # the pasted output is what it prints, on every machine
    assert code.split("\n# output:\n")[1] == "".join(f"# {line}\n" for line in run.stdout.splitlines())
    return {name: jsonl(out / f"{name}.jsonl") for name in FILES}


def test_guard_rows_are_consistent(made):
    for name in ("train", "validation", "test", "stream"):
        rows = made[name]
        assert len({r["id"] for r in rows}) == len({json.dumps(r["messages"]) for r in rows}) == len(rows)
        for r in rows:
            roles = [m["role"] for m in r["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
            assert r["prompt"] == [m["content"] for m in r["messages"] if m["role"] == "user"][-1]
            assert r["response"] == (r["messages"][-1]["content"] if roles[-1] == "assistant" else None)
            assert (r["response"] is None) == (r["response_label"] is None) and len(r["labels"]) == 5
            assert r["prompt_label"] == ("unsafe" if r["categories"] else "safe")
            assert r["needs_caution"] == (r["kind"] == "caution")
            assert (len(roles) > 2) == (r["kind"] == "multi")
            want = {"comply": "unsafe", "refusal": "safe", "multi": r["response"] and r["prompt_label"]}
            assert r["response_label"] == want.get(r["kind"], r["response_label"])
            assert not re.search("[{}]", "".join(m["content"] for m in r["messages"]))  # every slot is filled


def test_guard_form_does_not_decide_and_a_prefix_is_fair(made):
    for name in ("train", "validation", "test"):
        kinds = Counter((r["kind"], r["prompt_label"]) for r in made[name])
        for kind in ("phrasing", "wrapped", "multi"):
            assert .6 < kinds[kind, "unsafe"] / kinds[kind, "safe"] < 1.7
        topics = Counter(r["categories"][0] for r in made[name] if r["categories"])
        assert len(topics) == (6 if name == "test" else 4)
        assert max(topics.values()) - min(topics.values()) <= .05 * sum(topics.values())
    share = [sum(r["prompt_label"] == "unsafe" for r in made["train"][:n]) / n for n in (100, 400, 3000)]
    assert max(share) - min(share) < .03
    half = [Counter((r["kind"], r["prompt_label"]) for r in made["stream"][k:k + 400]) for k in (0, 400)]
    assert [r["policy"] for r in made["stream"]] == ["permissive"] * 400 + ["defensive"] * 400
    assert all(abs(half[0][k] - half[1][k]) <= 4 for k in half[0] | half[1])


def test_guard_splits_are_disjoint_and_novel_topics_are_in_test_only(made):
    user = {name: {norm(m["content"]) for r in made[name] for m in r["messages"] if m["role"] == "user"}
            for name in FILES}
    for a, b in itertools.combinations(("train", "validation", "test"), 2):
        assert not user[a] & user[b]
    assert not user["topic_test"] & (user["train"] | user["validation"] | user["topic_train"])
    assert not user["stream"] & (user["train"] | user["validation"])
    for name in set(FILES) - {"test"}:
        assert not re.search("(?i)whistl|pigeon", json.dumps(made[name]))
    assert {"P5", "P6"} <= {c for r in made["test"] for c in r["categories"]}
    seeds = jsonl(ROOT / "data" / "proxy" / "seeds" / "forbidden.jsonl")  # nor is a text inside another one
    for name, split in {"train": "train", "validation": "undo", "test": "test"}.items():
        text = "\n".join(sorted(user[name]))
        others = [norm(r["prompt"]) for r in seeds if r["split"] != split and len(r["prompt"].split()) > 3]
        assert not [prompt for prompt in others if prompt in text]


def test_only_the_system_prompt_tells_whether_a_turn_is_on_topic(made):
    for name in ("topic_train", "topic_test"):
        asked = {}
        for r in made[name]:
            asked.setdefault(r["messages"][-1]["content"], []).append(r)
        for rows in asked.values():
            labels = Counter(r["label"] for r in rows)
            assert labels["on-topic"] == labels["off-topic"] and len({r["system"] for r in rows}) > 1
    # a safe row names the topic that it is about: else a policy with it would have two verdicts on one text
    subject = {norm(r["prompt"]): r["subject"] for r in made["train"] if len(r["messages"]) <= 2}
    topics = {norm(r["messages"][-1]["content"]): r["subject"] for r in made["topic_train"]}
    both = subject.keys() & topics.keys()
    assert len(both) > 100 and all(subject[prompt] == topics[prompt] for prompt in both)
