"""GSM8K: 1,319 test questions and the first 8 training questions -> test.jsonl, fewshot.jsonl, meta.json

Cobbe et al. 2021, https://arxiv.org/abs/2110.14168, https://github.com/openai/grade-school-math, licence MIT.

    python data/gsm8k/prepare.py                                      # both pinned files, 0.7 MB and 4.2 MB
    python data/gsm8k/prepare.py --src test.jsonl --train train.jsonl # or your copies; of one only: that one

- `answer` is the number after "####", without thousands commas; it may be negative or have a decimal point.
  Compare numbers, not texts (72, 72.0 and $72 are the same answer).
- `solution` is the upstream answer, unchanged: worked steps with <<48/2=24>> calculator marks, then "#### N".
  A few-shot prompt is "Question: {question}\\nAnswer: {solution}", as in lm-evaluation-harness.
- Those 8 are the first of the training file: neither the 8 of the chain-of-thought paper (2201.11903) nor the
  harness's draw. Compare a score with them only with a score with them.
- Some test answers are known to be wrong, and it was public before today's models were trained.
Row: {"id": "gsm8k-test-1", "question", "answer": "72", "solution"}; the id holds split and 1-based line.
"""
import re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, read_rows, save

REVISION = "3101c7d5072418e28b9008a6636bde82a006892c"
ROOT = f"https://raw.githubusercontent.com/openai/grade-school-math/{REVISION}/grade_school_math/data"
SHA256 = {"test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
          "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"}
LICENCE, COUNTS, FEWSHOT = "MIT", {"test": 1319, "train": 7473}, 8
FINAL = re.compile(r"\s*\$?(-?[0-9.,]*[0-9])")  # right after the last ####

def row_of(row, key, where):
    solution = field(row, "answer", where)
    final = FINAL.match(solution.rpartition("####")[2]) if "####" in solution else None
    if not final:
        die(f"{where}: answer: expected #### and a number at the end")
    return {"id": key, "question": field(row, "question", where), "answer": final[1].replace(",", ""),
            "solution": solution}

def main():
    ap = flags(__doc__, __file__, "a local copy of test.jsonl, instead of the download")
    ap.add_argument("--train", metavar="PATH", help="a local copy of train.jsonl")
    args = ap.parse_args()
    files, gots = {}, {}
    for split, src in ("test", args.src), ("train", args.train):
        if src or not (args.src or args.train):
            got = gots[split] = get(src, f"{ROOT}/{split}.jsonl", SHA256[split], args.any_version)
            rows = []
            for line, row in read_rows(got):
                rows.append(row_of(row, f"gsm8k-{split}-{line}", f"{got.name}:{line}"))
            expect(len(rows), COUNTS[split], f"{got.name}: {split}: questions", args.any_version)
            files |= {"test.jsonl": rows} if split == "test" else {"fewshot.jsonl": rows[:FEWSHOT]}
    n = {name: len(rows) for name, rows in files.items()}
    save(args.out, files, gots, REVISION, LICENCE, by=None, n=n)

if __name__ == "__main__":
    main()
