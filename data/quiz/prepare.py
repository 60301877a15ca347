"""300 hand-written multiple-choice items: did the tuning, or its undoing, make the model dumber?

    python data/quiz/prepare.py  # checks quiz.jsonl, writes choice.jsonl (in git too) and items.jsonl from it

Half is easy for a 135M model, a third medium, the rest hard for it and easy for a 70B. Score: log-likelihood
of each choice after "Question: ...\\nAnswer:", divided by its bytes. Categories and right answers take turns
row by row, so the first n rows are a fair quiz too. Nothing that the proxy policy forbids: refusing it is no
lost skill.
Rows: {"id", "question", "choices", "answer", "category"} and, in choice.jsonl, {"context", "continuations",
"answer", "category"}.
"""
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from fetch import choice, expect, field, flags, get, in_words, items, read_rows, texts, write

CATEGORIES = ["geography", "history", "biology", "physics and astronomy", "chemistry and materials",
              "mathematics and counting", "language and literature", "everyday objects and common sense",
              "social situations and common sense", "technology and computing"]

def main():
    args = flags(__doc__, __file__, "another quiz in the same format").parse_args()
    got, rows, asked = get(args.src or str(HERE / "quiz.jsonl"), None), [], []
    for line, row in read_rows(got):
        where = f"{got.name}:{line}"
        rows.append({"context": f"Question: {field(row, 'question', where)}\nAnswer:",
                     "continuations": [f" {text}" for text in texts(row, "choices", where, 4)],
                     "answer": choice(row, "answer", where, (0, 1, 2, 3)),
                     "category": choice(row, "category", where, CATEGORIES)})
        asked.append(row | {"id": field(row, "id", where), "context": rows[-1]["context"],
                            "prompt": in_words(row["question"], row["choices"])})
    for key, values, each in ("category", CATEGORIES, 30), ("answer", range(4), 75):
        counts = Counter(row[key] for row in rows)
        expect(counts, dict.fromkeys(values, each), f"{got.name}: {key}", args.any_version)
    write(args.out / "choice.jsonl", rows)
    about = "keeps everyday knowledge; always the same letter scores 25 %"
    write(args.out / "items.jsonl", items(asked, "quiz", "choice", "knowledge", about, "", 300))
    print(f"{args.out / 'choice.jsonl'}: {len(rows)} rows, 30 in each of 10 categories\nsha256 {got.sha}")

if __name__ == "__main__":
    main()

# output:
# choice.jsonl: 300 rows, 30 in each of 10 categories
# sha256 68321b1421b6fec08c55d23b7766138da34601995b230bf56e2a26d919f39803
