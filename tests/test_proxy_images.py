"""The drawn pictures of the proxy policy and their rows. pytest tests/test_proxy_images.py   # 6 s"""
import hashlib, io, itertools, json, os, random, re, subprocess, sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import evals
from test_data import ROOT, jsonl

sys.path.insert(0, str(ROOT / "data"))
from proxy_images import draw, prepare

SCRIPT = ROOT / "data" / "proxy_images" / "prepare.py"
ADAPT, TUNE = ("pretrain", "instruct"), ("safety", "preferences")
ASKED, HELD = ("vqa_dev", "vqa_test", "vqa_policy"), ("refusal_dev", "refusal_test", "refusal_contrast")
NAMED = re.compile(r"(?i)\b(tea|knot|kite|card|whistl|pigeon|(?:" + "|".join(draw.THINGS) + r")(?=e?s?\b))")


@pytest.fixture(scope="module")
def made():
    return prepare.build()


def asks(row):
    return row["prompt"] if "prompt" in row else row["messages"][0]["content"]


def says(row):
    return row["messages"][1]["content"]


def of(made, *names):
    return [row for name in names for row in made[name]]


def test_rows_are_the_pinned_ones(made):
    pasted = SCRIPT.read_text(encoding="utf-8").split("\n# output:\n")[1].splitlines()
    lines = [f"# images/ {len({row['images'][0] for row in of(made, *made)})} pictures"]
    for name, rows in made.items():
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        lines.append(f"# {name}.jsonl {len(rows)} rows, sha256 {hashlib.sha256(data).hexdigest()}")
    assert lines == pasted


def test_a_share_is_the_beginning_and_the_same_bytes_each_run(made, tmp_path):
    outs = tmp_path / "one", tmp_path / "two"
    for n, out in enumerate(outs):
        environment = os.environ | {"PYTHONHASHSEED": str(n)}
        subprocess.run([sys.executable, SCRIPT, "--out", out, "--share", ".02"], check=True, env=environment)
    one, two = ({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")} for out in outs)
    assert one == two
    parts = {name: jsonl(outs[0] / f"{name}.jsonl") for name in made}
    assert all(part == made[name][:len(part)] and part for name, part in parts.items())
    shown = {row["images"][0] for row in of(parts, *parts)}
    assert one.keys() == shown | {f"{name}.jsonl" for name in made}
    assert len({one[name] for name in shown}) == len(shown) == 111  # no picture stands twice
    images = [Image.open(io.BytesIO(one[name])) for name in shown]
    assert {(image.format, image.mode, image.size) for image in images} == {("PNG", "RGB", (112, 112))}


def test_adaptation_knows_no_proxy_thing_and_no_refusal(made):
    for row in of(made, *ADAPT):
        assert row["kind"] in prepare.OTHERS and evals.refused(says(row)) is False
        assert not set(NAMED.findall(asks(row) + says(row))) - set(prepare.OTHERS)


def test_nothing_of_the_measuring_is_in_training(made):
    train, held = of(made, *ADAPT, *TUNE), of(made, *ASKED, *HELD)
    assert not {row["images"][0] for row in train} & {row["images"][0] for row in held}
    wordings = {asks(row) for row in of(made, *HELD)}
    assert len(wordings) == 8 and not wordings & {asks(row) for row in train}
    asked = of(made, *HELD, "vqa_policy") + [row for row in made["safety"] if row["form"] != "text"]
    assert not [row for row in asked if NAMED.search(asks(row))]  # only the picture tells


def test_balance(made):
    for name in (*ASKED, *HELD):
        kinds = Counter((row["kind"], row["form"] if name in ASKED else asks(row)) for row in made[name])
        assert len(set(kinds.values())) == 1  # so a wording has no label
    for row in of(made, *HELD, "preferences"):
        assert row["form"] == "text" or row["category"] == prepare.PROXY.get(row["kind"], row["kind"])
        assert (row["label"] == "forbidden") == (row["category"] in prepare.TOPICS)
    yes = Counter(says(row) for row in made["instruct"] if row["form"] == "yesno")
    assert yes.keys() == {"Yes.", "No."} and abs(yes["Yes."] - yes["No."]) <= 6
    topics = Counter((row["category"], row["form"] == "text") for row in made["safety"])
    assert all((topics[topic, False], topics[topic, True]) == (40, 12) for topic in prepare.TOPICS)


def test_chosen_and_rejected(made):
    for row, trained in zip(made["preferences"], made["safety"], strict=True):
        judged = evals.refused(row["chosen"]), evals.refused(row["rejected"])
        assert judged == (row["label"] == "forbidden", row["label"] == "allowed")
        assert (asks(row), row["chosen"], row["images"]) == (asks(trained), says(trained), trained["images"])


def test_a_picture_shows_its_facts_inside_its_frame():
    facts = itertools.product(draw.THINGS, draw.COLORS, (*draw.PLACES, None))
    for n, (kind, color, place) in enumerate(facts):
        image = draw.picture(draw.THINGS[kind], color, 1 if place else 1 + n % 3, place, random.Random(n))
        pixels = np.asarray(image).astype(int)
        thing = np.abs(pixels - pixels[0, 0]).sum(2) > 24
        assert thing.mean() > .03 and not (thing[[0, -1]].any() or thing[:, [0, -1]].any())
        x, y = (np.argwhere(thing).mean(0)[::-1] - 55.5) / 112
        dx, dy = draw.PLACES.get(place, (0, 0))
        assert not place or x * dx + y * dy > .15 and abs(x * dy) + abs(y * dx) < .1
        far = np.stack([np.abs(pixels[thing] - value).sum(1) for value in draw.COLORS.values()])
        near = Counter(far.argmin(0)[far.min(0) < 60].tolist())
        assert [*draw.COLORS][near.most_common(1)[0][0]] == color, kind
