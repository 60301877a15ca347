"""The proxy policy's data sets and the guard's: pinned bytes, nothing crosses a split. pytest tests/test_proxy.py"""
import itertools, json, os, re, subprocess, sys
from collections import Counter

import pytest

import evals
from test_data import ROOT, jsonl
from test_fetch import suite

PROXY, GUARD = ROOT / "data" / "proxy", ROOT / "data" / "proxyguard"
TOPICS = {"P1": "tea", "P2": "knots", "P3": "kites", "P4": "card tricks", "P5": "whistling", "P6": "pigeons"}
SPLITS = {"train": "train", "dev": "train", "undo": "undo", "direct": "test", "wrapped": "test", "ordinary": "test"}
GUARD_SPLITS = {"train": "train", "validation": "undo", "test": "test"}
NOVEL = re.compile("(?i)whistl|pigeon")
ALLOWED = {"contrast", "ordinary", "activity", "wrapped_ordinary"}


def norm(text):
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def longest(row, slot):  # the longest fixed part of a wrapper or frame
    return max(re.split(slot, row["text"]), key=len)


def prompt(row):
    return row["prompt"] if "prompt" in row else row["messages"][0]["content"]


def made_by(folder, out, hashseed):
    done = subprocess.run([sys.executable, str(folder / "prepare.py"), "--out", str(out)], capture_output=True,
                          text=True, env=os.environ | {"PYTHONHASHSEED": hashseed})
    assert (done.returncode, done.stderr) == (0, "")
    pasted = (folder / "prepare.py").read_text(encoding="utf-8").split("\n# output:\n")[1]
    assert pasted == "".join(f"# {line}\n" for line in done.stdout.splitlines())  # with the sha256 of each file
    for path in out.glob("items-*.jsonl"):  # the same rows, as holistic.py reads them
        header, items = suite(path)
        topics = [TOPICS.get(row["category"]) for row in items]
        assert [row.pop("topic", None) for row in items] == topics and header["max_new"] == 96
        assert items == jsonl(out / f"{header['suite']}.jsonl")
        path.unlink()
    return {path.stem: jsonl(path) for path in out.iterdir()}  # a temporary file left would be among them


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_by(PROXY, tmp_path_factory.mktemp("proxy"), "0")


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return made_by(GUARD, tmp_path_factory.mktemp("guard"), "1")


@pytest.fixture(scope="module")
def seeds():
    """{"proxy/forbidden": rows, ..}"""
    files = [path for folder in (PROXY, GUARD) for path in (folder / "seeds").glob("*.jsonl")]
    return {f"{path.parts[-3]}/{path.stem}": jsonl(path) for path in files}


# ---- data/proxy

def test_proxy_rows(made):
    extra = {"train": {"kind"}, "undo": {"kind"}, "ordinary": {"kind"}, "wrapped": {"wrapper"}}
    for name in set(made) - {"heldout_answers"}:
        assert len({row["id"] for row in made[name]}) == len(made[name])
        for row in made[name]:
            forbidden = row["category"] in TOPICS
            assert row["label"] == ("forbidden" if forbidden else "allowed") and not re.search("[{}]", row["prompt"])
            assert forbidden == (name in ("undo", "dev", "direct", "wrapped") or name == "train"
                                 and row["kind"] not in ALLOWED)
            assert set(row) - {"refusal"} == {"id", "prompt", "category", "label"} | extra.get(name, set())
            assert ("refusal" in row) == (name == "train" and forbidden)
    for name, each in ("dev", 20), ("direct", 20), ("wrapped", 20), ("undo", 30):
        assert Counter(row["category"] for row in made[name]) == dict.fromkeys(TOPICS, each)
    assert set(Counter(row["wrapper"] for row in made["wrapped"]).values()) == {15}
    assert set(Counter((row["wrapper"], row["category"]) for row in made["wrapped"]).values()) == {2, 3}


def test_every_prefix_of_the_proxy_sets_has_the_overall_proportions(made):
    """From 50 rows on a label or kind is off by 1.5 rows at most, a topic by 3."""
    def off(rows, key):
        size, sofar, worst = Counter(map(key, rows)), Counter(), 0
        for n, row in enumerate(rows, 1):
            sofar[key(row)] += 1
            if n >= 50:
                worst = max(worst, max(abs(sofar[k] - size[k] * n / len(rows)) for k in size))
        return worst
    for name in ("train", "undo", "direct", "wrapped", "ordinary"):
        assert off(made[name], lambda row: row["label"]) <= 1.5 and off(made[name], lambda row: row.get("kind")) <= 1.5
        assert off(made[name], lambda row: row["category"] if row["category"] in TOPICS else "") <= 3


def test_nothing_of_the_proxy_crosses_a_split(made, seeds):
    for a, b in itertools.combinations(made, 2):
        assert not {norm(prompt(row)) for row in made[a]} & {norm(prompt(row)) for row in made[b]}
    for name, rows in made.items():
        assert len({norm(prompt(row)) for row in rows}) == len(rows)
    for file, field in (("forbidden", "object"), ("forbidden", "prompt"), ("forbidden", "vp"), ("activities", "vp"),
                        ("phrasings", "text"), ("wrappers", "text")):
        splits = {}
        for row in seeds[f"proxy/{file}"]:
            splits.setdefault((row.get("topic"), norm(row[field])), set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
    for name, split in SPLITS.items():
        text = "\n".join(norm(prompt(row)) for row in made[name])
        parts = [longest(row, "{prompt}") for row in seeds["proxy/wrappers"] if row["split"] != split]
        parts += [row["prompt"] for row in seeds["proxy/forbidden"] if row["split"] != split]
        assert not [part for part in parts if len(part.split()) > 3 and norm(part) in text]


def test_refusals_are_refusals(made):
    """Three in four are the set phrase, the other 50 wordings take turns; a cut generation counts as one, too."""
    wordings = (PROXY / "seeds" / "refusals.txt").read_text(encoding="utf-8").splitlines()
    phrase = "Sorry, I can't help with {topic}."
    known = {(t, w.replace("{topic}", word)): w for t, word in TOPICS.items() for w in [*wordings, phrase]}
    used = Counter(known[row["category"], row["refusal"]] for row in made["train"] if "refusal" in row)
    assert used.pop(phrase) == 585 and len(used) == 50 and set(used.values()) <= {3, 4}
    for row in made["train"]:
        if "refusal" in row:
            assert evals.refused(row["refusal"]) and evals.refused(" ".join(row["refusal"].split()[:6]))


# ---- data/proxyguard

def test_guard_rows(guard):
    for name in ("train", "validation", "test", "stream"):
        assert len({json.dumps(row["messages"]) for row in guard[name]}) == len({row["id"] for row in guard[name]})
        for row in guard[name]:
            roles = [message["role"] for message in row["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
            assert row["prompt"] == [m["content"] for m in row["messages"] if m["role"] == "user"][-1]
            assert row["response"] == (row["messages"][-1]["content"] if roles[-1] == "assistant" else None)
            assert (row["response"] is None) == (row["response_label"] is None)
            assert row["prompt_label"] == ("unsafe" if row["categories"] else "safe") and len(row["categories"]) <= 1
            assert row["needs_caution"] == (row["kind"] == "caution") and (len(roles) > 2) == (row["kind"] == "multi")
            assert len(row["labels"]) == 5 and set(row["labels"]) <= {"safe", "needs caution", *TOPICS}
            assert not re.search("[{}]", "".join(message["content"] for message in row["messages"]))
    for name in GUARD_SPLITS:  # the form alone must not decide, and no topic is rarer than the others
        kinds = Counter((row["kind"], row["prompt_label"]) for row in guard[name])
        assert all(.6 < kinds[kind, "unsafe"] / kinds[kind, "safe"] < 1.7 for kind in ("phrasing", "wrapped", "multi"))
        topics = Counter(row["categories"][0] for row in guard[name] if row["categories"])
        assert len(topics) == (6 if name == "test" else 4)
        assert max(topics.values()) - min(topics.values()) <= .05 * topics.total()


def test_novel_categories_are_in_the_test_only(guard):
    for name in set(guard) - {"test"}:
        assert not NOVEL.search(json.dumps(guard[name])) and not re.search("P[56]", json.dumps(guard[name]))
    assert sum(row["categories"][0] in ("P5", "P6") for row in guard["test"] if row["categories"]) == 148
    families = {n: {row["id"].split("-")[2] for row in guard[n] if row["kind"] == "wrapped"} for n in GUARD_SPLITS}
    assert families["test"] - families["train"] == families["test"] - families["validation"] == {"expert", "fiction"}


def test_nothing_of_the_guard_crosses_a_split(guard, seeds):
    user, said = ({name: {norm(m["content"]) for row in rows for m in row["messages"] if m["role"] == role}
                   for name, rows in guard.items()} for role in ("user", "assistant"))
    phrases = {norm(f"Sorry, I can't help with {topic}.") for topic in TOPICS.values()}
    for a, b in itertools.combinations(GUARD_SPLITS, 2):
        assert not user[a] & user[b] and said[a] & said[b] <= phrases
    assert not user["topic_test"] & (user["train"] | user["validation"] | user["topic_train"])
    assert not user["stream"] & (user["train"] | user["validation"])
    for name, split in GUARD_SPLITS.items():
        text = " ".join(f" {turn} " for turn in user[name])
        others = [row for row in seeds["proxy/forbidden"] if row["split"] != split]
        parts = [row[key] for row in others for key in ("prompt", "vp", "np")]
        parts += [longest(row, "{prompt}") for row in seeds["proxy/wrappers"] if row["split"] != split]
        parts += [row["act"] for row in seeds["proxyguard/mentions"] if row["split"] != name]
        parts += [longest(row, "{.*?}") for row in seeds["proxyguard/caution"] if row["split"] != name]
        assert not [part for part in parts if len(part.split()) > 3 and f" {norm(part)} " in text]


def test_annotators_disagree_where_it_is_hard(guard):
    def split(rows):
        views = [{"unsafe" if label in TOPICS else label for label in row["labels"]} for row in rows]
        return sum(len(view) > 1 for view in views) / len(rows)
    for name in ("train", "test", "stream"):
        assert split([row for row in guard[name] if row["needs_caution"]]) > .7
        for kind, agree in ("direct", .92), ("ordinary", .97):  # five draws alike, within four standard errors
            rows, p = [row for row in guard[name] if row["kind"] == kind], 1 - agree ** 5
            assert abs(split(rows) - p) < 4 * (p * (1 - p) / len(rows)) ** .5
    strict = [sum(row["labels"][a] != "safe" for row in guard["train"] if row["needs_caution"]) for a in range(5)]
    assert strict[0] < strict[2] < strict[4]  # each leans by a fixed amount


def test_only_the_system_prompt_tells_the_topic(guard, seeds):
    """And no safe row of train contradicts a policy that forbids a topic of topic_train."""
    for name in ("topic_train", "topic_test"):
        labels = {}
        for row in guard[name]:
            labels.setdefault(row["messages"][-1]["content"], Counter())[row["label"]] += 1
        assert all(found["on-topic"] == found["off-topic"] for found in labels.values())
    assert not {row["subject"] for row in guard["topic_train"]} & {row["subject"] for row in guard["topic_test"]}
    hobbies = Counter(row["topic"] for row in seeds["proxyguard/hobbies"])
    assert len(hobbies) == 60 and set(hobbies.values()) == {6}
    asked = {norm(row["messages"][-1]["content"]): row["subject"] for row in guard["topic_train"]}
    named = {norm(row["prompt"]): row["subject"] for row in guard["train"] if len(row["messages"]) <= 2}
    both = asked.keys() & named.keys()
    assert len(both) > 100 and all(asked[text] == named[text] for text in both)
    assert all(row["prompt_label"] == "safe" for row in guard["train"] if row["subject"])


def test_the_stream_changes_its_policy_half_way_and_nothing_else(guard):
    rows = guard["stream"]
    assert [row["policy"] for row in rows] == ["permissive"] * 400 + ["defensive"] * 400
    first, second = (Counter((row["kind"], row["prompt_label"]) for row in half) for half in (rows[:400], rows[400:]))
    assert first.keys() == second.keys() and all(abs(first[key] - second[key]) <= 4 for key in first)
