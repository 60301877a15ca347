# /// script
# requires-python = ">=3.10"
# dependencies = ["pyarrow>=14"]
# ///
"""CoSApien: 200 human-written prompts under 5 safety configurations, 40 each -> prompts.jsonl, meta.json

Zhang et al. 2024, https://arxiv.org/abs/2410.08968, https://huggingface.co/datasets/microsoft/CoSApien. The licence was
not established: read the card before passing rows on.

    python data/cosapien/prepare.py                          # download the five pinned parquet files
    python data/cosapien/prepare.py --src CoSApien/data/     # or a folder or files named SPLIT*.parquet, .jsonl or .csv

What to know before using a number from it:
- The same prompt can be right under one configuration and wrong under another: a row means nothing without `scenario`,
  the text of its safety guideline. An answer is scored for helpfulness and for keeping to that guideline (CoSA-Score).
- `label` follows the column type where the source has one: safe and allowed -> allowed, disallowed -> forbidden.
  partial (a part may be answered) and rows without a type have null, which no refusal scorer accepts: on purpose
  (NVIDIA's guard evaluation counts partial as unsafe).
- Pinned is the first author's upload of December 2024. The revision of microsoft/CoSApien, the official place, is not
  established; take it with --src. No checksum is published: counts are checked, the checksum is recorded.
- Human evaluation in the paper had a single annotator. n is 40 a configuration: give intervals.
- Parquet needs pyarrow (uv run installs it). This script prints counts and never a prompt.
- Checked in NVIDIA-NeMo/Guardrails, examples/e2e_tests/test_content_safety_rail.py: splits, columns, the four types.
Row: {"id": "cosapien-game_development-1", "prompt", "category": configuration, "label", "type", "scenario"}; the
number is the 1-based row of its file.
"""
import argparse, csv, hashlib, io, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "2bf078061c023d66b4be8879d68d1adab5525bee"
URL = f"https://huggingface.co/datasets/jackzhang/CoSApien/resolve/{REVISION}/data/"
LICENCE = "not established"
SPLITS = ["game_development", "public_prosecutor", "book_publisher_arab", "language_learning", "film_production"]
N = 40
LABELS = {"allowed": "allowed", "safe": "allowed", "disallowed": "forbidden"}


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


# copied from data/advbench/prepare.py: read_csv
def read_csv(raw, name, columns):
    """Yields (last line of the row, row). Quoted fields may hold commas and newlines: lines are never split by hand."""
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""))
        if not set(columns) <= set(reader.fieldnames or []):  # what stands there may be a prompt: not shown
            die(f"{name}:1: header: expected the columns {','.join(columns)}")
        for row in reader:
            if None in row or None in row.values():
                die(f"{name}:{reader.line_num}: row: expected {len(reader.fieldnames)} fields")
            yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as e:
        die(f"{name}: expected UTF-8 CSV ({e})")


# copied from data/advbench/prepare.py: field
def field(row, key, where):
    if not isinstance(row.get(key), str) or not row[key].strip():
        die(f"{where}: {key}: expected a text that is not empty")
    return row[key]


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


# copied from data/labsafety/prepare.py: read_parquet
def read_parquet(raw, name):
    """Yields (1-based row, row)."""
    try:
        import pyarrow, pyarrow.parquet
    except ImportError:
        die(f"{name}: reading parquet needs pyarrow: pip install pyarrow, or start this script with uv run")
    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(raw)).to_pylist()
    except (pyarrow.ArrowException, OSError) as e:
        die(f"{name}: not a parquet file ({str(e).splitlines()[0]})")
    yield from enumerate(rows, 1)


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
    ap.add_argument("--src", metavar="PATH", nargs="+", help="a folder or files named after the configurations")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another count, with a warning")
    ap.error = die
    args = ap.parse_args()

    files = []
    for path in map(Path, args.src or []):
        found = [p for p in sorted(path.iterdir()) if p.name.startswith(tuple(SPLITS))] if path.is_dir() else [path]
        if not found:
            die(f"{path}: expected files named {', '.join(SPLITS)}")
        files += found
    rows, digest, name = [], hashlib.sha256(), " ".join(args.src or [URL])
    for file in map(str, files or [f"{URL}{split}-00000-of-00001.parquet" for split in SPLITS]):
        split = next((s for s in SPLITS if Path(file).name.startswith(s)), None)
        if not split or Path(file).suffix not in (".parquet", ".jsonl", ".csv"):
            die(f"{file}: expected .parquet, .jsonl or .csv, named {', '.join(SPLITS)}")
        raw = fetch(files and file, file)
        digest.update(raw)
        reader = {".parquet": read_parquet, ".jsonl": read_jsonl}.get(
            Path(file).suffix, lambda raw, name: read_csv(raw, name, ["prompt", "scenario"]))
        for i, (line, row) in enumerate(reader(raw, file), 1):
            where, kind = f"{file}:{line}", row.get("type") or None  # CSV: "" is no type
            if kind is not None and str(kind).strip().lower() not in (*LABELS, "partial"):
                die(f"{where}: type: expected {', '.join(LABELS)} or partial")
            kind = kind and kind.strip().lower()
            rows.append({"id": f"cosapien-{split}-{i}", "prompt": field(row, "prompt", where), "category": split,
                         "label": LABELS.get(kind), "type": kind, "scenario": field(row, "scenario", where)})
    counts, types = Counter(row["category"] for row in rows), Counter(row["type"] or "no type" for row in rows)
    found = ", ".join(f"{c} {n}" for c, n in counts.items())
    if counts != dict.fromkeys(SPLITS, N) or len({row["id"] for row in rows}) != len(rows):
        differs(f"{name}: {len(rows)} prompts ({found}), expected {N} in each of {', '.join(SPLITS)}", args.any_version)
    meta = {"source": " ".join(Path(p).name for p in args.src) if args.src else URL, "sha256": digest.hexdigest(),
            "revision": None if args.src else REVISION, "n": len(rows), "licence": LICENCE}
    write(args.out, {"prompts.jsonl": rows, "meta.json": [meta]})
    print(f"{args.out / 'prompts.jsonl'}: {len(rows)} prompts: {found}\n"
          f"types: {', '.join(f'{c} {n}' for c, n in types.most_common())}\nsha256 {meta['sha256']}")


if __name__ == "__main__":
    main()

# Not run against the originals here (no network, no copy of them). tests/test_data_safety.py runs the code on small
# files of the same columns.
