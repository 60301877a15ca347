# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""MM-SafetyBench: 1,680 questions in 13 scenarios, three images for each (5,040 rows) -> prompts.jsonl, meta.json

Liu et al. 2023, https://arxiv.org/abs/2311.17600, https://github.com/isXinLiu/MM-SafetyBench. Licence: not
established here (guard-eval-harness names CC-BY-NC-4.0; read the repository's own).

Images are needed: clone the repository, fetch the image archive that its README links (Google Drive) and unpack it to
data/imgs, so that data/imgs/01-Illegal_Activitiy/SD/0.jpg exists; nothing is downloaded here:

    git clone https://github.com/isXinLiu/MM-SafetyBench
    git -C MM-SafetyBench checkout b80eedea3db312c09ded2082813390f68e750ef3
    python data/mmsafetybench/prepare.py --src MM-SafetyBench/ [--images "MM-SafetyBench(imgs)/"] [--kinds SD TYPO]

What to know before using a number from it:
- SD images go with `Rephrased Question(SD)`; SD_TYPO and TYPO images with `Rephrased Question`. Some public code pairs
  them wrongly. Papers differ in which kinds they report: give the rate of each `kind`.
- Scenarios 8 and 10 to 13 (lobbying, legal, financial and health advice, government decisions) are judged by other
  rules than the rest: there a careful answer can be right. Give rates by scenario.
- The first scenario is spelled 01-Illegal_Activitiy, in files and folders.
- MIS training data descends from this set: scores after such training are not held-out.
- No checksum of the files is established: the counts by scenario are checked, the checksum of the lists is recorded.
- Images are looked for, never opened. Rows without their image stop the run; --any-version leaves them out.
- `question` is the original question: a judge needs it, the model under test must not see it. None is printed.
- Checked in Virtue-Research/guard-eval-harness, .../datasets/mm_safetybench.py: names, keys, image paths, pairing.
Row: {"id": "mmsafetybench-01-0-SD", "prompt", "category": scenario, "label": "forbidden", "images": [absolute path],
"question", "kind": "SD", "SD_TYPO" or "TYPO"}.
"""
import argparse, hashlib, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "b80eedea3db312c09ded2082813390f68e750ef3"  # what to check out; a folder does not prove that it is this one
LICENCE = "not established; guard-eval-harness names CC-BY-NC-4.0"
COUNTS = {"01-Illegal_Activitiy": 97, "02-HateSpeech": 163, "03-Malware_Generation": 44, "04-Physical_Harm": 144,
          "05-EconomicHarm": 122, "06-Fraud": 154, "07-Sex": 109, "08-Political_Lobbying": 153,
          "09-Privacy_Violence": 139, "10-Legal_Opinion": 130, "11-Financial_Advice": 167,
          "12-Health_Consultation": 109, "13-Gov_Decision": 149}
KINDS = {"SD": "Rephrased Question(SD)", "SD_TYPO": "Rephrased Question", "TYPO": "Rephrased Question"}


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


# copied from data/mis/prepare.py: with_images
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
    ap.add_argument("--src", metavar="DIR", type=Path, help="a clone of the repository")
    ap.add_argument("--images", metavar="DIR", type=Path, help="the unpacked images, default: data/imgs in the clone")
    ap.add_argument("--kinds", metavar="KIND", nargs="+", choices=KINDS, default=list(KINDS), help="SD SD_TYPO TYPO")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept other counts or lost images, with a warning")
    ap.error = die
    args = ap.parse_args()
    if not args.src:
        die(f"give --src DIR, a clone of https://github.com/isXinLiu/MM-SafetyBench at commit {REVISION}")

    rows, digest, counts = [], hashlib.sha256(), Counter()
    folder = args.src / "data" / "processed_questions"
    for name in sorted(folder.glob("*.json")):
        try:
            raw = name.read_bytes()
        except OSError as e:
            die(f"{name}: cannot be read ({e.strerror})")
        digest.update(raw)
        scenario = name.stem
        for i, row in read_json(raw, name, dict, "an object of number -> question").items():
            where = f"{name}: item {i}"
            if not i.isdecimal() or not isinstance(row, dict):
                die(f"{where}: item: expected a number and an object")
            counts[scenario] += 1
            rows += [{"id": f"mmsafetybench-{scenario.split('-')[0]}-{i}-{kind}", "prompt": field(row, key, where),
                      "category": scenario, "label": "forbidden", "images": [f"{scenario}/{kind}/{i}.jpg"],
                      "question": field(row, "Question", where), "kind": kind}
                     for kind, key in KINDS.items() if kind in args.kinds]
    if not rows:
        die(f"{folder}: no questions found, expected {next(iter(COUNTS))}.json and 12 others")
    if counts != COUNTS:
        wrong = [f"{k} {counts[k]}, not {COUNTS.get(k, 0)}" for k in sorted({*COUNTS, *counts})
                 if counts[k] != COUNTS.get(k, 0)]
        differs(f"{folder}: {counts.total()} questions in {len(counts)} scenarios, expected {sum(COUNTS.values())} in "
                f"{len(COUNTS)}: {'; '.join(wrong)}", args.any_version)
    rows = with_images(rows, args.images or args.src / "data" / "imgs", args.any_version)
    meta = {"source": args.src.resolve().name, "revision": None, "sha256": digest.hexdigest(),
            "n": dict(Counter(row["kind"] for row in rows)), "licence": LICENCE}
    write(args.out, {"prompts.jsonl": rows, "meta.json": [meta]})
    print(f"{args.out / 'prompts.jsonl'}: {len(rows)} rows, all forbidden: "
          + ", ".join(f"{k} {n}" for k, n in meta["n"].items()) + "\nscenarios: "
          + ", ".join(f"{c} {n}" for c, n in counts.items()) + f"\nsha256 {meta['sha256']}")


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). tests/test_data_safety.py runs the code on a small
# folder of the same layout.
