# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""MBPP: 500 test problems, 257 sanitized ones, 10 for prompts -> test, sanitized and fewshot.jsonl, meta.json

Austin et al. 2021, https://arxiv.org/abs/2108.07732,
https://github.com/google-research/google-research/tree/master/mbpp, licence CC-BY-4.0.

    python data/mbpp/prepare.py                         # download both pinned files, 0.6 MB and 0.3 MB
    python data/mbpp/prepare.py --src mbpp.jsonl --sanitized sanitized-mbpp.json   # or read your copies

--out DIR: write elsewhere. If one of the two files is given, the other is neither downloaded nor written.

What to know before using a number from it:
- Splits are task ids: 1 to 10 for prompts (the paper: 2, 3 and 4), 11 to 510 test, 511 to 974 validation and training,
  which are not written. The sanitized file has 427 verified problems, 257 with a test id: two sets, two numbers.
- The name of the function stands only in the tests, so they belong in the prompt. The paper: "You are an expert
  Python programmer, and here is your task: {prompt} Your code should pass these tests:\\n\\n{tests}\\n[BEGIN]\\n{code}
  \\n[DONE]" (one line).
- The program to run is setup + the answer + every line of tests: untrusted code, in a child process with limits.
- Three tests miss wrong programs: MBPP+ (EvalPlus) has more tests on fewer problems, and its figures are lower.
- `code` is the authors' solution, unchanged (some with \\r\\n): for testing the runner and for few-shot prompts.
- Checked in google-research/google-research, mbpp/{README.md,mbpp.jsonl,sanitized-mbpp.json}: columns, types, split.
Row: {"id": "mbpp-11", "prompt", "tests": lines of Python, "code", "setup": Python to run before, often ""}.
"""
import argparse, hashlib, json, os, sys
from pathlib import Path

REVISION = "4700efb9afa54286b0e04473ba80a13e8461e25f"
ROOT = f"https://raw.githubusercontent.com/google-research/google-research/{REVISION}/mbpp"
URLS = {"full": f"{ROOT}/mbpp.jsonl", "sanitized": f"{ROOT}/sanitized-mbpp.json"}
SHA256 = {"full": "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
          "sanitized": "ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9"}
LICENCE = "CC-BY-4.0"
FEWSHOT, TEST = range(1, 11), range(11, 511)  # task ids
COUNTS = {"full": (974, 500), "sanitized": (427, 257)}  # rows in the file, and of the test split


# copied from data/advbench/prepare.py: die
def die(message):
    print(message, file=sys.stderr)
    raise SystemExit(2)


# copied from data/advbench/prepare.py: differs
def differs(message, any_version):
    """A checksum or a count that is not the published one stops the run; --any-version turns it into a warning."""
    if not any_version:
        die(f"{message}; --any-version accepts it")
    print(f"warning: {message}", file=sys.stderr)


# copied from data/advbench/prepare.py: fetch
def fetch(src, url):
    """The bytes of the local file src or, without one, of the pinned public URL."""
    if src:
        try:
            return Path(src).read_bytes()
        except OSError as e:
            die(f"{src}: cannot be read ({e.strerror})")
    import http.client, urllib.request  # here: importing these takes longer than converting a local file
    print(f"downloading {url}")
    raw = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            while chunk := response.read(1 << 20):
                raw += chunk
                print(f"\r  {len(raw) / 1e6:.1f} MB", end="", flush=True)
            if response.length:  # bytes announced and never sent: read() alone does not notice
                raise OSError("the connection closed early")
    except (OSError, http.client.HTTPException) as e:
        die(f"{url}: cannot be read ({e}); see --src")
    finally:
        print()
    return bytes(raw)


# copied from data/gsm8k/prepare.py: checked
def checked(src, url, sha256, any_version):
    """The bytes of a source, the name for messages, and the checksum after it was compared with the pinned one."""
    raw, name = fetch(src, url), src or url
    sha = hashlib.sha256(raw).hexdigest()
    if sha != sha256:
        differs(f"{name}: sha256 {sha}, expected {sha256}", any_version)
    return raw, name, sha


# copied from data/hellaswag/prepare.py: read_jsonl
def read_jsonl(raw, name):
    """Yields (line, row). Split at newline bytes only: texts may hold U+2028, which str.splitlines takes for one."""
    for line, text in enumerate(raw.split(b"\n"), 1):
        if text.strip():
            try:
                row = json.loads(text)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                die(f"{name}:{line}: row: expected one JSON object")
            yield line, row


# copied from data/truthfulqa/prepare.py: read_array
def read_array(raw, name):
    """Yields (where, row) of a JSON array of objects; items count from 1."""
    try:
        rows = json.loads(raw)
    except ValueError as e:
        die(f"{name}:{getattr(e, 'lineno', 1)}: file: expected one JSON array")
    if not isinstance(rows, list):
        die(f"{name}:1: file: expected one JSON array")
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            die(f"{name}: item {i}: row: expected one JSON object")
        yield f"{name}: item {i}", row


# copied from data/advbench/prepare.py: field
def field(row, key, where):
    if not isinstance(row.get(key), str) or not row[key].strip():
        die(f"{where}: {key}: expected a text that is not empty")
    return row[key]


# copied from data/advbench/prepare.py: write
def write(out, files):
    """All files under temporary names, then the renames: nothing is ever half-written."""
    temps = {name: out / f".{name}.tmp-{os.getpid()}" for name in files}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():  # ASCII: no U+2028 inside a row for a careless reader to split at
            temps[name].write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
        for name, temp in temps.items():
            os.replace(temp, out / name)
    except OSError as e:
        for temp in temps.values():
            if temp.exists():
                temp.unlink()
        die(f"{out}: cannot be written ({e.strerror or e})")


def problem(row, where):
    task, tests = row.get("task_id"), row.get("test_list")
    if type(task) is not int or task < 1:
        die(f"{where}: task_id: expected a positive integer")
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) and t.strip() for t in tests):
        die(f"{where}: test_list: expected a list of texts that are not empty")
    setup = row.get("test_setup_code", row.get("test_imports"))  # a text in the full file, a list in the sanitized one
    setup = "\n".join(setup) if isinstance(setup, list) and all(isinstance(s, str) for s in setup) else setup
    if not isinstance(setup, str):
        die(f"{where}: test_setup_code or test_imports: expected a text or a list of texts")
    return task, {"id": f"mbpp-{task}", "prompt": field(row, "text" if "text" in row else "prompt", where),
                  "tests": tests, "code": field(row, "code", where), "setup": setup}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="FILE", dest="full", help="a local copy of mbpp.jsonl, instead of the download")
    ap.add_argument("--sanitized", metavar="FILE", help="a local copy of sanitized-mbpp.json")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    given = {k: src for k, src in (("full", args.full), ("sanitized", args.sanitized)) if src} or dict.fromkeys(URLS)
    files, source, shas = {}, {}, {}
    for key, src in given.items():
        raw, name, shas[key] = checked(src, URLS[key], SHA256[key], args.any_version)
        items = read_array(raw, name) if key == "sanitized" else (
            (f"{name}:{line}", row) for line, row in read_jsonl(raw, name))
        tasks = {}
        for where, row in items:
            task, converted = problem(row, where)
            if task in tasks:
                die(f"{where}: task_id: expected one that did not occur before")
            tasks[task] = converted
        test = [row for task, row in tasks.items() if task in TEST]
        if (len(tasks), len(test)) != COUNTS[key]:
            differs(f"{name}: {len(tasks)} problems, {len(test)} of them test, expected {COUNTS[key][0]} and "
                    f"{COUNTS[key][1]}", args.any_version)
        files["test.jsonl" if key == "full" else "sanitized.jsonl"] = test
        if key == "full":
            files["fewshot.jsonl"] = [row for task, row in tasks.items() if task in FEWSHOT]
        source[key] = URLS[key] if shas[key] == SHA256[key] else Path(name).name
    pinned = all(shas[k] == SHA256[k] for k in shas)
    meta = {"source": source, "revision": REVISION if pinned else None, "sha256": shas,
            "n": {name: len(rows) for name, rows in files.items()}, "licence": LICENCE}
    write(args.out, files | {"meta.json": [meta]})
    for name, rows in files.items():
        print(f"{args.out / name}: {len(rows)} problems, {sum(bool(row['setup']) for row in rows)} with setup")
    for key, sha in shas.items():
        print(f"{key} sha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the originals here (no network, no copy of them). The commit, the checksums and the counts are the
# published ones; tests/test_data_general.py runs the code on small files of the same shape.
