# /// script
# dependencies = ["numpy", "math-verify==0.9.0"]
# ///
"""MATH-500: 500 competition problems, the test half of PRM800K's split of MATH -> items.jsonl, meta.json

Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874; selection: Lightman et al. 2023,
https://arxiv.org/abs/2305.20050; hub: HuggingFaceH4/MATH-500, whose card states no licence at this revision
(the selection is in openai/prm800k and the problems in hendrycks/math, both MIT).

    python data/math500/prepare.py [--src test.jsonl]    # the pinned file, 0.4 MB, or your copy

- `answer` is LaTeX out of the \\boxed{} of the solution: fractions, intervals, matrices, units, text.
  Comparing texts undercounts: "\\frac{1}{2}", "1/2" and "0.5" are one answer. math-verify compares them here;
  graders differ by several points. A gold answer that it cannot read stops this script.
- Levels and subjects are not balanced: report the total, and n beside every part.
- The other 12,000 problems of MATH are common training data (PRM800K trains on 4,500 of its test set).
Row: {"id": upstream's unique_id, "prompt", "answer", "match": "math", "category": subject, "level": 1..5}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, expect, field, flags, get, items, maths, read_rows, save

REVISION = "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"
URL = f"https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/{REVISION}/test.jsonl"
SHA256 = "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"
LICENCE = "not stated at this revision; openai/prm800k and hendrycks/math, where it comes from, are MIT"
N = 500
ASK = "%s\n\nReason step by step and put the final answer in \\boxed{}."
ABOUT = {"domain": "reasoning", "paper": "https://arxiv.org/abs/2103.03874", "max_new": 1024,
         "unread": "wrong", "by": ["category", "level"],
         "about": "solves competition mathematics, graded by math-verify"}

def main():
    args = flags(__doc__, __file__).parse_args()
    got, rows = get(args.src, URL, SHA256, args.any_version), []
    for line, row in read_rows(got):
        where = f"{got.name}:{line}"
        rows.append({"id": field(row, "unique_id", where), "prompt": ASK % field(row, "problem", where),
                     "answer": maths(row, "answer", where), "match": "math",
                     "category": field(row, "subject", where),
                     "level": choice(row, "level", where, (1, 2, 3, 4, 5))})
    found = len(rows), len({row["id"] for row in rows})
    expect(found, (N, N), f"{got.name}: problems, different ids", args.any_version)
    suite = items(rows, "math500", "exact", size=N, **ABOUT)
    save(args.out, {"items.jsonl": suite}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
