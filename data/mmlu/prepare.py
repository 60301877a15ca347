"""MMLU: 14,042 test questions, 5 dev questions in each of 57 subjects -> choice, items.jsonl, meta.json

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
Rows, written where dev is there too: {"context": header, 5 shots, question, "continuations": [" A", ..],
"answer": 0..3, "category": subject}, and items with the subject's shots apart.
JSONL read: {"question", "choices": {"A": ..}, "answer": letter, "dataset": "SUBJECT_test", "subject"}.
"""
import csv, io, re, sys, tarfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import (choice, die, expect, field, flags, get, in_words, items, joined, lettered, read_rows, save,
                   text_of, texts)

REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
URL = f"https://huggingface.co/datasets/cais/mmlu/resolve/{REVISION}/data.tar"
SHA256 = "bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b"  # of data.tar only
LICENCE, COUNTS = "MIT", {"test": (14042, 57), "dev": (285, 57)}
ABOUT = {"domain": "knowledge", "paper": "https://arxiv.org/abs/2009.03300", "size": COUNTS["test"][0],
         "about": "knows 57 school and university subjects, 5 examples before each question; chance is 25 %"}
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

def shown(row):
    return lettered(row["question"].strip(), row["choices"]) + "\nAnswer:"

def shots_of(dev):
    """{subject: header and its first five dev questions}, as the leaderboard ran it."""
    shots = {}
    for row in dev:
        shots.setdefault(row["category"], []).append(f"{shown(row)} {'ABCD'[row['answer']]}\n\n")
    head = "The following are multiple choice questions (with answers) about %s.\n\n"
    return {name: "".join([head % name.replace("_", " "), *rows[:5]]) for name, rows in shots.items()}

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
    shots, test = shots_of(splits["dev"]), splits["test"]
    if alone := {row["category"] for row in test} - shots.keys():
        die(f"{got.name}: dev: no questions of {len(alone)} subjects; they are the shots: give dev too")
    scored = [{"context": shots[row["category"]] + shown(row), "continuations": [" A", " B", " C", " D"],
               "answer": row["answer"], "category": row["category"]} for row in test]
    asked = [{"id": f"mmlu-{i}", "category": row["category"], "shots": row["category"], "context": shown(row),
              "prompt": in_words(row["question"], row["choices"]), "choices": list("ABCD"),
              "answer": row["answer"]} for i, row in enumerate(test, 1)]
    suite = items(asked, "mmlu", "choice", **ABOUT, shots=shots)
    n = {split: len(rows) for split, rows in splits.items()}
    save(args.out, {"choice.jsonl": scored, "items.jsonl": suite}, got, REVISION, LICENCE, by=None, n=n)

if __name__ == "__main__":
    main()
