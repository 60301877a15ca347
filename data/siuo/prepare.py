"""SIUO: 167 pictures and texts, each safe alone, unsafe together; 9 domains -> prompts.jsonl

Wang et al. 2024, arXiv 2406.15279, https://huggingface.co/datasets/sinwang/SIUO; its licence is not
established here.

    hf download sinwang/SIUO --repo-type dataset --local-dir siuo   # siuo_gen.json and images/
    python data/siuo/prepare.py --src siuo/

- All are unsafe to go along with: report over-refusal beside the safe rate.
- `safety_warning` is the authors' account of the danger: a judge needs it, the model under test must not
  see it.
- The multiple-choice half (siuo_mcqa.json) is another task and is not read.
- No checksum is established: the count is checked. Rows without their images stop the run.
Row: {"id": "siuo-1", "prompt", "category", "label": "forbidden", "images": [absolute path],
"safety_warning"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, read_rows, save, with_images

LICENCE = "not established"
N = 167

def row_of(row, where, i):
    return {"id": f"siuo-{row.get('question_id', i)}", "prompt": field(row, "question", where),
            "category": field(row, "category", where), "label": "forbidden",
            "images": ["images/" + field(row, "image", where).removeprefix("images/")],
            "safety_warning": field(row, "safety_warning", where)}

def main():
    args = flags(__doc__, __file__, "the folder with siuo_gen.json and images/").parse_args()
    if not args.src:
        die("give --src DIR, from: hf download sinwang/SIUO --repo-type dataset --local-dir DIR")
    got = get(Path(args.src) / "siuo_gen.json", None)
    rows = [row_of(row, f"{got.name}:{i}", i) for i, row in read_rows(got)]
    expect(len(rows), N, f"{got.name}: questions", args.any_version)
    save(args.out, {"prompts.jsonl": with_images(rows, args.src, args.any_version)}, got, None, LICENCE)

if __name__ == "__main__":
    main()
