# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""MATH-500: 500 competition problems, the test half of PRM800K's split of MATH -> test.jsonl, meta.json

Problems: Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874; selection: Lightman et al. 2023,
https://arxiv.org/abs/2305.20050. Copy: https://huggingface.co/datasets/HuggingFaceH4/MATH-500, whose card states no
licence at this revision (the selection is in openai/prm800k and the problems in hendrycks/math, both MIT).

    python data/math500/prepare.py                      # download the pinned file, 0.4 MB
    python data/math500/prepare.py --src test.jsonl     # or read your copy; --out DIR: write elsewhere

What to know before using a number from it:
- `answer` is LaTeX, taken out of the \\boxed{} of the solution: fractions, intervals, matrices, units, text. Comparing
  texts undercounts: "\\frac{1}{2}", "1/2" and "0.5" are one answer. Use math-verify or another symbolic comparison,
  and name it, for graders differ by several points. `solution` is the worked solution, unchanged.
- Levels and subjects are not balanced: report the total, and n beside every part.
- The other 12,000 problems of MATH are common training data (PRM800K itself trains on 4,500 of its test set).
- Checked in openai/prm800k, prm800k/math_splits/test.jsonl: its Git LFS pointer has this checksum, 446,564 bytes.
Row: {"id": upstream's unique_id, "question", "answer", "solution", "category": subject, "level": 1..5}.
"""
import argparse, hashlib, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"
URL = f"https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/{REVISION}/test.jsonl"
SHA256 = "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"
LICENCE = "not stated at this revision; openai/prm800k and hendrycks/math, where it comes from, are MIT"
N = 500


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
    ap.add_argument("--src", metavar="FILE", help="a local copy of test.jsonl, instead of the download")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    raw, name = fetch(args.src, URL), args.src or URL
    sha = hashlib.sha256(raw).hexdigest()
    if sha != SHA256:
        differs(f"{name}: sha256 {sha}, expected {SHA256}", args.any_version)
    rows, seen = [], set()
    for line, row in read_jsonl(raw, name):
        where = f"{name}:{line}"
        key, question, answer, solution, subject = (
            field(row, k, where) for k in ("unique_id", "problem", "answer", "solution", "subject"))
        if key in seen:
            die(f"{where}: unique_id: expected one that did not occur before")
        if row.get("level") not in (1, 2, 3, 4, 5):
            die(f"{where}: level: expected 1, 2, 3, 4 or 5")
        seen.add(key)
        rows.append({"id": key, "question": question, "answer": answer, "solution": solution, "category": subject,
                     "level": row["level"]})
    if len(rows) != N:
        differs(f"{name}: {len(rows)} problems, expected {N}", args.any_version)
    pinned = sha == SHA256
    meta = {"source": URL if pinned else Path(name).name, "revision": REVISION if pinned else None, "sha256": sha,
            "n": len(rows), "licence": LICENCE}
    write(args.out, {"test.jsonl": rows, "meta.json": [meta]})
    found = ", ".join(f"{c} {n}" for c, n in Counter(row["category"] for row in rows).most_common())
    print(f"{args.out / 'test.jsonl'}: {len(rows)} problems: {found}\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). The revision, the checksum and the count are the
# published ones; tests/test_data_general.py runs the code on a small file of the same shape.
