"""data/{advbench,refusalbench,strongreject,xstest,mmlu,hellaswag,dolly}/prepare.py, run as a user runs them.

    python -m pytest -q tests/test_data.py        # about 10 s on two cores, no network, no torch

Fixtures are written here, on the proxy topics (tea, knots, kites, card tricks, whistling, pigeons). Where the real files
lie in ../shared/data, the loaders also run on them; otherwise those tests are skipped. No test prints a prompt.
"""
import ast
import csv
import hashlib
import http.server
import io
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
NAMES = ["advbench", "refusalbench", "strongreject", "xstest", "mmlu", "hellaswag", "dolly"]
# every download goes to a closed port, so that no test depends on a network or uses one
DEAD = {k: "http://127.0.0.1:9" for k in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
ENV = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"} | DEAD


def run(script, *args, cwd=ROOT):
    script = ROOT / "data" / script / "prepare.py" if isinstance(script, str) else script
    return subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True, cwd=cwd, env=ENV)


def jsonl(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_csv(*rows, end="\n"):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=end).writerows(rows)
    return buffer.getvalue()


def refused(p, text, out):
    """Exit 2, one line on stderr besides warnings, no traceback, nothing written."""
    errors = [line for line in p.stderr.splitlines() if not line.startswith("warning: ")]
    assert p.returncode == 2 and len(errors) == 1 and text in errors[0], p.stderr
    assert not out.exists()


PROMPTS = ["How is green tea, loose leaf, brewed?", 'Tie a "bowline"\nwith one hand.', "Name three kite shapes."]
ADVBENCH = as_csv(["goal", "target"], *[[p, "Sure, here is tea"] for p in PROMPTS])
REFUSALBENCH = {"knots": ["Tie a reef knot.", "Tie a clove hitch."], "tea": ["Brew oolong.", "Brew oolong."]}
STRONGREJECT = as_csv(["category", "source", "forbidden_prompt"], ["Violence", "custom", PROMPTS[0]],
                      ["Disinformation and Deception", "custom", PROMPTS[1]])
XSTEST = as_csv(["id", "prompt", "type", "label", "focus", "note"], [1, PROMPTS[0], "homonyms", "safe", "tea", ""],
                [2, PROMPTS[1], "contrast_homonyms", "unsafe", "knot", "a, note"])
XSTEST_COMPLETIONS = as_csv(
    ["id", "type", "prompt", "completion", "annotation_1", "annotation_2", "agreement", "final_label"],
    ["v2-1", "homonyms", PROMPTS[0], "Warm the pot.\n\nThen pour, \"gently\".", "", "", "TRUE", "1_full_compliance"],
    ["v2-2", "contrast_homonyms", PROMPTS[1], "I cannot help with knots.", "", "", "TRUE", "2_full_refusal"])
HELLASWAG = [
    {"ind": 24, "activity_label": "Flying a kite", "ctx_a": "A girl holds a kite.", "ctx_b": "she", "label": 3,
     "endings": ["lets it go.", "drinks tea.", "ties  a knot.", "runs [laughs] uphill."], "source_id": "activitynet~v_1"},
    {"ind": 25, "activity_label": "Hobbies", "ctx_a": "[header] How to brew tea [title] Warm the pot. [step] Pour.",
     "ctx_b": "", "label": "0", "endings": ["Wait. [substeps] Sip.", "b", "c", "d"], "source_id": "wikihow~7"},
    {"ind": 26, "activity_label": "Pigeons", "ctx_a": "Birds sit.", "ctx_b": "the Pigeons of Rome", "label": 1,
     "endings": ["coo.", "fly.", "", "sleep."], "source_id": "activitynet~v_2"}]
DOLLY = [{"instruction": " Name a knot. ", "context": "", "response": "Bowline.\n", "category": "open_qa"},
         {"instruction": "What is said of tea?", "context": "Tea is warm.\u2028It is brown. [1]\n", "response": "Warm.",
          "category": "closed_qa"},
         {"instruction": "Whistle!", "context": "", "response": " \n", "category": "creative_writing"}]
MMLU = [{"question": "Which knot holds, and why?", "choices": {"A": "None", "B": "1/2", "C": "a, b", "D": "reef"},
         "answer": "D", "dataset": f"knot_theory_{split}", "subject": "knot_theory"} for split in ("test", "dev")]
MMLU_CSV = as_csv(["Which knot holds, and why?", "None", "1/2", "a, b", "reef", "D"])


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


SMALL = {  # name: (name of the source file, its text)
    "advbench": ("harmful_behaviors.csv", ADVBENCH), "refusalbench": ("benchfile.json", json.dumps(REFUSALBENCH)),
    "strongreject": ("strongreject_dataset.csv", STRONGREJECT), "xstest": ("xstest_prompts.csv", XSTEST),
    "mmlu": ("test.jsonl", lines(MMLU)), "hellaswag": ("hellaswag_val.jsonl", lines(HELLASWAG)),
    "dolly": ("databricks-dolly-15k.jsonl", lines(DOLLY))}


@pytest.fixture
def small(tmp_path):
    """Writes the small source file of a set, returns its path and an output folder that does not exist yet."""
    def make(name, text=None):
        src = tmp_path / SMALL[name][0]
        src.write_bytes((SMALL[name][1] if text is None else text).encode())
        return src, tmp_path / "new" / "out"
    return make


def prompt(key, text, category, label="forbidden"):
    return {"id": key, "prompt": text, "category": category, "label": label}


KNOT = {"question": "Which knot holds, and why?", "choices": ["None", "1/2", "a, b", "reef"], "answer": 3,
        "category": "knot_theory"}
EXPECTED = {  # name: {file written: rows}
    "advbench": {"prompts.jsonl": [prompt(f"advbench-{i}", p, "harmful_behaviors") for i, p in enumerate(PROMPTS, 1)]},
    "refusalbench": {"prompts.jsonl": [
        prompt("refusalbench-knots-1", "Tie a reef knot.", "knots"), prompt("refusalbench-knots-2", "Tie a clove hitch.", "knots"),
        prompt("refusalbench-tea-1", "Brew oolong.", "tea"), prompt("refusalbench-tea-2", "Brew oolong.", "tea")]},
    "strongreject": {"prompts.jsonl": [prompt("strongreject-1", PROMPTS[0], "Violence"),
                                       prompt("strongreject-2", PROMPTS[1], "Disinformation and deception")]},
    "xstest": {"prompts.jsonl": [prompt("xstest-1", PROMPTS[0], "homonyms", "allowed"),
                                 prompt("xstest-2", PROMPTS[1], "contrast_homonyms")]},
    "mmlu": {"test.jsonl": [KNOT], "dev.jsonl": [KNOT]},
    "hellaswag": {"validation.jsonl": [
        {"question": "Flying a kite: A girl holds a kite. She",
         "choices": ["lets it go.", "drinks tea.", "ties a knot.", "runs uphill."], "answer": 3, "category": "activitynet"},
        {"question": "Hobbies: How to brew tea. Warm the pot. Pour.",
         "choices": ["Wait. Sip.", "b", "c", "d"], "answer": 0, "category": "wikihow"},
        {"question": "Pigeons: Birds sit. The pigeons of rome",
         "choices": ["coo.", "fly.", "", "sleep."], "answer": 1, "category": "activitynet"}]},
    "dolly": {"train.jsonl": [
        {"messages": [{"role": "user", "content": "Name a knot."}, {"role": "assistant", "content": "Bowline."}],
         "category": "open_qa"},
        {"messages": [{"role": "user", "content": "What is said of tea?\n\nTea is warm.\u2028It is brown. [1]"},
                      {"role": "assistant", "content": "Warm."}], "category": "closed_qa"}]}}


@pytest.mark.parametrize("name", NAMES)
def test_small_file(name, small):
    src, out = small(name)
    p = run(name, "--src", src, "--out", out, "--any-version")
    assert p.returncode == 0 and p.stderr.startswith("warning: "), p.stderr
    assert sorted(f.name for f in out.iterdir()) == sorted([*EXPECTED[name], "meta.json"])  # no temporary file left
    for file, rows in EXPECTED[name].items():
        assert (out / file).read_text(encoding="utf-8") == lines(rows)
        assert len((out / file).read_text(encoding="utf-8").splitlines()) == len(rows)  # no U+2028 in the bytes
    meta = json.loads((out / "meta.json").read_text())
    assert set(meta) == {"source", "revision", "sha256", "n", "licence"} and meta["licence"]
    assert meta["source"] == src.name and meta["revision"] is None and meta["sha256"] == sha(src)
    n = [len(rows) for rows in EXPECTED[name].values()]
    assert meta["n"] == ({"test": 1, "dev": 1} if name == "mmlu" else n[0])
    assert meta["sha256"] in p.stdout and f"{n[0]} " in p.stdout
    for text in [*PROMPTS, "oolong", "holds, and why", "bowline"]:
        assert text not in p.stdout + p.stderr  # counts, never texts
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    assert run(name, "--src", src, "--out", out, "--any-version").returncode == 0
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}  # the same bytes again: no date, no order
    # a later failure leaves the good files as they are
    assert run(name, "--src", src, "--out", out).returncode == 2
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_other_checksum_missing_file_no_network_unknown_flag(name, small, tmp_path):
    src, out = small(name)
    with ThreadPoolExecutor(2) as pool:
        other, absent, offline, flag = pool.map(lambda args: run(name, "--out", out, *args), [
            ["--src", src], ["--src", tmp_path / "absent.jsonl", "--any-version"], [], ["--any-versions"]])
    refused(other, "expected 14042" if name == "mmlu" else sha(src), out)
    refused(absent, "No such file", out)
    refused(offline, "cannot be read", out)
    refused(flag, "--any-versions", out)


@pytest.mark.parametrize("name", ["advbench", "mmlu"])
def test_output_that_cannot_be_written(name, small, tmp_path):
    src, _ = small(name)
    # beneath a file, and where a folder has the name of an output file
    p = run(name, "--src", src, "--out", src / "out", "--any-version")
    assert p.returncode == 2 and "cannot be written" in p.stderr.splitlines()[-1] and "Traceback" not in p.stderr
    blocked = tmp_path / "blocked"
    (blocked / "meta.json" / "x").mkdir(parents=True)
    p = run(name, "--src", src, "--out", blocked, "--any-version")
    assert p.returncode == 2 and "cannot be written" in p.stderr.splitlines()[-1] and "Traceback" not in p.stderr
    assert not list(blocked.glob(".*"))


@pytest.mark.parametrize("name", NAMES)
def test_pinned_bytes_need_no_flag(name, small, tmp_path):
    """A copy of the script whose pinned checksum and counts are those of the small file: also shows it runs alone."""
    src, out = small(name)
    if name == "mmlu":
        src = tmp_path / "data.tar"
        write_tar(src)
    code = (ROOT / "data" / name / "prepare.py").read_text(encoding="utf-8")
    pinned = re.search(r'"([0-9a-f]{64})"', code)[1]
    code = code.replace(pinned, sha(src))
    for old, new in {"advbench": ("N = 520", "N = 3"), "hellaswag": ("N = 10042", "N = 3"),
                     "refusalbench": ("UNIQUE = 885", 'UNIQUE, COUNTS = 3, {"knots": 2, "tea": 2}'),
                     "strongreject": ("SETS = {", 'FULL = {"Violence": 1, "Disinformation and deception": 1}\nSETS = {'),
                     "xstest": ('{"allowed": 250, "forbidden": 200} or sorted(types.values()) != [25] * 18',
                                '{"allowed": 1, "forbidden": 1}'),
                     "mmlu": ('{"test": 14042, "dev": 285}, 57', '{"test": 1, "dev": 5}, 1'),
                     "dolly": ("N, CATEGORIES = 15011, 8", "N, CATEGORIES = 3, 2")}.items():
        if old == name:
            assert new[0] in code
            code = code.replace(*new)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "prepare.py").write_text(code, encoding="utf-8")
    p = run(alone / "prepare.py", "--src", src, cwd=tmp_path)  # default --out: beside itself
    assert p.returncode == 0 and p.stderr == "", p.stderr
    meta = json.loads((alone / "meta.json").read_text())
    assert meta["source"].startswith("https://") and len(meta["revision"]) == 40 and meta["revision"] in meta["source"]
    for file in EXPECTED[name]:
        assert (alone / file).is_file()


def changed(rows, i, **new):
    return lines([row | (new if j == i else {}) for j, row in enumerate(rows)])


BAD = [  # set, source text, what the one line says after the path
    ("advbench", as_csv(["goal", "target"], ["Fly a kite", "x"], [" ", "x"]), ":3: goal: expected"),
    ("advbench", as_csv(["goal", "target"], ["Fly a kite"]), ":2: row: expected 2 fields"),
    ("advbench", as_csv(["prompt", "target"], ["Fly a kite", "x"]), ":1: header: expected the columns goal,target"),
    ("advbench", as_csv(*[[p] for p in PROMPTS]), ":1: header: "), ("advbench", "", ":1: header: "),
    ("refusalbench", '{"tea": ["Brew."],\n "knots": [3]}', ": knots, item 1: prompt: expected"),
    ("refusalbench", '{"tea": ["Brew."],\n "knots": ', ":2: file: expected one JSON object"),
    ("refusalbench", '["Brew."]', ":1: file: expected an object"),
    ("strongreject", STRONGREJECT.replace("Violence", "Kites"), ":2: category: expected one of"),
    ("strongreject", STRONGREJECT.replace(",source,", ",kind,"), ":1: header: "),
    ("xstest", XSTEST.replace(",safe,", ",harmless,"), ":2: label: expected one of safe, unsafe"),
    ("xstest", XSTEST.replace("homonyms,safe", ",safe"), ":2: type: expected"),
    ("mmlu", changed(MMLU, 1, answer="E"), ":2: answer: expected A, B, C or D"),
    ("mmlu", changed(MMLU, 0, choices=["a", "b"]), ":1: choices: expected"),
    ("mmlu", changed(MMLU, 0, choices={"A": 1, "B": "", "C": "", "D": ""}), ":1: choices: expected"),
    ("mmlu", changed(MMLU, 1, dataset="knot_theory_val"), ":2: dataset: expected"),
    ("mmlu", changed(MMLU, 0, question=None), ":1: question: expected"), ("mmlu", "", "no questions found"),
    ("hellaswag", changed(HELLASWAG, 1, label=""), ":2: label: expected"),
    ("hellaswag", changed(HELLASWAG, 2, endings=["a", "b", "c"]), ":3: endings: expected"),
    ("hellaswag", changed(HELLASWAG, 0, ctx_b=None), ":1: ctx_b: expected"),
    ("hellaswag", lines(HELLASWAG) + "{", ":4: row: expected one JSON object"),
    ("dolly", changed(DOLLY, 1, response=7), ":2: response: expected"),
    ("dolly", lines(DOLLY).replace('"context"', '"input"', 1), ":1: context: expected"),
    ("dolly", "[1]\n", ":1: row: expected one JSON object")]


@pytest.mark.parametrize("name, text, message", BAD)
def test_bad_row(name, text, message, small):
    src, out = small(name, text)
    p = run(name, "--src", src, "--out", out, "--any-version")
    refused(p, f"{src}{message}" if message[0] == ":" else message, out)
    assert not any(text in p.stdout + p.stderr for text in PROMPTS)


def test_bytes_that_are_no_text(small):
    for name in ("advbench", "mmlu", "refusalbench"):
        src, out = small(name)
        src.write_bytes(b"\xff\xfe\x00goal")
        refused(run(name, "--src", src, "--out", out, "--any-version"), str(src), out)


def test_windows_line_ends_bom_and_blank_lines(small):
    src, out = small("advbench", "\ufeff" + as_csv(["goal", "target"], *[[p, "x"] for p in PROMPTS], end="\r\n") + "\r\n")
    assert run("advbench", "--src", src, "--out", out, "--any-version").returncode == 0
    assert jsonl(out / "prompts.jsonl") == EXPECTED["advbench"]["prompts.jsonl"]


@pytest.mark.parametrize("text, named", [
    (as_csv(*[[f"Brew tea {i}"] for i in range(520)]), "headerless"),
    (as_csv(["goal", "target"], *[[f"Brew tea {i}", "x"] for i in range(521)]), "one row too many"),
    (as_csv(["goal", "target"], *[[f"Brew tea {i}", "x"] for i in range(469)]), "shortened"),
    (as_csv(["goal", "target"], *[[f"Brew tea {i}", "x"] for i in range(520)]), "right shape"),
    (as_csv(["target"], *[[f"Brew tea {i}"] for i in range(574)]), "harmful_strings.csv")])
def test_advbench_names_the_wrong_copy(text, named, small):
    src, out = small("advbench", text)
    refused(run("advbench", "--src", src, "--out", out), named, out)


def test_strongreject_small_and_the_full_file_by_mistake(small, tmp_path):
    src, out = small("strongreject")
    assert run("strongreject", "--src", src, "--out", out, "--any-version", "--small").returncode == 0
    assert sorted(f.name for f in out.iterdir()) == ["meta_small.json", "prompts_small.jsonl"]
    assert [row["id"] for row in jsonl(out / "prompts_small.jsonl")] == ["strongreject-small-1", "strongreject-small-2"]


def test_xstest_completions(small, tmp_path):
    src, out = small("xstest")
    one, two = tmp_path / "xstest_v2_completions_a.csv", tmp_path / "xstest_v2_completions_b.csv"
    one.write_text(XSTEST_COMPLETIONS)
    two.write_text(XSTEST_COMPLETIONS.replace("v2-", "").replace("2_full_refusal", "3_partial_refusal"))
    p = run("xstest", "--src", src, "--completions", one, two, "--out", out, "--any-version")
    assert p.returncode == 0, p.stderr
    first = [{"id": "xstest-1", "prompt": PROMPTS[0], "completion": "Warm the pot.\n\nThen pour, \"gently\".",
              "label": "full_compliance", "source": one.name},
             {"id": "xstest-2", "prompt": PROMPTS[1], "completion": "I cannot help with knots.", "label": "full_refusal",
              "source": one.name}]
    second = [row | {"source": two.name} for row in first]
    second[1]["label"] = "partial_refusal"
    assert jsonl(out / "completions.jsonl") == first + second
    meta = json.loads((out / "meta.json").read_text())["completions"]
    assert meta["n"] == 4 and meta["sha256"] == {one.name: sha(one), two.name: sha(two)} and "vendor" in meta["licence"]
    assert "cannot help" not in p.stdout and "worded differently: none" in p.stdout
    # a completion of a prompt worded differently is named by id; a file with other columns, labels or ids is refused
    one.write_text(XSTEST_COMPLETIONS.replace("loose leaf", "in bags"))
    other = tmp_path / "other"
    args = ["--src", src, "--completions", one, "--out", other, "--any-version"]
    assert "worded differently: v2-1;" in run("xstest", *args).stdout
    args[5] = tmp_path / "gone"
    for old, new, message in [("final_label", "label", ":1: header: "), ("2_full_refusal", "refusal", ": final_label: "),
                              ("v2-2", "v2-3", ": id: expected")]:
        one.write_text(XSTEST_COMPLETIONS.replace(old, new))
        p = run("xstest", *args)
        refused(p, f"{one}:", args[5])
        assert message in p.stderr


def write_tar(path):
    files = {"data/dev/knot_theory_dev.csv": MMLU_CSV * 5, "data/test/knot_theory_test.csv": MMLU_CSV,
             "data/test/._knot_theory_test.csv": "junk", "data/val/knot_theory_val.csv": MMLU_CSV, "data/README.txt": "x",
             "data/auxiliary_train/tea.csv": MMLU_CSV}
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return files


def test_mmlu_archive_folder_and_jsonl_agree(small, tmp_path):
    files = write_tar(tmp_path / "data.tar")
    for name, text in files.items():
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text(text)
    for i, src in enumerate([tmp_path / "data.tar", tmp_path / "f" / "data", tmp_path / "f"]):
        out = tmp_path / f"out{i}"
        p = run("mmlu", "--src", src, "--out", out, "--any-version")
        assert p.returncode == 0, p.stderr
        assert jsonl(out / "test.jsonl") == [KNOT] and jsonl(out / "dev.jsonl") == [KNOT] * 5
    out = tmp_path / "none"
    refused(run("mmlu", "--src", tmp_path / "data.tar", "--out", out), sha(tmp_path / "data.tar"), out)
    refused(run("mmlu", "--src", tmp_path / "f" / "data" / "README.txt", "--out", out, "--any-version"), "expected data.tar", out)
    (tmp_path / "data.tar").write_bytes(b"no archive" * 100)
    refused(run("mmlu", "--src", tmp_path / "data.tar", "--out", out, "--any-version"), "not a tar archive", out)
    (tmp_path / "f/data/test/knot_theory_test.csv").write_text("Which?,a,b,c,D\n")
    refused(run("mmlu", "--src", tmp_path / "f", "--out", out, "--any-version"), ":1: row: expected 6 fields", out)
    # one split only: the other file of an earlier run is left alone
    src, _ = small("mmlu", lines(MMLU[:1]))
    assert run("mmlu", "--src", src, "--out", tmp_path / "out0", "--any-version").returncode == 0
    assert jsonl(tmp_path / "out0" / "dev.jsonl") == [KNOT] * 5


def test_hellaswag_without_ctx_b(small):
    src, out = small("hellaswag", lines([{k: v for k, v in row.items() if k != "ctx_b" or v} for row in HELLASWAG]))
    assert run("hellaswag", "--src", src, "--out", out, "--any-version").returncode == 0
    assert jsonl(out / "validation.jsonl") == EXPECTED["hellaswag"]["validation.jsonl"]


def test_dolly_names_a_git_lfs_pointer(small):
    src, out = small("dolly", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    refused(run("dolly", "--src", src, "--out", out), "git lfs pull", out)


def test_download(capsys, monkeypatch):
    """fetch against a local server: whole, cut short, absent, and nobody there."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/tea")
                return self.end_headers()
            self.send_response(404 if self.path == "/absent" else 200)
            self.send_header("Content-Length", "3000000")
            self.end_headers()
            self.wfile.write(b"t" * (3000000 if self.path != "/short" else 1500000))

        def log_message(self, *args):
            pass

    for k in DEAD:
        monkeypatch.delenv(k, raising=False)
    fetch = runpy.run_path(str(ROOT / "data" / "advbench" / "prepare.py"))["fetch"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert fetch(None, f"{url}/moved") == b"t" * 3000000
        assert "3.0 MB" in capsys.readouterr().out
        for path, message in [("/short", "closed early"), ("/absent", "404")]:
            with pytest.raises(SystemExit) as e:
                fetch(None, url + path)
            error = capsys.readouterr().err
            assert e.value.code == 2 and message in error and "--src" in error and error.count("\n") == 1
        server.shutdown()
    with pytest.raises(SystemExit):
        fetch(None, url)
    assert "refused" in capsys.readouterr().err


def test_sources_are_pinned_and_copies_identical():
    trees = {}
    for name in NAMES:
        code = (ROOT / "data" / name / "prepare.py").read_text(encoding="utf-8")
        trees[f"data/{name}/prepare.py"] = (code, {n.name: ast.get_source_segment(code, n) for n in ast.parse(code).body
                                                   if isinstance(n, ast.FunctionDef)})
        m = runpy.run_path(str(ROOT / "data" / name / "prepare.py"))
        assert m["URL"].startswith(("https://raw.githubusercontent.com/", "https://huggingface.co/datasets/"))
        assert re.fullmatch("[0-9a-f]{40}", m["REVISION"]) and f"/{m['REVISION']}/" in m["URL"]
        assert f"python data/{name}/prepare.py" in m["__doc__"] and "licence" in m["__doc__"].lower()
    copies = 0
    for file, (code, functions) in trees.items():
        for origin, function in re.findall(r"^# copied from (\S+): (\w+)$", code, re.M):
            assert functions[function] == trees[origin][1][function], f"{file}: {function}"
            copies += 1
    assert copies >= 24


# ---- the real files, where this checkout has them ----

def shared(path):
    if not (SHARED / path).is_file():
        pytest.skip(f"{path} is not in {SHARED}")
    return SHARED / path


@pytest.mark.parametrize("file, flags, suffix, n", [("strongreject_dataset.csv", [], "", 313),
                                                    ("strongreject_small_dataset.csv", ["--small"], "_small", 60)])
def test_real_strongreject(file, flags, suffix, n, tmp_path):
    src = shared(f"strongreject/{file}")
    p = run("strongreject", *flags, "--src", src, "--out", tmp_path)
    assert p.returncode == 0 and p.stderr == "", p.stderr
    rows, meta = jsonl(tmp_path / f"prompts{suffix}.jsonl"), json.loads((tmp_path / f"meta{suffix}.json").read_text())
    assert len(rows) == len({row["id"] for row in rows}) == meta["n"] == n and meta["sha256"] == sha(src)
    assert {row["label"] for row in rows} == {"forbidden"} and f"{n} prompts" in p.stdout
    with open(src, newline="", encoding="utf-8") as f:
        assert [row["prompt"] for row in rows] == [row["forbidden_prompt"] for row in csv.DictReader(f)]
    counts = sorted(Counter(row["category"] for row in rows).values())
    assert counts == ([10] * 6 if flags else [50, 50, 50, 50, 54, 59])
    # the wrong one of the two files is named
    assert f"this is {file}" in run("strongreject", *([] if flags else ["--small"]), "--src", src, "--out", tmp_path).stderr


def test_real_xstest(tmp_path):
    src, completions = shared("xstest/xstest_prompts.csv"), shared("xstest/xstest_v2_completions_gpt4_gpteval.csv")
    p = run("xstest", "--src", src, "--completions", completions, "--out", tmp_path)
    assert p.returncode == 0 and p.stderr == "", p.stderr
    rows, done = jsonl(tmp_path / "prompts.jsonl"), jsonl(tmp_path / "completions.jsonl")
    assert Counter(row["label"] for row in rows) == {"allowed": 250, "forbidden": 200}
    assert sorted(Counter(row["category"] for row in rows).values()) == [25] * 18
    assert {row["category"].startswith("contrast_") for row in rows if row["label"] == "forbidden"} == {True}
    assert Counter(row["label"] for row in done) == {"full_compliance": 230, "full_refusal": 211, "partial_refusal": 9}
    assert [row["id"] for row in done] == [row["id"] for row in rows] == [f"xstest-{i}" for i in range(1, 451)]
    assert [a["id"] for a, b in zip(rows, done) if a["prompt"] != b["prompt"]] == ["xstest-195"]
    assert "worded differently: v2-195;" in p.stdout and json.loads((tmp_path / "meta.json").read_text())["revision"]


def test_real_mmlu_part(tmp_path):
    test, dev = shared("mmlu/test_even.jsonl"), shared("mmlu/dev.jsonl")
    out = tmp_path / "out"
    refused(run("mmlu", "--src", test, dev, "--out", out), "7021 questions in 57 subjects, expected 14042", out)
    p = run("mmlu", "--src", test, dev, "--out", out, "--any-version")
    assert p.returncode == 0 and p.stderr.count("\n") == 1, p.stderr
    for file, split, n in [(test, "test", 7021), (dev, "dev", 285)]:
        rows, source = jsonl(out / f"{split}.jsonl"), jsonl(file)
        assert len(rows) == n and len({row["category"] for row in rows}) == 57
        assert [(r["question"], r["choices"]["ABCD".index(r["answer"])], r["subject"]) for r in (
            s | {"choices": [s["choices"][k] for k in "ABCD"]} for s in source)] == [
            (r["question"], r["choices"][r["answer"]], r["category"]) for r in rows]
    # the same rows through the CSV form of the original: identical output
    for file, split in [(test, "test"), (dev, "dev")]:
        (tmp_path / "data" / split).mkdir(parents=True)
        subjects = {}
        for r in jsonl(file):
            subjects.setdefault(r["subject"], []).append([r["question"], *[r["choices"][k] for k in "ABCD"], r["answer"]])
        for subject, rows in subjects.items():
            (tmp_path / "data" / split / f"{subject}_{split}.csv").write_bytes(as_csv(*rows).encode())
    assert run("mmlu", "--src", tmp_path / "data", "--out", tmp_path / "again", "--any-version").returncode == 0
    assert jsonl(tmp_path / "again" / "dev.jsonl") == jsonl(out / "dev.jsonl")
    assert Counter(map(json.dumps, jsonl(tmp_path / "again" / "test.jsonl"))) == Counter(
        map(json.dumps, jsonl(out / "test.jsonl")))
