"""HellaSwag: 10,042 validation items, a context and 4 endings -> choice.jsonl, items.jsonl, meta.json

Zellers et al. 2019, https://arxiv.org/abs/1905.07830, https://github.com/rowanz/hellaswag, licence MIT.

    python data/hellaswag/prepare.py                               # download the pinned file, 12 MB
    python data/hellaswag/prepare.py --src hellaswag_val.jsonl  # or your copy; --out DIR: elsewhere

- Texts are prepared as EleutherAI's lm-evaluation-harness prepares them, so that scores can be compared with
  its `hellaswag` task: "activity label: ctx_a Ctx_b", " [title]" -> ". ", bracketed WikiHow markup removed,
  double spaces replaced once. Python's capitalize() also lowers the rest of ctx_b; the harness does so, hence
  this does.
- An ending is a continuation after one space. The harness reports acc (sum of log-probabilities) and acc_norm
  (divided by the length of the ending); leaderboards quote 10-shot acc_norm. The test split has no public
  labels.
- It was public before most of today's models were trained: read it as a before/after measure.
Rows: {"context", "continuations": 4 texts, "answer": 0..3, "category": "activitynet" or "wikihow"} and items.
"""
import re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, die, expect, flags, get, in_words, items, read_rows, save, texts

REVISION = "a29ff8e9a04bba4bd6588223785ce105328adc57"
URL = f"https://raw.githubusercontent.com/rowanz/hellaswag/{REVISION}/data/hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
LICENCE, N = "MIT", 10042
ABOUT = {"domain": "reasoning", "paper": "https://arxiv.org/abs/1905.07830",
         "about": "tells how an everyday scene goes on; chance is 25 %"}

def clean(text):
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

def row_of(row, where):
    row = {"ctx_b": ""} | row  # the hub's reader takes it for optional, too
    for key in "activity_label", "ctx_a", "ctx_b", "source_id":  # may be empty
        if not isinstance(row.get(key), str):
            die(f"{where}: {key}: expected a text")
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    label = choice(row | {"label": str(row.get("label"))}, "label", where, tuple("0123"))  # or a number
    endings = [clean(text) for text in texts(row, "endings", where, 4)]
    return {"context": clean(context), "choices": endings, "answer": int(label),
            "category": row["source_id"].split("~")[0]}

def main():
    args = flags(__doc__, __file__).parse_args()
    got = get(args.src, URL, SHA256, args.any_version)
    rows = [row_of(row, f"{got.name}:{line}") for line, row in read_rows(got)]
    scored = [{"context": row["context"], "continuations": [f" {text}" for text in row["choices"]],
               "answer": row["answer"], "category": row["category"]} for row in rows]
    asked = [{"id": f"hellaswag-{i}"} | row | {"prompt": in_words(row["context"], row["choices"])}
             for i, row in enumerate(rows, 1)]
    expect(len(rows), N, f"{got.name}: items", args.any_version)
    suite = items(asked, "hellaswag", "choice", size=N, **ABOUT)
    save(args.out, {"choice.jsonl": scored, "items.jsonl": suite}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
