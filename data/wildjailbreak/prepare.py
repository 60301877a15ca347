# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""WildJailbreak, evaluation part: 2,000 adversarial harmful, 210 adversarial benign -> prompts.jsonl, meta.json

Jiang et al. 2024, https://arxiv.org/abs/2406.18510, https://huggingface.co/datasets/allenai/wildjailbreak.
Licence: ODC-BY.

The set is GATED: nothing is downloaded here. Accept its terms on that page, fetch the files with your own account, and
name the one to convert:

    hf download allenai/wildjailbreak eval/eval.tsv train/train.tsv --repo-type dataset --local-dir wildjailbreak \\
        --revision 5ddc12a7894f842b0619b8e1c7ee496b198af009
    python data/wildjailbreak/prepare.py --src wildjailbreak/eval/eval.tsv
    python data/wildjailbreak/prepare.py --src wildjailbreak/train/train.tsv     # 261,559 rows -> train.jsonl

What to know before using a number from it:
- The header tells the two files apart: vanilla, adversarial, completion, data_type is train; adversarial, data_type
  without vanilla is eval. The prompt is `adversarial` in adversarial rows, else `vanilla`. Completions are not
  written. The column label of eval, 1 harmful and 0 benign, says what data_type says and is not read.
- adversarial_benign rows look like jailbreaks and are not (label allowed): their refusals are the over-refusal rate.
  Never pool the labels: with 2,000 to 210, refusing everything would look like 90 % right.
- SafeChain's WildJailbreakEval (300 rows) is another, smaller set made from this one.
- Evaluation prompts must not be trained on; the train file may hold near copies of them.
- The checksums were read in public code that pins this revision, not computed from the files here.
- The terms are yours: keep the rows to yourself. This script prints counts and never a prompt.
- Checked in Virtue-Research/guard-eval-harness, .../datasets/wildjailbreak.py: columns, labels, tab, empty fields kept.
Row: {"id": "wildjailbreak-eval-1" or "wildjailbreak-train-1", "prompt", "category": data_type, "label": "forbidden"
for _harmful, "allowed" for _benign}; the number is the 1-based row of its file.
"""
import argparse, csv, hashlib, io, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "5ddc12a7894f842b0619b8e1c7ee496b198af009"
LICENCE = "ODC-BY, gated: not to be passed on without its terms"
TYPES = {f"{kind}_{label}": which for kind in ("vanilla", "adversarial")
         for label, which in (("harmful", "forbidden"), ("benign", "allowed"))}
SETS = {  # split: (file, checksum, rows, rows by data_type where published, file written, its meta)
    "eval": ("eval/eval.tsv", "eeb7e43aafa0151588f5cb8994b99adc0ee34a57819d92f43a6084f0b7fe4fa4", 2210,
             {"adversarial_harmful": 2000, "adversarial_benign": 210}, "prompts.jsonl", "meta.json"),
    "train": ("train/train.tsv", "376719bfdb46ad1a19e7ba4f587f80cc7cb1368cc213ee647ef739c170550f7a", 261559,
              None, "train.jsonl", "meta_train.json")}


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


def read_tsv(raw, name):
    """Yields (split, last line of the row, row). Tab-separated, quoted like CSV: fields may hold tabs and newlines."""
    csv.field_size_limit(1 << 24)  # completions are longer than the default limit
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), delimiter="\t")
        columns = set(reader.fieldnames or [])
        if not {"adversarial", "data_type"} <= columns:
            die(f"{name}:1: header: expected tab-separated columns, adversarial and data_type among them")
        split = "train" if "vanilla" in columns else "eval"
        for row in reader:
            if None in row or None in row.values():
                die(f"{name}:{reader.line_num}: row: expected {len(reader.fieldnames)} fields")
            yield split, reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as e:
        die(f"{name}: expected UTF-8 TSV ({e})")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="FILE", help="eval.tsv or train.tsv, fetched with your own account")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()
    if not args.src:
        die("WildJailbreak is gated: accept its terms at https://huggingface.co/datasets/allenai/wildjailbreak, fetch "
            "eval/eval.tsv (or train/train.tsv) with your account, then --src FILE")

    try:
        raw, name = Path(args.src).read_bytes(), args.src
    except OSError as e:
        die(f"{args.src}: cannot be read ({e.strerror})")
    sha, rows, split = hashlib.sha256(raw).hexdigest(), [], "eval"
    for split, line, row in read_tsv(raw, name):
        where, kind = f"{name}:{line}", row["data_type"]
        if kind not in TYPES:
            die(f"{where}: data_type: expected one of {', '.join(TYPES)}")
        if split == "eval" and kind.startswith("vanilla"):
            die(f"{where}: data_type: expected adversarial rows where there is no column vanilla")
        rows.append({"id": f"wildjailbreak-{split}-{len(rows) + 1}",
                     "prompt": field(row, kind.split("_")[0], where), "category": kind, "label": TYPES[kind]})
    file, expected, n, types, target, meta_file = SETS[split]
    if sha != expected:
        differs(f"{name}: sha256 {sha}, expected {expected} of {file}", args.any_version)
    counts = Counter(row["category"] for row in rows)
    found = ", ".join(f"{c} {k}" for c, k in counts.most_common())
    if len(rows) != n or types and counts != types:
        differs(f"{name}: {len(rows)} rows ({found}), expected {n}"
                + (f" ({', '.join(f'{c} {k}' for c, k in types.items())})" if types else ""), args.any_version)
    meta = {"source": f"allenai/wildjailbreak {file}" if sha == expected else Path(name).name,
            "revision": REVISION if sha == expected else None, "sha256": sha, "n": len(rows), "licence": LICENCE}
    write(args.out, {target: rows, meta_file: [meta]})
    print(f"{args.out / target}: {len(rows)} prompts: {found}\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the originals here (gated, no copy of them). tests/test_data_safety.py runs the code on small files of
# the same shape.
