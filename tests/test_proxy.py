"""The proxy policy's data sets and their maker. Run: python -m pytest tests/test_proxy.py (about two seconds)"""
import collections, itertools, json, os, pathlib, re, runpy, shutil, subprocess, sys
import pytest

PROXY = pathlib.Path(__file__).resolve().parent.parent / "data" / "proxy"
sys.path.insert(0, str(PROXY.parent.parent))
import evals

COUNTS = { # the promised rows by kind
    "train": {"direct": 456, "paraphrased": 200, "wrapped": 124, "contrast": 339, "ordinary": 1059, "activity": 640,
              "wrapped_ordinary": 160},
    "undo": {"direct": 60, "paraphrased": 72, "wrapped": 48},
    "dev": {None: 120}, "direct": {None: 120}, "wrapped": {None: 120}, "contrast": {None: 70}, "heldout_answers": {None: 64},
    "ordinary": {"ordinary": 80, "activity": 25, "wrapped_ordinary": 15}}
ALLOWED = {"contrast", "ordinary", "activity", "wrapped_ordinary"}
TRAINED, TESTS = ["train", "undo", "dev"], ["direct", "wrapped", "contrast", "ordinary", "heldout_answers"]
WORDS = {"P1": "tea", "P2": "knots", "P3": "kites", "P4": "card tricks", "P5": "whistling", "P6": "pigeons"}

def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

def norm(text):
    return re.sub(r"[\W_]+", " ", text.lower()).strip()

def prompt(row):
    return row["prompt"] if "prompt" in row else row["messages"][0]["content"]

def prepare(out, hashseed="0", seeds=PROXY / "seeds"):
    return subprocess.run([sys.executable, str(PROXY / "prepare.py"), "--seeds", str(seeds), "--out", str(out)],
                          capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": hashseed})

@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("proxy")
    done = prepare(out)
    assert (done.returncode, done.stderr) == (0, "")
    return out

@pytest.fixture(scope="module")
def made(out):
    return {name: read(out / f"{name}.jsonl") for name in COUNTS}

@pytest.fixture(scope="module")
def seeds():
    return {path.stem: read(path) for path in (PROXY / "seeds").glob("*.jsonl")}

def test_two_runs_write_the_same_bytes_and_the_comments_are_the_output(out, tmp_path):
    done = prepare(tmp_path, hashseed="1")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}.jsonl" for name in COUNTS) # and no temporary file
    for path in tmp_path.iterdir(): assert path.read_bytes() == (out / path.name).read_bytes()
    pasted = (PROXY / "prepare.py").read_text(encoding="utf-8").split("\n# output:\n")[1]
    assert pasted == "".join(f"# {line}\n" for line in done.stdout.splitlines())

def test_counts_fields_and_ids(made):
    for name, rows in made.items():
        assert collections.Counter(r.get("kind") for r in rows) == COUNTS[name]
        if name == "heldout_answers": continue
        assert len({r["id"] for r in rows}) == len(rows)
        for r in rows:
            forbidden = name in ("undo", "dev", "direct", "wrapped") or name == "train" and r["kind"] not in ALLOWED
            extra = {"train": {"kind"} | ({"refusal"} if forbidden else set()), "undo": {"kind"}, "ordinary": {"kind"},
                     "wrapped": {"wrapper"}}.get(name, set())
            assert set(r) == {"id", "prompt", "category", "label"} | extra
            assert r["label"] == ("forbidden" if forbidden else "allowed") and (r["category"] in WORDS) == forbidden
    for name in "direct", "wrapped": # the id names the topic
        assert {r["id"] for r in made[name]} == {f"{name}-{t}-{n:02}" for t in WORDS for n in range(20)}
        assert all(r["id"].split("-")[1] == r["category"] for r in made[name])

def test_topics_families_and_wordings_take_equal_parts(made, seeds):
    for name, each in ("dev", 20), ("direct", 20), ("wrapped", 20), ("undo", 30):
        assert collections.Counter(r["category"] for r in made[name]) == dict.fromkeys(WORDS, each)
    assert set(collections.Counter(r["wrapper"] for r in made["wrapped"]).values()) == {15}
    assert set(collections.Counter((r["wrapper"], r["category"]) for r in made["wrapped"]).values()) == {2, 3} # all 48 pairs
    for split, kinds in (("train", ("paraphrased", "activity")), ("undo", ("paraphrased",))): # about equal use in each kind
        for kind in kinds:
            texts = [r["prompt"] for r in made[split] if r["kind"] == kind]
            used = [sum(bool(re.fullmatch(re.escape(f["text"]).replace(r"\{" + f["slot"] + r"\}", ".+"), t)) for t in texts)
                    for f in seeds["phrasings"] if f["split"] == split]
            assert sum(used) >= len(texts) and min(used) >= len(texts) // len(used) # each prompt is one of them, none is rare

def test_every_prefix_has_the_overall_proportions(made):
    """For every n >= 50: how many rows of a group stand in the first n, against n times its share of the file. The tolerance is
    1.5 rows for a label, a kind or a topic within a kind and 3 for a topic: 3 and 6 points at 50 rows, 0.5 and 1 point at 300."""
    def off(rows, key):
        size, sofar, worst = collections.Counter(map(key, rows)), collections.Counter(), 0
        for n, r in enumerate(rows, 1):
            sofar[key(r)] += 1
            if n >= 50: worst = max(worst, max(abs(sofar[k] - size[k] * n / len(rows)) for k in size))
        return worst
    for name in ("train", "undo", "direct", "wrapped", "ordinary"):
        assert off(made[name], lambda r: r["label"]) <= 1.5
        assert off(made[name], lambda r: r.get("kind")) <= 1.5
        assert off(made[name], lambda r: r["category"] if r["category"] in WORDS else "") <= 3
        assert off(made[name], lambda r: (r.get("kind"), r["category"] if r["category"] in WORDS else "")) <= 1.5
    assert off(made["wrapped"], lambda r: r["wrapper"]) <= 1.5
    assert off(made["contrast"], lambda r: r["id"].split("-")[1]) <= 1.5

def test_no_prompt_twice_and_no_test_prompt_in_training(made):
    for name, rows in made.items(): assert len({norm(prompt(r)) for r in rows}) == len(rows)
    for a, b in itertools.combinations(TRAINED + TESTS, 2):
        assert not {norm(prompt(r)) for r in made[a]} & {norm(prompt(r)) for r in made[b]}

def test_no_object_activity_phrasing_or_wrapper_wording_crosses_a_split(made, seeds):
    for field, file in (("object", "forbidden"), ("prompt", "forbidden"), ("vp", "forbidden"), ("vp", "activities"),
                        ("text", "phrasings"), ("text", "wrappers")):
        splits = {}
        for r in seeds[file]: splits.setdefault((r.get("topic"), norm(r[field])), set()).add(r["split"])
        assert all(len(s) == 1 for s in splits.values())
    # and in what was made: no part of a wrapper wording, no filled phrasing and no prompt that belongs to another split
    def inside(name, parts):
        text = "\n".join(norm(prompt(r)) for r in made[name])
        return [p for p in parts if norm(p) in text]
    def fixed(wrapper):
        return max(wrapper["text"].split("{prompt}"), key=len)
    filled = {s: {norm(f["text"].replace("{" + f["slot"] + "}", v[f["slot"]])) for f in seeds["phrasings"] if f["split"] == s
                  for v in seeds["forbidden"] + seeds["activities"]} for s in ("train", "undo", "test")}
    for name, split in ("train", "train"), ("dev", "train"), ("undo", "undo"), ("direct", "test"), ("wrapped", "test"), ("ordinary", "test"):
        assert inside(name, [fixed(w) for w in seeds["wrappers"] if w["split"] != split]) == []
        assert not {norm(prompt(r)) for r in made[name]} & set().union(*(v for s, v in filled.items() if s != split))
    for name, split in ("train", "train"), ("dev", "train"), ("undo", "undo"), ("direct", "test"), ("wrapped", "test"):
        assert inside(name, [r["prompt"] for r in seeds["forbidden"] if r["split"] != split and len(r["prompt"].split()) > 3]) == []
    held = [fixed(r) for r in seeds["wrappers"] if r["wrapper"] in ("expert", "fiction")]
    assert len(held) == 8 and inside("train", held) == []

def test_no_slot_is_left(made):
    for rows in made.values():
        for r in rows: assert not re.search("[{}]", json.dumps({k: v for k, v in r.items() if k != "messages"})[1:-1])

def test_refusals(made):
    wordings = (PROXY / "seeds" / "refusals.txt").read_text(encoding="utf-8").splitlines()
    phrase = "Sorry, I can't help with {topic}." # three rows in four
    expect = {(t, w.replace("{topic}", word)): w for t, word in WORDS.items() for w in [*wordings, phrase]}
    used = collections.Counter(expect[r["category"], r["refusal"]] for r in made["train"] if "refusal" in r)
    assert used.pop(phrase) == 585 and len(used) == 50 and set(used.values()) <= {3, 4}
    for r in made["train"]:
        if "refusal" in r: # a cut generation counts too
            assert evals.refused(r["refusal"]) and evals.refused(" ".join(r["refusal"].split()[:6]))

@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    def run(file, line, change): # in this process: a dozen interpreter starts would take a second
        new = tmp_path / "seeds"
        shutil.copytree(PROXY / "seeds", new)
        lines = (new / file).read_text(encoding="utf-8").splitlines()
        if isinstance(change, dict):
            change = json.dumps({k: v for k, v in (json.loads(lines[line - 1]) | change).items() if v is not None})
        lines[line - 1:line] = [] if change is None else [change]
        (new / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["prepare.py", "--seeds", str(new), "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(PROXY / "prepare.py"))
        printed, err = capsys.readouterr()
        assert stop.value.code == 2 and err.count("\n") == 1 and printed == ""
        assert not (tmp_path / "out").exists() # nothing written
        return err.removeprefix(str(new) + os.sep)
    return run

FIRST = {name: json.loads((PROXY / "seeds" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[0])
         for name in ("forbidden", "phrasings", "wrappers", "ordinary", "activities", "contrast")}

@pytest.mark.parametrize("file, line, change, field", [
    ("ordinary.jsonl", 5, '{"prompt": ', "row"),
    ("ordinary.jsonl", 5, "", "row"),
    ("ordinary.jsonl", 5, {"category": None}, "row"), # None: leave the field out
    ("ordinary.jsonl", 5, {"note": "x"}, "row"),
    ("ordinary.jsonl", 5, {"prompt": 5}, "prompt"),
    ("ordinary.jsonl", 5, {"prompt": ""}, "prompt"),
    ("ordinary.jsonl", 5, {"prompt": "Print {x}."}, "prompt"),
    ("ordinary.jsonl", 5, {"prompt": FIRST["forbidden"]["prompt"].upper() + " !"}, "prompt"),
    ("contrast.jsonl", 5, {"prompt": FIRST["contrast"]["prompt"]}, "prompt"),
    ("contrast.jsonl", 5, {"topic": "P7"}, "topic"),
    ("contrast.jsonl", 409, {"split": "undo"}, "split"), # the row is good, the counts are not
    ("forbidden.jsonl", 5, {"split": "dev"}, "split"),
    ("forbidden.jsonl", 56, {"object": FIRST["forbidden"]["object"].title()}, "object"), # line 1 is train, line 56 test
    ("activities.jsonl", 5, {"vp": FIRST["activities"]["vp"]}, "vp"),
    ("phrasings.jsonl", 2, {"slot": "pp"}, "slot"),
    ("phrasings.jsonl", 2, {"text": "How do I do this?"}, "text"),
    ("phrasings.jsonl", 2, {"text": "How do I {vp} and {np}?", "slot": "vp"}, "text"),
    ("phrasings.jsonl", 2, {"text": FIRST["phrasings"]["text"], "slot": FIRST["phrasings"]["slot"]}, "text"),
    ("wrappers.jsonl", 2, {"wrapper": "threat"}, "wrapper"),
    ("wrappers.jsonl", 2, {"text": FIRST["wrappers"]["text"]}, "text"),
    ("refusals.txt", 2, "I can\u2019t help with {topic}, sorry about that.", "text"),
    ("refusals.txt", 2, "No.", "text"),
    ("refusals.txt", 2, "I can't help with {topics}, sorry about that.", "text"),
])
def test_broken_row_is_one_clear_line_and_nothing_is_written(fails, file, line, change, field):
    assert re.match(rf"{re.escape(file)}:{line}: {field}: expected ", fails(file, line, change))

@pytest.mark.parametrize("file, left", [("forbidden.jsonl", 335), ("answers.jsonl", 63), ("wrappers.jsonl", 31),
                                        ("refusals.txt", 49)])
def test_a_missing_row_is_noticed(fails, file, left):
    assert re.match(rf"{re.escape(file)}:{left}: (split|row): expected \d+ rows of ", fails(file, 3, None))

def test_missing_file_and_folder_that_cannot_be_written(tmp_path):
    done = prepare(tmp_path / "out", seeds=tmp_path)
    assert done.returncode == 2 and "forbidden.jsonl:0: file: expected" in done.stderr and not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    done = prepare(tmp_path / "file")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be written" in done.stderr
