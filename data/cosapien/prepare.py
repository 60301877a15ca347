# /// script
# requires-python = ">=3.10"
# dependencies = ["pyarrow>=14"]
# ///
"""CoSApien: 200 human-written prompts under 5 safety configurations, 40 each -> prompts.jsonl

Zhang et al. 2024, arXiv 2410.08968, https://huggingface.co/datasets/microsoft/CoSApien. The licence was not
established: read the card before passing rows on.

    python data/cosapien/prepare.py      # download five pinned parquet files (uv run: pyarrow)
    python data/cosapien/prepare.py --src CoSApien/data/    # a folder or files SPLIT*.parquet, .jsonl, .csv

- The same prompt can be right under one configuration and wrong under another: a row means nothing without
  `scenario`, the text of its guideline. Scored are helpfulness and keeping to it (CoSA-Score).
- `label`: type safe, allowed -> allowed, disallowed -> forbidden. partial (a part may be answered) and rows
  without a type have null, which no refusal scorer accepts: on purpose (NVIDIA counts partial as unsafe).
- Pinned is the first author's upload of December 2024; the official place comes by --src. No checksum is
  published: counts are checked, the checksum is recorded.
- Human evaluation in the paper had a single annotator. n is 40 a configuration: give intervals.
Row: {"id": "cosapien-film_production-1", "prompt", "category": configuration, "label", "type", "scenario"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, expect, field, flags, get, joined, pick, read_rows, save

REVISION = "2bf078061c023d66b4be8879d68d1adab5525bee"
URL = f"https://huggingface.co/datasets/jackzhang/CoSApien/resolve/{REVISION}/data/"
LICENCE = "not established"
SPLITS = ["game_development", "public_prosecutor", "book_publisher_arab", "language_learning",
          "film_production"]
COUNTS = dict.fromkeys(SPLITS, 40)
LABELS = {"allowed": "allowed", "safe": "allowed", "disallowed": "forbidden", "partial": None, None: None}

def row_of(row, where, key, split):
    kind = str(row.get("type") or "").strip().lower() or None  # CSV: "" is no type
    choice({"type": kind}, "type", where, LABELS)
    return {"id": key, "prompt": field(row, "prompt", where), "category": split, "label": LABELS[kind],
            "type": kind, "scenario": field(row, "scenario", where)}

def main():
    args = flags(__doc__, __file__, "a folder, or files named SPLIT*", nargs="+").parse_args()
    gots, rows = [], []
    for split, path in pick(args.src, {split: f"{split}*" for split in SPLITS}).items():
        got = get(path, f"{URL}{split}-00000-of-00001.parquet")
        gots.append(got)
        rows += [row_of(row, f"{got.name}:{line}", f"cosapien-{split}-{i}", split)
                 for i, (line, row) in enumerate(read_rows(got, ["prompt", "scenario"]), 1)]
    got = joined(gots, URL, args.src)
    expect(counts(rows, "category"), COUNTS, f"{got.name}: prompts", args.any_version)
    save(args.out, {"prompts.jsonl": rows}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
