"""MIS test: 2,285 unsafe pairs of images with a question (1,675 easy, 510 hard, 100 real) -> test.jsonl, meta.json

Ding et al. 2025, https://arxiv.org/abs/2501.18533, https://huggingface.co/datasets/Tuwhy/MIS_Test, licence Apache-2.0.

Images are needed, so fetch the set first and unpack its archives; nothing is downloaded here:

    hf download Tuwhy/MIS_Test --repo-type dataset --local-dir mis_test
    python data/mis/prepare.py --src mis_test/       # the folder with mis_easy.json, mis_hard.json, mis_real.json

What to know before using a number from it:
- Every item is unsafe: refusing everything gives an attack rate of 0. Report a benign multi-image set beside it.
- The texts of real are taken from easy and hard: it is not independent of them. Give rates by `split`.
- The training set descends from MM-SafetyBench and AdvBench: after MIRage training, those two are not held-out.
- datasets.load_dataset fails on these files (the card leaves out id): here the JSON is read as it is.
- No revision or checksum is established: the counts are checked, the checksum of the three lists is recorded.
- Images are looked for, never opened. Rows without theirs stop the run; --any-version leaves them out.
Row: {"id": "mis-easy-1", "prompt", "category", "label": "forbidden", "images": [2 absolute paths], "sub_category",
"split"}. This script prints counts and never a question.
"""
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, joined, read_rows, save, with_images

LICENCE = "Apache-2.0"
COUNTS = {"easy": 1675, "hard": 510, "real": 100}


def row_of(row, where, split):
    if not str(row.get("id")).isdecimal():  # a number, or its digits
        die(f"{where}: id: expected a whole number")
    return {"id": f"mis-{split}-{row['id']}", "prompt": field(row, "question", where),
            "category": field(row, "category", where), "label": "forbidden",
            "images": [field(row, "image_path1", where), field(row, "image_path2", where)],
            "sub_category": field(row, "sub_category", where), "split": split}


def main():
    args = flags(__doc__, __file__, "the folder with mis_*.json and the image folders").parse_args()
    if not args.src:
        die("give --src DIR, from: hf download Tuwhy/MIS_Test --repo-type dataset --local-dir DIR, archives unpacked")
    gots = {split: get(Path(args.src) / f"mis_{split}.json", None) for split in COUNTS}
    rows = [row_of(row, f"{got.name}:{i}", split) for split, got in gots.items() for i, row in read_rows(got)]
    n = Counter(row["split"] for row in rows)
    expect({split: n[split] for split in COUNTS}, COUNTS, f"{args.src}: items", args.any_version)
    expect(len({row["id"] for row in rows}), len(rows), f"{args.src}: different ids", args.any_version)
    rows = with_images(rows, args.src, args.any_version)
    got = joined(gots.values(), None, [Path(args.src).resolve()])
    save(args.out, {"test.jsonl": rows}, got, None, LICENCE, n=dict(Counter(row["split"] for row in rows)))


if __name__ == "__main__":
    main()
