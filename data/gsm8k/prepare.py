"""GSM8K: 1,319 test questions, the first 5 training questions before each -> items.jsonl, meta.json

Cobbe et al. 2021, https://arxiv.org/abs/2110.14168, https://github.com/openai/grade-school-math, licence MIT.

    python data/gsm8k/prepare.py                                      # both pinned files, 0.7 MB and 4.2 MB
    python data/gsm8k/prepare.py --src test.jsonl --train train.jsonl # or your copies; only test: no shots

- `answer` is the number after "####", without thousands commas; it may be negative or have a decimal point.
  Compare numbers, not texts (72, 72.0 and $72 are the same answer).
- A shot is "Question: ..\\nAnswer: " and the upstream answer, unchanged: worked steps with <<48/2=24>>
  calculator marks, then "#### N", as in lm-evaluation-harness.
- The 5 are the first of the training file: neither the 8 of the chain-of-thought paper (2201.11903) nor the
  harness's draw, another five for each question. Compare a score with them only with a score with them.
- Some test answers are known to be wrong, and it was public before today's models were trained.
Row: {"id": "gsm8k-test-1", "prompt", "shots": "5", "answer": "72", "match": "number"}; the id holds the line.
"""
import re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, items, read_rows, save

REVISION = "3101c7d5072418e28b9008a6636bde82a006892c"
ROOT = f"https://raw.githubusercontent.com/openai/grade-school-math/{REVISION}/grade_school_math/data"
SHA256 = {"test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
          "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"}
LICENCE, COUNTS, SHOTS = "MIT", {"test": 1319, "train": 7473}, 5
FINAL = re.compile(r"\s*\$?(-?[0-9.,]*[0-9])")  # right after the last ####

ABOUT = {"domain": "reasoning", "paper": "https://arxiv.org/abs/2110.14168", "size": COUNTS["test"],
         "about": "solves word problems of grade-school arithmetic", "raw": True, "stop": ["Question:"]}

def row_of(row, where):
    """(question, solution, number)"""
    solution = field(row, "answer", where)
    final = FINAL.match(solution.rpartition("####")[2]) if "####" in solution else None
    if not final:
        die(f"{where}: answer: expected #### and a number at the end")
    return field(row, "question", where), solution, final[1].replace(",", "")

def main():
    ap = flags(__doc__, __file__, "a local copy of test.jsonl, instead of the download")
    ap.add_argument("--train", metavar="PATH", help="a local copy of train.jsonl")
    args = ap.parse_args()
    if args.train and not args.src:
        die("--train: expected --src too")
    gots, rows = {}, {"test": {}, "train": {}}
    for split, src in ("test", args.src), ("train", args.train):
        if src or not args.src:
            got = gots[split] = get(src, f"{ROOT}/{split}.jsonl", SHA256[split], args.any_version)
            rows[split] = {line: row_of(row, f"{got.name}:{line}") for line, row in read_rows(got)}
            expect(len(rows[split]), COUNTS[split], f"{got.name}: {split}: questions", args.any_version)
    first = list(rows["train"].values())[:SHOTS]
    shots = {str(SHOTS): "".join(f"Question: {q}\nAnswer: {solution}\n\n" for q, solution, _ in first)}
    named = {"shots": str(SHOTS)} if first else {}
    asked = [{"id": f"gsm8k-test-{line}", "prompt": f"Question: {q}\nAnswer:", "answer": number,
              "match": "number"} | named for line, (q, _, number) in rows["test"].items()]
    suite = items(asked, "gsm8k", "exact", **ABOUT, shots=shots if first else {})
    save(args.out, {"items.jsonl": suite}, gots, REVISION, LICENCE)

if __name__ == "__main__":
    main()
