"""MMLU: 14,042 test questions, 5 dev questions in each of 57 subjects -> test, dev, choice.jsonl, meta.json

Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300, https://github.com/hendrycks/test, licence MIT.

    python data/mmlu/prepare.py                   # the authors' data.tar from the hub (cais/mmlu), 166 MB
    python data/mmlu/prepare.py --src data.tar    # your copy
    python data/mmlu/prepare.py --any-version --src test_even.jsonl dev.jsonl    # or part of the set as JSONL

- The archive is chosen over the hub's parquet files because it needs no package. Only the archive has a
  published checksum: for other forms the counts are checked.
- dev holds the few-shot examples in their published order (leaderboards: the first five of the subject).
- A score on part of the set is a development figure. Average over questions (lm-eval) and average over
  subjects differ: say which. Some questions occur twice, some answers are wrong: texts are no unique key.
- A CSV reader that guesses types turns the choices "None" and "1/2" into something else; here all stays text.
Rows: {"question", "choices": 4 texts, "answer": 0..3, "category": subject}; in choice.jsonl, written where
dev is there too, {"context": header, 5 shots, question, "continuations": [" A", ..], "answer", "category"}.
JSONL read: {"question", "choices": {"A": ..}, "answer": letter, "dataset": "SUBJECT_test", "subject"}.
"""
import csv, io, re, sys, tarfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, die, expect, field, flags, get, joined, read_rows, save, text_of, texts

REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
URL = f"https://huggingface.co/datasets/cais/mmlu/resolve/{REVISION}/data.tar"
SHA256 = "bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b"  # of data.tar only
LICENCE, COUNTS = "MIT", {"test": (14042, 57), "dev": (285, 57)}
FILE = re.compile(r"(?:^|/)(test|dev)/([a-z_]+)_\1\.csv$")  # not val, auxiliary_train or macOS's ._ files

def members(got):
    """The CSV files of an archive, or the file itself."""
    if not got.name.endswith(".tar"):
        return [got]
    try:
        with tarfile.open(fileobj=io.BytesIO(got.raw), mode="r:") as tar:
            names = sorted(name for name in tar.getnames() if FILE.search(name))
            raws = [tar.extractfile(name).read() for name in names]
    except tarfile.TarError as e:
        die(f"{got.name}: expected a tar archive ({e})")
    return [got._replace(name=f"{got.name}/{name}", raw=raw) for name, raw in zip(names, raws)]

def questions(got):
    """(place, split, row): the CSV has no header."""
    if file := FILE.search(got.name):
        reader = csv.reader(io.StringIO(text_of(got), newline=""))
        for row in filter(None, reader):
            where = f"{got.name}:{reader.line_num}"
            if len(row) != 6:
                die(f"{where}: row: expected 6 fields: question, 4 choices, letter")
            question, *choices, letter = row
            yield where, file[1], {"question": question, "choices": choices, "answer": letter,
                                   "subject": file[2]}
    else:
        for line, row in read_rows(got):
            where, subject = f"{got.name}:{line}", row.get("subject")
            split = choice(row, "dataset", where, (f"{subject}_test", f"{subject}_dev")).rsplit("_", 1)[1]
            if not isinstance(row.get("choices"), dict) or sorted(row["choices"]) != list("ABCD"):
                die(f"{where}: choices: expected an object with A, B, C and D")
            yield where, split, row | {"choices": [row["choices"][letter] for letter in "ABCD"]}

def scored(test, dev):
    """Five dev shots of the subject, letters, as the leaderboard ran it."""
    def shown(row):
        lines = [f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"])]
        return "\n".join([row["question"].strip(), *lines, "Answer:"])
    shots = {}
    for row in dev:
        shots.setdefault(row["category"], []).append(f"{shown(row)} {'ABCD'[row['answer']]}")
    for row in test:
        subject = row["category"].replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}."
        context = "\n\n".join([head, *shots.get(row["category"], [])[:5], shown(row)])
        yield {"context": context, "continuations": [" A", " B", " C", " D"], "answer": row["answer"],
               "category": row["category"]}

def main():
    args = flags(__doc__, __file__, "data.tar, or .jsonl files", nargs="+").parse_args()
    gots, splits = [], {"test": [], "dev": []}
    for path in args.src or [None]:
        tar = not path or path.endswith(".tar")
        gots.append(get(path, URL, SHA256 if tar else None, args.any_version))
    for where, split, row in (found for got in gots for part in members(got) for found in questions(part)):
        question, choices = field(row, "question", where), texts(row, "choices", where, 4)
        answer = "ABCD".index(choice(row, "answer", where, tuple("ABCD")))
        splits[split].append({"question": question, "choices": choices, "answer": answer,
                              "category": field(row, "subject", where)})
    got = joined(gots, URL, args.src)
    for split, rows in splits.items():
        counts = Counter(row["category"] for row in rows)
        what = f"{got.name}: {split}: questions, subjects"
        expect((len(rows), len(counts)), COUNTS[split], what, args.any_version)
    expect(set(counts.values()), {5}, f"{got.name}: dev: questions in each subject", args.any_version)
    splits = {split: rows for split, rows in splits.items() if rows} or die(f"{got.name}: no questions found")
    files = {f"{split}.jsonl": rows for split, rows in splits.items()}
    if len(splits) == 2:
        files["choice.jsonl"] = list(scored(**splits))
    n = {split: len(rows) for split, rows in splits.items()}
    save(args.out, files, got, REVISION, LICENCE, by=None, n=n)

if __name__ == "__main__":
    main()
