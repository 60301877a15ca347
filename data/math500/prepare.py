"""MATH-500: 500 competition problems, the test half of PRM800K's split of MATH -> test.jsonl, meta.json

Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874; selection: Lightman et al. 2023,
https://arxiv.org/abs/2305.20050; hub: HuggingFaceH4/MATH-500, whose card states no licence at this revision
(the selection is in openai/prm800k and the problems in hendrycks/math, both MIT).

    python data/math500/prepare.py [--src test.jsonl]    # the pinned file, 0.4 MB, or your copy

- `answer` is LaTeX out of the \\boxed{} of the solution: fractions, intervals, matrices, units, text.
  Comparing texts undercounts: "\\frac{1}{2}", "1/2" and "0.5" are one answer. Use math-verify or another
  symbolic comparison, and name it: graders differ by several points.
- Levels and subjects are not balanced: report the total, and n beside every part.
- The other 12,000 problems of MATH are common training data (PRM800K trains on 4,500 of its test set).
Row: {"id": upstream's unique_id, "question", "answer", "solution", "category": subject, "level": 1..5}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, expect, field, flags, get, read_rows, save

REVISION = "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"
URL = f"https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/{REVISION}/test.jsonl"
SHA256 = "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"
LICENCE = "not stated at this revision; openai/prm800k and hendrycks/math, where it comes from, are MIT"
N = 500
NAMES = {"id": "unique_id", "question": "problem", "answer": "answer", "solution": "solution",
         "category": "subject"}

def main():
    args = flags(__doc__, __file__).parse_args()
    got, rows = get(args.src, URL, SHA256, args.any_version), []
    for line, row in read_rows(got):
        where = f"{got.name}:{line}"
        rows.append({ours: field(row, theirs, where) for ours, theirs in NAMES.items()}
                    | {"level": choice(row, "level", where, (1, 2, 3, 4, 5))})
    found = len(rows), len({row["id"] for row in rows})
    expect(found, (N, N), f"{got.name}: problems, different ids", args.any_version)
    save(args.out, {"test.jsonl": rows}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
