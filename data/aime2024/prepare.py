# /// script
# requires-python = ">=3.10"
# dependencies = ["pyarrow"]
# ///
"""AIME 2024: the 30 problems of the two exams (I and II, 15 each) -> test.jsonl, meta.json

American Invitational Mathematics Examination, Mathematical Association of America. Copy:
https://huggingface.co/datasets/HuggingFaceH4/aime_2024, whose card states no licence.

    uv run data/aime2024/prepare.py                     # download the pinned parquet file, 0.1 MB
    python data/aime2024/prepare.py                     # the same where pyarrow is installed: only parquet needs it
    python data/aime2024/prepare.py --src train-00000-of-00001.parquet      # or read your copy; --out DIR: elsewhere
    python data/aime2024/prepare.py --any-version --src aime_2024_problems.parquet      # or Maxwell-Jia/AIME_2024
    python data/aime2024/prepare.py --any-version --src test.jsonl          # or JSONL with the same columns as either

What to know before using a number from it:
- 30 problems: one problem is 3.3 points, and the 95 % interval of a single greedy run is about 35 points wide. Reports
  therefore average many samples a problem (avg@32, avg@64); greedy and sampled figures are not comparable.
- `answer` is an integer from 0 to 999. Copies write 33 as "033", "33" or 33: here always "33". Compare numbers.
- The pinned copy numbers its rows 60 to 89 in an order that is not the exam's. The id here is made from its url.
- Copies differ in wording: early revisions of Maxwell-Jia/AIME_2024 had errors in I-5, I-6 and II-10. Name the copy.
- Checked in huggingface/open-r1, src/open_r1/evaluate.py: set, split, columns; url, "033", checksum: public manifests.
Row: {"id": "2024-I-1", "question", "answer": "204", "solution"}.
"""
import argparse, hashlib, io, json, os, re, sys
from pathlib import Path

REVISION = "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"
URL = f"https://huggingface.co/datasets/HuggingFaceH4/aime_2024/resolve/{REVISION}/data/train-00000-of-00001.parquet"
SHA256 = "26139847601a5037c237d5928b195e7260ca8074cf4f264b794af42847f79ccf"
LICENCE = "not stated on the card; the problems are the Mathematical Association of America's"
IDS = [f"2024-{exam}-{i}" for exam in ("I", "II") for i in range(1, 16)]
PLACE = re.compile(r"2024_AIME_(I{1,2})_Problems/Problem_([0-9]+)|^2024-(I{1,2})-([0-9]+)$")  # url, or the other's ID


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


# copied from data/arc/prepare.py: read_parquet
def read_parquet(raw, name):
    """Yields (row number from 1, row)."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        die(f"{name}: reading parquet needs the package pyarrow: uv run {sys.argv[0]}, or pip install pyarrow")
    try:
        rows = parquet.read_table(io.BytesIO(raw)).to_pylist()
    except (ValueError, OSError) as e:  # pyarrow's own errors are subclasses
        die(f"{name}: not a parquet file ({str(e).splitlines()[0]})")
    yield from enumerate(rows, 1)


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
    ap.add_argument("--src", metavar="FILE", help="a local copy, parquet or .jsonl, instead of the download")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    raw, name = fetch(args.src, URL), args.src or URL
    sha = hashlib.sha256(raw).hexdigest()
    if sha != SHA256:
        differs(f"{name}: sha256 {sha}, expected {SHA256}", args.any_version)
    rows = []
    for line, row in (read_jsonl if name.endswith(".jsonl") else read_parquet)(raw, name):
        where = f"{name}:{line}"
        row = {"url" if k == "ID" else k.lower(): v for k, v in row.items()}  # Maxwell-Jia: ID, Problem, Answer, ..
        question, solution, place = (field(row, k, where) for k in ("problem", "solution", "url"))
        place = PLACE.search(place)
        if not place:
            die(f"{where}: url: expected .../2024_AIME_I_Problems/Problem_1 (or ID 2024-I-1)")
        if not re.fullmatch(r"\s*[0-9]{1,3}\s*", str(row.get("answer"))):
            die(f"{where}: answer: expected an integer from 0 to 999")
        rows.append({"id": "2024-" + "-".join(filter(None, place.groups())), "question": question,
                     "answer": str(int(row["answer"])), "solution": solution})
    rows.sort(key=lambda row: (row["id"].split("-")[1], int(row["id"].split("-")[2])))  # as in the exams
    if [row["id"] for row in rows] != IDS:
        differs(f"{name}: {len(rows)} problems, {len({row['id'] for row in rows} & set(IDS))} of the exams' 30, "
                "expected each of the 30 once", args.any_version)
    pinned = sha == SHA256
    meta = {"source": URL if pinned else Path(name).name, "revision": REVISION if pinned else None, "sha256": sha,
            "n": len(rows), "licence": LICENCE}
    write(args.out, {"test.jsonl": rows, "meta.json": [meta]})
    first = sum(row["id"].startswith("2024-I-") for row in rows)
    print(f"{args.out / 'test.jsonl'}: {len(rows)} problems: exam I {first}, exam II {len(rows) - first}\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). The revision, the checksum and the count are the
# published ones; tests/test_data_general.py runs the code on a small file of the same shape.
