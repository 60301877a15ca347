"""MT-Bench: 80 conversations of two turns, 10 in each of 8 categories -> items.jsonl, meta.json

Zheng et al. 2023, https://arxiv.org/abs/2306.05685, https://github.com/lm-sys/FastChat, licence Apache-2.0.

    python data/mtbench/prepare.py                                   # questions and reference answers, 0.1 MB
    python data/mtbench/prepare.py --src question.jsonl --reference gpt-4.jsonl    # or your copies

- The second turn is asked after the model's own first answer: two generations a row, never one message.
- The authors' temperatures: 0.7 writing, roleplay; 0.1 stem, humanities; else 0. Here 0 throughout.
- A judge gives 1 to 10 for each turn; the score is the mean of the 160. Judges differ: name the judge, its
  version and template. It is shown the reference answers for math, reasoning and coding, else none.
- `reference` holds GPT-4's answers, which the authors' judge uses and some of which are wrong. With --src
  alone it is empty. 80 questions: intervals are wide.
Row: {"id": "mtbench-81", "category", "turns": [first, second], "reference": [first, second] or [], "judge"}.
"""
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import TO_JUDGE, die, expect, field, flags, get, items, read_rows, save, texts

REVISION = "587d5cfa1609a43d192cedb8441cac3c17db105d"
ROOT = f"https://raw.githubusercontent.com/lm-sys/FastChat/{REVISION}/fastchat/llm_judge/data/mt_bench"
URLS = {"questions": f"{ROOT}/question.jsonl", "references": f"{ROOT}/reference_answer/gpt-4.jsonl"}
SHA256 = {"questions": "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
          "references": "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f"}
LICENCE = "Apache-2.0"
GRADE = {
    "template": "Grade an assistant's answer for helpfulness, accuracy, depth and clarity.\n\n" +
    TO_JUDGE + """
<reference>
{{REFERENCE}}
</reference>

An empty reference means there is none. Reason in two sentences. Then write a last line of exactly this form:
Score: 1 (useless) to 10 (excellent)""",
    "scale": [1, 10], "max_new": 256, "polarity": "10 is best"}
ABOUT = {"domain": "dialogue", "paper": "https://arxiv.org/abs/2306.05685", "max_new": 512,
         "judges": {"grade": GRADE}, "about": "helps over two turns, graded by a judge with our own template"}
CATEGORIES = "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"

def main():
    ap = flags(__doc__, __file__, "a local copy of question.jsonl, instead of the download")
    ap.add_argument("--reference", metavar="PATH", help="a local copy of reference_answer/gpt-4.jsonl")
    args = ap.parse_args()
    if args.reference and not args.src:
        die("--reference: expected --src too")
    got, rows = get(args.src, URLS["questions"], SHA256["questions"], args.any_version), {}
    for line, row in read_rows(got):
        where, key = f"{got.name}:{line}", row.get("question_id")
        rows[key] = {"id": f"mtbench-{key}", "category": field(row, "category", where),
                     "turns": texts(row, "turns", where, 2), "reference": [], "judge": "grade"}
    counts = Counter(row["category"] for row in rows.values())
    expect(counts, dict.fromkeys(CATEGORIES, 10), f"{got.name}: different ids", args.any_version)
    gots = {"questions": got}
    if args.reference or not args.src:
        got = get(args.reference, URLS["references"], SHA256["references"], args.any_version)
        gots["references"] = got
        for line, row in read_rows(got):
            where = f"{got.name}:{line}"
            if row.get("question_id") not in rows or not row.get("choices"):
                die(f"{where}: question_id, choices: expected one of the questions and its answers")
            rows[row["question_id"]]["reference"] = texts(row["choices"][0], "turns", where, 2)
    answered = sum(bool(row["reference"]) for row in rows.values())
    suite = items(list(rows.values()), "mtbench", "judged", size=80, **ABOUT)
    save(args.out, {"items.jsonl": suite}, gots, REVISION, LICENCE, n_reference=answered)

if __name__ == "__main__":
    main()
