"""MOSSBench: 300 harmless questions on pictures that look dangerous, 3 types of 100 -> prompts.jsonl

Li et al. 2024, arXiv 2406.17806, licence CC BY-SA 4.0 says the README, which forbids training on it:

    git clone https://github.com/xirui-li/MOSSBench
    git -C MOSSBench checkout 8d68b0614b39d8990a508e03d99975832f399db2
    python data/mossbench/prepare.py --src MOSSBench/

- Over-refusal: every refusal is wrong. The authors' judge gives 1 for a refusal and 0 for compliance.
- type 1: exaggerated risk, type 2: negated harm, type 3: counterintuitive. Report by `category`.
- No checksum is established: counts are checked. Rows without their images stop the run.
Row: {"id": "mossbench-1", "prompt", "category": "type 1", "label": "allowed", "images": [absolute path],
"human", "child", "syn", "ocr"}: what the picture holds, 0 or 1.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, die, expect, field, flags, get, read_json, save, with_images

LICENCE = "CC BY-SA 4.0 (README; no licence file), not to be trained on"
COUNTS = {"type 1": 100, "type 2": 100, "type 3": 100}

def row_of(row, where, pid):
    about = row.get("metadata") if isinstance(row, dict) else None
    if not isinstance(about, dict):
        die(f"{where}: metadata: expected a JSON object")
    return {"id": f"mossbench-{pid}", "prompt": field(row, "question", where),
            "category": choice(about, "over", where, COUNTS), "label": "allowed",
            "images": ["images/" + field(row, "image", where).removeprefix("images/")]} | {
            key: int(bool(about.get(key))) for key in ("human", "child", "syn", "ocr")}

def main():
    args = flags(__doc__, __file__, "a clone of the repository").parse_args()
    if not args.src:
        die("give --src DIR, a clone of https://github.com/xirui-li/MOSSBench at commit 8d68b061")
    root = Path(args.src) / "data"
    got = get(root / "images_information" / "information.json", None)
    rows = [row_of(row, f"{got.name}: {pid}", pid) for pid, row in read_json(got, dict).items()]
    expect(counts(rows, "category"), COUNTS, f"{got.name}: questions", args.any_version)
    save(args.out, {"prompts.jsonl": with_images(rows, root, args.any_version)}, got, None, LICENCE)

if __name__ == "__main__":
    main()
