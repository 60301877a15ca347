"""MIS test: 2,285 unsafe pairs of images with a question (1,675 easy, 510 hard, 100 real) -> test.jsonl

Ding et al. 2025, arXiv 2501.18533, https://huggingface.co/datasets/Tuwhy/MIS_Test, licence Apache-2.0. Images
are needed, so fetch the set first and unpack its archives:

    hf download Tuwhy/MIS_Test --repo-type dataset --local-dir mis_test
    python data/mis/prepare.py --src mis_test/     # the folder with mis_{easy,hard,real}.json

- Every item is unsafe: refusing everything gives an attack rate of 0. Report a benign multi-image set too.
- The texts of real are taken from easy and hard: it is not independent of them. Give rates by `split`.
- The training set descends from MM-SafetyBench and AdvBench: after MIRage those two are not held-out.
- datasets.load_dataset fails on these files (the card leaves out id): here the JSON is read as it is.
- No checksum is established: counts are checked. Rows without their images stop the run.
Row: {"id": "mis-easy-1", "prompt", "category", "label": "forbidden", "images": [2 absolute paths],
"sub_category", "split"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import counts, die, expect, field, flags, get, joined, read_rows, save, with_images

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
        die("give --src DIR, from: hf download Tuwhy/MIS_Test --repo-type dataset --local-dir DIR")
    gots = {split: get(Path(args.src) / f"mis_{split}.json", None) for split in COUNTS}
    rows = [row_of(row, f"{got.name}:{i}", split) for split, got in gots.items() for i, row in read_rows(got)]
    expect(counts(rows, "split"), COUNTS, f"{args.src}: items", args.any_version)
    expect(len(counts(rows, "id")), len(rows), f"{args.src}: different ids", args.any_version)
    rows = with_images(rows, args.src, args.any_version)
    got = joined(gots.values(), None, [Path(args.src).resolve()])
    save(args.out, {"test.jsonl": rows}, got, None, LICENCE, n=counts(rows, "split"))

if __name__ == "__main__":
    main()
