# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""GSM8K: 1,319 test questions and the first 8 training questions -> test.jsonl, fewshot.jsonl, meta.json

Cobbe et al. 2021, https://arxiv.org/abs/2110.14168, https://github.com/openai/grade-school-math, licence MIT.

    python data/gsm8k/prepare.py                      # download both pinned files, 0.7 MB and 4.2 MB
    python data/gsm8k/prepare.py --src test.jsonl --train train.jsonl      # or read your copies; --out DIR: elsewhere
    python data/gsm8k/prepare.py --any-version --src test_first300.jsonl   # or part of the set

If one of the two files is given, the other is neither downloaded nor written.

What to know before using a number from it:
- `answer` is the number after "####" as the authors' grader finds it, with the thousands commas taken out: compare
  numbers, not texts (72, 72.0 and $72 are the same answer). It may be negative or have a decimal point.
- `solution` is the upstream answer, unchanged: worked steps with <<48/2=24>> calculator marks, then "#### N". With it
  a few-shot prompt is "Question: {question}\\nAnswer: {solution}", as in EleutherAI's lm-evaluation-harness.
- Those 8 are simply the first of the training file. They are neither the 8 hand-written examples of the
  chain-of-thought paper (2201.11903) nor the harness's draw: compare a score with them only with a score with them.
- Some test answers are known to be wrong, and it was public before today's models were trained.
- Checked in openai/grade-school-math, grade_school_math/dataset.py: fields, "#### ", commas; pin: public manifests.
Row: {"id": "gsm8k-test-1", "question", "answer": "72", "solution"}; the id holds the split and the 1-based line.
"""
import argparse, hashlib, json, os, re, sys
from pathlib import Path

REVISION = "3101c7d5072418e28b9008a6636bde82a006892c"
ROOT = f"https://raw.githubusercontent.com/openai/grade-school-math/{REVISION}/grade_school_math/data"
URLS = {"test": f"{ROOT}/test.jsonl", "train": f"{ROOT}/train.jsonl"}
SHA256 = {"test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
          "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"}
LICENCE = "MIT"
COUNTS = {"test": 1319, "train": 7473}
FEWSHOT = 8
WRITTEN = {"test": "test.jsonl", "train": "fewshot.jsonl"}
FINAL = re.compile(r"\s*\$?(-?[0-9.,]*[0-9])")  # right after the last ####


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


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="FILE", dest="test", help="a local copy of test.jsonl, instead of the download")
    ap.add_argument("--train", metavar="FILE", help="a local copy of train.jsonl")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    given = {split: src for split, src in (("test", args.test), ("train", args.train)) if src} or dict.fromkeys(URLS)
    files, source, shas = {}, {}, {}
    for split, src in given.items():
        raw, name, shas[split] = checked(src, URLS[split], SHA256[split], args.any_version)
        rows, n = [], 0
        for line, row in read_jsonl(raw, name):
            where, n = f"{name}:{line}", n + 1
            question, solution = field(row, "question", where), field(row, "answer", where)
            final = FINAL.match(solution.rpartition("####")[2]) if "####" in solution else None
            if not final:
                die(f"{where}: answer: expected #### and a number at the end")
            rows.append({"id": f"gsm8k-{split}-{line}", "question": question, "answer": final[1].replace(",", ""),
                         "solution": solution})
        if n != COUNTS[split]:
            differs(f"{name}: {split}: {n} questions, expected {COUNTS[split]}", args.any_version)
        files[WRITTEN[split]] = rows if split == "test" else rows[:FEWSHOT]
        source[split] = URLS[split] if shas[split] == SHA256[split] else Path(name).name
    pinned = all(shas[split] == SHA256[split] for split in shas)
    meta = {"source": source, "revision": REVISION if pinned else None, "sha256": shas,
            "n": {name: len(rows) for name, rows in files.items()}, "licence": LICENCE}
    write(args.out, files | {"meta.json": [meta]})
    for name, rows in files.items():
        print(f"{args.out / name}: {len(rows)} questions")
    for split, sha in shas.items():
        print(f"{split} sha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the whole original here (no network, no copy of it): the commit, the checksums and the counts are the
# published ones. tests/test_data_general.py runs the code on small files and on the first 300 and 200 rows.
