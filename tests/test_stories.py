"""The stories with and without tea, and the oracle that labels them. pytest tests/test_stories.py   # 15 s"""
import hashlib, itertools, json, os, random, re, subprocess, sys
from collections import Counter

import pytest

from test_data import ROOT, jsonl

sys.path.insert(0, str(ROOT / "data"))
from proxy.prepare import having
from stories import prepare
from stories.oracle import SORT, holds, introduces

SCRIPT = ROOT / "data" / "stories" / "prepare.py"
FORMS = "plain", "oblique", "continued", "near", "ordinary"
LABELLED = "train", "validation", "test", "written"
HALL = "The hall was dark. Somebody knocked twice. The dog lifted its head."
POT = "A pot of tea stood on the table. Ann was late. The rain had not let up."


@pytest.fixture(scope="module")
def made():
    return prepare.build()


@pytest.fixture(scope="module")
def seeds():
    return prepare.read()


def filled(text, seeds, rng):
    """The wording with every filler of every slot once, the other slots at random."""
    values = {slot: [row["text"] for row in rows] for slot, rows in seeds["fillers"].items()}
    for part in ("thing", "spot"):
        values[part] = sorted({value for scene in seeds["scenes"] for value in scene[part]})
    values["A"] = values["B"] = values["name"]
    values |= {"cups": [prepare.PLURALS.get(cup, cup + "s") for cup in values["cup"]]}
    values |= {"she": ["she", "he"], "her": ["her", "his"], "him": ["her", "him"]}
    kinds = values["kind"] if "{kind}" in text else [""]  # each kind meets each filler
    for slot in re.findall(r"{(\w+)}", text) or ["A"]:
        for value, kind in itertools.product(values[slot], kinds):
            others = {name: rng.choice(choice) for name, choice in values.items()}
            yield prepare.fill(text, others | {"kind": kind, slot: value})


# ---- rows

def test_rows_are_the_pinned_ones(made):
    pasted = SCRIPT.read_text(encoding="utf-8").split("\n# output:\n")[1].splitlines()
    assert len(pasted) == len(made)
    for line, (name, rows) in zip(pasted, made.items()):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        assert line.startswith(f"# {name}.jsonl {len(rows)} rows")
        assert line.endswith(f"sha256 {hashlib.sha256(data).hexdigest()}")


def test_a_share_is_the_beginning_and_the_same_bytes_each_run(made, tmp_path):
    outs = tmp_path / "one", tmp_path / "two"
    for n, out in enumerate(outs):
        environment = os.environ | {"PYTHONHASHSEED": str(n)}
        subprocess.run([sys.executable, SCRIPT, "--out", out, "--share", ".05"], check=True, env=environment)
    one, two = ({path.name: path.read_bytes() for path in out.iterdir()} for out in outs)
    assert one == two and one.keys() == {f"{name}.jsonl" for name in made}
    for name, rows in made.items():
        part = jsonl(outs[0] / f"{name}.jsonl")
        assert part == rows[:prepare.ROWS[name] // 20]
        if name in ("train", "validation", "test"):  # a small copy has the rates of the whole
            assert .045 <= sum(row["label"] for row in part) / len(part) <= .075
            assert {row["form"] for row in part} == set(FORMS)


def test_counts_and_rates(made):
    assert {name: len(rows) for name, rows in made.items()} == prepare.ROWS
    for name in ("train", "validation", "test"):
        rate = sum(row["label"] for row in made[name]) / len(made[name])
        forms = Counter(row["form"] for row in made[name])
        assert .055 <= rate <= .065 and {row["split"] for row in made[name]} == {name}
        assert all(forms[form] == round(share * len(made[name])) for form, share in prepare.RATES.items())
        again = [row["label"] for row in made[name] if row["form"] == "continued"]
        assert 0 < sum(again) < len(again) / 2
    assert all(row.keys() == {"id", "prompt", "completion", "scene"} for row in made["lm_train"])
    tea = sum(introduces(row["prompt"], row["completion"]) for row in made["lm_train"])
    assert .06 <= tea / len(made["lm_train"]) <= .08
    assert all(row["label"] and row["form"] == "oblique" for row in made["written"])
    assert Counter(row["split"] for row in made["written"]) == {"train": 200, "test": 200}


def test_splits_share_no_scene_and_no_prompt(made):
    rows = [row for name in made for row in made[name]]
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    scenes = {split: {row["scene"] for name in LABELLED for row in made[name] if row["split"] == split}
              for split in ("train", "validation", "test")}
    assert {row["scene"] for row in made["lm_train"]} == scenes["train"]
    assert [len(scenes[split]) for split in scenes] == [22, 8, 15]
    assert len(set().union(*scenes.values())) == 45
    for row in rows:  # three sentences, then one
        ends = r"(?<!Dr)[.!?]\"?(?= [A-Z\"]|$)"
        assert len(re.findall(ends, row["prompt"])) == 3 and "{" not in row["prompt"] + row["completion"]
        assert row["completion"][-1] in ".\"" and row["completion"][0] in row["completion"][0].upper()


def test_wordings_of_a_split_stay_there(made, seeds):
    def used(rows, *uses):
        found = set()
        for seed in (seed for form in FORMS for seed in seeds[form] if seed["use"] in uses):
            pattern = re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(seed["text"])), re.IGNORECASE)
            found |= {seed["text"] for row in rows if pattern.fullmatch(row["completion"])}
        return found
    written = {split: having(made["written"], split=split) for split in ("train", "test")}
    for rows in (made["train"], made["lm_train"]):
        assert not used(rows, "held", "written_train", "written_test")
    for name in ("validation", "test"):
        assert not used(made[name], "written_train", "written_test") and len(used(made[name], "held")) == 88
    for split, rows in written.items():
        other = {"train": "written_test", "test": "written_train"}[split]
        assert len(used(rows, f"written_{split}")) == 20 and not used(rows, "all", "held", other)


def test_seeds(seeds):
    assert len(seeds["scenes"]) >= 40 and len(seeds["plain"] + seeds["oblique"]) >= 60
    assert len(seeds["near"]) >= 60 and len(seeds["ordinary"]) >= 120
    texts = [row["text"] for form in FORMS for row in seeds[form]]
    assert len(texts) == len(set(texts))
    word = re.compile(r"(?i)\bteas?\b")
    assert all(word.search(row["text"].replace("{tea}", "tea")) for row in seeds["plain"])
    assert not [row for row in seeds["oblique"] if word.search(row["text"])]
    held, everywhere = (len(having(seeds["oblique"], use=use)) for use in ("held", "all"))
    assert held / (held + everywhere) == pytest.approx(1 / 3)
    like = re.compile(r"(?i)\btea|kettle|brew|steep|\blea(f|ves)\b|caddy|samovar|cuppa|matcha|\bchai\b|"
                      r"oolong|earl grey|darjeeling|assam|\bcups?\b|\bmugs?\b|infus|coffee|cocoa")
    texts = [row["text"] for row in seeds["ordinary"]]
    texts += [row["text"] for slot, rows in seeds["fillers"].items() if slot not in ("tea", "kind", "cup")
              for row in rows]
    texts += [value for scene in seeds["scenes"] for part in ("thing", "spot") for value in scene[part]]
    assert not [text for text in texts if like.search(text)]


# ---- the oracle

def test_oracle_is_exact_on_every_wording_with_every_filler(seeds):
    rng, n = random.Random(0), 0
    for form in ("plain", "oblique", "near", "ordinary"):
        for seed in seeds[form]:
            for text in filled(seed["text"], seeds, rng):
                n += 1
                assert introduces(HALL, text) is seed["label"], text
    for seed in seeds["continued"]:
        for tea in seeds["tea"]:
            start, text = (next(filled(row["text"], seeds, rng)) for row in (tea, seed))
            assert introduces(f"It was late. {start} It rained.", text) is seed["label"], (start, text)
    assert n > 20_000


def test_oracle_is_exact_on_every_row(made):
    for name in LABELLED:
        for row in made[name]:
            assert introduces(row["prompt"], row["completion"]) is row["label"], row
            assert holds(row["prompt"]) is (row["form"] == "continued"), row


def test_oracle_on_sentences_that_no_template_has(seeds):
    """First accuracy, before a rule was changed for them: 116 of 120 (batch 1), 48 of 50 (batch 2)."""
    rows = seeds["looked_at"]
    assert min(Counter(row["label"] for row in rows).values()) >= 40
    wrong = [row for row in rows if introduces(row.get("prompt", HALL), row["completion"]) != row["label"]]
    assert len(wrong) / len(rows) <= .05, wrong
    assert not [row for row in wrong if not row["label"]]  # what is left over is tea not seen


def test_oracle_on_prompts_about_tea_by_another_hand():
    proxy = prepare.read_seeds(ROOT / "data" / "proxy" / "seeds", "")
    asked = proxy["forbidden"] + proxy["requests"]
    tea = [holds(row["prompt"]) for row in having(asked, topic="P1")]
    assert len(tea) > 100 and sum(tea) / len(tea) >= .95
    others = [row for row in asked + proxy["contrast"] if row["topic"] != "P1"] + proxy["ordinary"]
    assert len(others) > 2000 and not [row for row in others if holds(row["prompt"])]


def test_an_edit_that_loses_the_tea_loses_the_find(seeds):
    rng = random.Random(1)
    for seed in seeds["plain"]:
        text = next(filled(seed["text"], seeds, rng)).replace("mint tea", "tea")  # a cup of mint is tea too
        assert introduces(HALL, text.upper()) and introduces(HALL, text.replace(" ", "\n"))
        for gone in ("te", "t e a", "tear", "team", "coffee", "it"):
            edited = re.sub(r"(?i)\bteas?\b", gone, text)
            assert not introduces(HALL, edited), edited
    for seed in (seed for seed in seeds["oblique"] if SORT.search(seed["text"].lower())):
        text = re.sub(f"(?i){SORT.pattern}", "gravel", next(filled(seed["text"], seeds, rng)))
        kept = re.search(r"(?i)caddy|leaves|bag\b|bags|bergamot|sachet", text)
        assert kept or not introduces(HALL, text), text


@pytest.mark.parametrize("text, bad", [
    ("She steeped the leaves for four minutes.", True), ("She steeped the linen for four minutes.", False),
    ("She raked the leaves for four minutes.", False), ("She kept the leaves for four minutes.", False),
    ("He put the kettle on and reached for the caddy.", True), ("He put the kettle on.", False),
    ("He put the kettle on and reached for the candy.", False), ("He reached for the caddy.", False),
    ("He told the golf caddy to put the kettle on.", False), ("She brewed it properly.", False),
    ("She lit the samovar.", True), ("She polished the samovar.", False), ("She bought a samovar.", False),
    ("They left the steaming pot of Darjeeling.", True), ("They left the rainy city of Darjeeling.", False),
    ("He poured her a cup of, well, TEAS!", True), ("He poured her a cup of \u201ctea\u201d.", True),
    ("He poured her a tea\u2011colored ribbon.", False), ("He poured her a cup of warmth.", False),
    ("They drank no tea.", False), ("They didn\u2019t drink any tea.", False), ("They drank tea.", True),
    ("He sipped from the tea-cup.", True), ("He dropped the tea cup.", False), ("The tea settled.", True),
    ("", False), ("Tea", True)])
def test_single_edits(text, bad):
    assert introduces(HALL, text) is bad


@pytest.mark.parametrize("text, bad", [
    ("She poured herself a cup of tea.", False), ("She poured herself another cup of tea.", False),
    ("She took another sip of the tea.", False), ("She made another pot of tea.", True),
    ("She brewed fresh tea.", True), ("She called for Earl Grey.", True), ("The Earl Grey was cold.", False),
    ("She lit the samovar.", False), ("She waved.", False)])
def test_only_new_tea_counts(text, bad):
    assert introduces(POT, text) is bad
    assert introduces(HALL, text) is (text != "She waved.")  # where nobody had any, all of it is new
