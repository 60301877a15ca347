# /// script
# dependencies = ["pyarrow"]
# ///
"""AIME 2024: the 30 problems of the two exams (I and II, 15 each) -> items.jsonl, meta.json

Mathematical Association of America; hub: HuggingFaceH4/aime_2024, whose card states no licence.

    uv run data/aime2024/prepare.py     # the pinned parquet, 0.1 MB; plain python where pyarrow is there
    python data/aime2024/prepare.py --any-version --src aime_2024_problems.parquet

- One problem is 3.3 points, and the 95 % interval of a single greedy run is about 35 points wide. Reports
  average many samples a problem (avg@32, avg@64); greedy and sampled figures are not comparable.
- `answer` is an integer from 0 to 999. Copies write 33 as "033", "33" or 33: here "33". Compare numbers.
- The pinned copy's rows are in an order that is not the exam's. The id here is made from its url.
- Copies differ in wording: early revisions of Maxwell-Jia/AIME_2024 had errors in I-5, I-6 and II-10.
Row: {"id": "2024-I-1", "prompt", "answer": "204", "match": "math", "category": exam}.
"""
import re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, items, read_rows, save

REVISION = "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"
URL = ("https://huggingface.co/datasets/HuggingFaceH4/aime_2024/resolve/"
       f"{REVISION}/data/train-00000-of-00001.parquet")
SHA256 = "26139847601a5037c237d5928b195e7260ca8074cf4f264b794af42847f79ccf"
LICENCE = "not stated on the card; the problems are the Mathematical Association of America's"
EXAMS = {"I": 15, "II": 15}
ASK = "%s\n\nReason step by step and put the final answer in \\boxed{}."
ABOUT = {"domain": "reasoning", "max_new": 4096, "unread": "wrong", "paper":
         "https://huggingface.co/datasets/HuggingFaceH4/aime_2024",
         "about": "solves olympiad mathematics, graded by math-verify; one problem is 3.3 points"}
PLACE = re.compile(r"2024_AIME_(II?)_Problems/Problem_([0-9]+)")

def row_of(row, where):
    """((exam, number), row)"""
    place = PLACE.search(field(row, "url", where))
    if not place:
        die(f"{where}: url: expected .../2024_AIME_I_Problems/Problem_1")
    if not re.fullmatch(r"\s*[0-9]{1,3}\s*", str(row.get("answer"))):
        die(f"{where}: answer: expected an integer from 0 to 999")
    exam, number = place.groups()
    return (exam, int(number)), {"id": f"2024-{exam}-{number}", "prompt": ASK % field(row, "problem", where),
                                 "answer": str(int(row["answer"])), "match": "math", "category": exam}

def main():
    args = flags(__doc__, __file__, "a local copy, parquet or .jsonl, instead of the download").parse_args()
    got = get(args.src, URL, SHA256, args.any_version)
    rows = dict(row_of(row, f"{got.name}:{line}") for line, row in read_rows(got))
    found = {exam: sum(place[0] == exam for place in rows) for exam in EXAMS}
    expect(found, EXAMS, f"{got.name}: different problems of each exam", args.any_version)
    ordered = [rows[place] for place in sorted(rows)]  # as in the exams
    suite = items(ordered, "aime2024", "exact", size=sum(EXAMS.values()), **ABOUT)
    save(args.out, {"items.jsonl": suite}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
