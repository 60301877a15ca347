# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""OR-Bench: 1,319 hard prompts that look toxic and are not, 655 toxic prompts -> prompts.jsonl, meta.json

Cui et al. 2024, https://arxiv.org/abs/2405.20947, https://huggingface.co/datasets/bench-llm/or-bench.
Licence of the data: CC-BY-4.0.

    python data/orbench/prepare.py                                                 # download both pinned files, 0.2 MB
    python data/orbench/prepare.py --src or-bench-hard-1k.csv or-bench-toxic.csv   # or read your copies, one or both

What to know before using a number from it:
- hard-1k measures over-refusal (label allowed): a refusal there is the fault. toxic (label forbidden) is its control.
  The two rates belong in one chart and are never pooled.
- The file called hard-1k has 1,319 rows, and the toxic set, about 600 in the paper, has 655.
- Being allowed is by construction: language models wrote the prompts and voted on them. Some are arguable.
- The 80k file is the pool that hard-1k was drawn from; it is not read here.
- The checksums were read in public code that pins this revision (hard-1k) or names it beside an identical mirror
  (toxic).
- This script prints counts and never a prompt.
- Checked in reinainblood/Gym, benchmarks/or_bench_hard/prepare.py: both checksums, rows, the 10 categories of each.
Row: {"id": "orbench-hard-1" or "orbench-toxic-1", "prompt", "category", "label": "allowed" or "forbidden"}; the number
is the 1-based row of the file.
"""
import argparse, csv, hashlib, io, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "e36d8b80e81837c8a8f264bbb2a49f1b32c7e272"
URL = f"https://huggingface.co/datasets/bench-llm/or-bench/resolve/{REVISION}/"
LICENCE = "CC-BY-4.0"
FILES = {  # file: (subset, label, rows, checksum)
    "or-bench-hard-1k.csv": ("hard", "allowed", 1319,
                             "a6e2f1166416efe5901f3bb05c47dc92ab3aca3acfe143693d38b8057d841e6d"),
    "or-bench-toxic.csv": ("toxic", "forbidden", 655,
                           "3be45901faae3b4b2b51bf7f8a2784c1650a1cc8c631dbc8b171d5312d4e0057")}
CATEGORIES = 10


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
    ap.add_argument("--src", metavar="FILE", nargs="+", help="local copies of one or both files, under their own names")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    rows, digest, report, pinned, seen = [], hashlib.sha256(), [], True, set()
    for name in args.src or [URL + file for file in FILES]:
        file = name.rsplit("/", 1)[-1]
        if file not in FILES or file in seen:  # the columns are the same: only the name tells which is which
            die(f"{name}: expected {' and '.join(FILES)}, each at most once")
        seen.add(file)
        subset, label, n, expected = FILES[file]
        raw = fetch(args.src and name, name)
        digest.update(raw)
        sha, first = hashlib.sha256(raw).hexdigest(), len(rows)
        if sha != expected:
            differs(f"{name}: sha256 {sha}, expected {expected}", args.any_version)
            pinned = False
        for i, (line, row) in enumerate(read_csv(raw, name, ["prompt", "category"]), 1):
            where = f"{name}:{line}"
            rows.append({"id": f"orbench-{subset}-{i}", "prompt": field(row, "prompt", where),
                         "category": field(row, "category", where), "label": label})
        found = Counter(row["category"] for row in rows[first:])
        if (found.total(), len(found)) != (n, CATEGORIES):
            differs(f"{name}: {found.total()} prompts in {len(found)} categories, expected {n} in {CATEGORIES}",
                    args.any_version)
        report.append(f"{subset}: {found.total()} prompts, all {label}: "
                      + ", ".join(f"{c} {k}" for c, k in found.most_common()) + f"\n  sha256 {sha}")
    meta = {"source": URL if pinned else " ".join(Path(name).name for name in args.src or FILES),
            "revision": REVISION if pinned else None, "sha256": digest.hexdigest(), "n": len(rows), "licence": LICENCE}
    write(args.out, {"prompts.jsonl": rows, "meta.json": [meta]})
    print("\n".join([f"{args.out / 'prompts.jsonl'}: {len(rows)} prompts", *report,
                     f"sha256 {meta['sha256']}, of the files one after the other"]))


if __name__ == "__main__":
    main()

# Not run against the originals here (no network, no copy of them). The revision, the counts and the checksums are the
# published ones; tests/test_data_safety.py runs the code on small files of the same shape.
