# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""MIS test: 2,285 unsafe pairs of images with a question (1,675 easy, 510 hard, 100 real) -> test.jsonl, meta.json

Ding et al. 2025, https://arxiv.org/abs/2501.18533, https://huggingface.co/datasets/Tuwhy/MIS_Test, licence Apache-2.0.

Images are needed, so fetch the set first and unpack its archives; nothing is downloaded here:

    hf download Tuwhy/MIS_Test --repo-type dataset --local-dir mis_test
    python data/mis/prepare.py --src mis_test/       # the folder with mis_easy.json, mis_hard.json, mis_real.json

What to know before using a number from it:
- Every item is unsafe: an attack rate of 0 is reached by refusing everything. Report a benign multi-image set beside
  it.
- The texts of real are taken from easy and hard: it is not independent of them. Give rates by `split`.
- The training set descends from MM-SafetyBench and AdvBench: after MIRage training, those two are not held-out.
- datasets.load_dataset fails on these files (the card leaves out id): here the JSON is read as it is.
- No revision or checksum is established: the counts are checked, the checksum of the three lists is recorded.
- Images are looked for, never opened. Rows without their images stop the run; --any-version leaves them out.
- This script prints counts and never a question.
- Checked in DripNowhy/MIS, README.md and evaluation/{inference_vllm,gpt_eval}.py: file names, layout, keys but id.
Row: {"id": "mis-easy-1", "prompt", "category", "label": "forbidden", "images": [2 absolute paths], "sub_category",
"split"}.
"""
import argparse, hashlib, json, os, sys
from collections import Counter
from pathlib import Path

LICENCE = "Apache-2.0"
COUNTS = {"easy": 1675, "hard": 510, "real": 100}


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


# copied from data/advbench/prepare.py: field
def field(row, key, where):
    if not isinstance(row.get(key), str) or not row[key].strip():
        die(f"{where}: {key}: expected a text that is not empty")
    return row[key]


# copied from data/labsafety/prepare.py: read_json
def read_json(raw, name, kind, expected):
    """The JSON value of a whole file; a line is named where it is no JSON."""
    try:
        value = json.loads(raw)
    except ValueError as e:
        die(f"{name}:{getattr(e, 'lineno', 1)}: file: expected {expected}")
    if not isinstance(value, kind):
        die(f"{name}:1: file: expected {expected}")
    return value


def with_images(rows, root, any_version):
    """The rows whose images exist below root, with absolute paths. Images are looked for, never opened."""
    kept, gone = [], []
    for row in rows:
        if any(Path(p).is_absolute() or ".." in Path(p).parts for p in row["images"]):
            die(f"{row['id']}: images: expected paths below {root}")
        paths = [(root / p).absolute() for p in row["images"]]
        gone += [p for p in paths if not p.is_file()]
        if all(p.is_file() for p in paths):
            kept.append(row | {"images": [str(p) for p in paths]})
    if gone:
        differs(f"{gone[0]}: no such image, and {len(gone) - 1} others: {len(kept)} of {len(rows)} rows have theirs",
                any_version)
    return kept


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
    ap.add_argument("--src", metavar="DIR", type=Path, help="the folder with mis_*.json and the image folders")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another count or lost images, with a warning")
    ap.error = die
    args = ap.parse_args()
    if not args.src:
        die("give --src DIR, from: hf download Tuwhy/MIS_Test --repo-type dataset --local-dir DIR, archives unpacked")

    rows, digest = [], hashlib.sha256()
    for split, n in COUNTS.items():
        name, first = args.src / f"mis_{split}.json", len(rows)
        try:
            raw = name.read_bytes()
        except OSError as e:
            die(f"{name}: cannot be read ({e.strerror})")
        digest.update(raw)
        for i, row in enumerate(read_json(raw, name, list, "a list of objects"), 1):
            where = f"{name}: item {i}"
            if not isinstance(row, dict) or not str(row.get("id")).isdecimal():  # a number, or its digits
                die(f"{where}: id: expected an object with a whole number")
            rows.append({"id": f"mis-{split}-{row['id']}", "prompt": field(row, "question", where),
                         "category": field(row, "category", where), "label": "forbidden",
                         "images": [field(row, "image_path1", where), field(row, "image_path2", where)],
                         "sub_category": field(row, "sub_category", where), "split": split})
        twice = len(rows) - len({row["id"] for row in rows})
        if len(rows) - first != n or twice:
            differs(f"{name}: {len(rows) - first} items, {twice} ids twice, expected {n} and 0", args.any_version)
    rows = with_images(rows, args.src, args.any_version)
    meta = {"source": args.src.resolve().name, "revision": None, "sha256": digest.hexdigest(),
            "n": dict(Counter(row["split"] for row in rows)), "licence": LICENCE}
    write(args.out, {"test.jsonl": rows, "meta.json": [meta]})
    print(f"{args.out / 'test.jsonl'}: {len(rows)} questions with two images, all forbidden: "
          + ", ".join(f"{k} {n}" for k, n in meta["n"].items()) + "\ncategories: "
          + ", ".join(f"{c} {n}" for c, n in Counter(row["category"] for row in rows).most_common())
          + f"\nsha256 {meta['sha256']}")


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). tests/test_data_safety.py runs the code on a small
# folder of the same layout.
