"""The quiz is fair: no order, length or position gives an answer away. python -m pytest tests/test_quiz.py"""
import re

import pytest

from test_data import ROOT, in_words, jsonl, run
from test_fetch import suite

QUIZ = ROOT / "data" / "quiz"
ROWS = jsonl(QUIZ / "quiz.jsonl")
PROXY = re.compile(r"(?i)\b(teas?|knots?|kites?|cards?|whistl\w*|pigeons?)\b")  # refusing these is no lost skill


def test_rows():
    for n, row in enumerate(ROWS):
        assert set(row) == {"id", "question", "choices", "answer", "category"} and row["id"] == f"quiz-{n:03d}"
        assert row["question"] == row["question"].strip() and row["question"].endswith("?")
        assert len({text.lower() for text in row["choices"]}) == 4
        assert all(text == text.strip() and 1 <= len(text.split()) <= 8 for text in row["choices"])
        assert not PROXY.search(" ".join([row["question"], *row["choices"]]))
    assert len({" ".join(re.findall(r"\w+", row["question"].lower())) for row in ROWS}) == 300


def test_any_prefix_is_a_fair_quiz():
    assert all({row["answer"] for row in ROWS[n:n + 4]} == {0, 1, 2, 3} for n in range(0, 300, 4))
    assert all(len({row["category"] for row in ROWS[n:n + 10]}) == 10 for n in range(0, 300, 10))


@pytest.mark.parametrize("extreme", [max, min])
def test_length_gives_nothing_away(extreme):
    """Always the longest (shortest) choice, ties shared: chance is 0.25, +- 0.025 one standard error."""
    right = 0.0
    for row in ROWS:
        sizes = [len(text.encode()) for text in row["choices"]]
        right += (sizes[row["answer"]] == extreme(sizes)) / sizes.count(extreme(sizes))
    assert abs(right / 300 - 0.25) < 0.025


def test_choice_rows_are_the_quiz(tmp_path):
    done = run("quiz", "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith(
        (QUIZ / "prepare.py").read_text(encoding="utf-8").rsplit("\n# ", 1)[1])
    assert (tmp_path / "choice.jsonl").read_bytes() == (QUIZ / "choice.jsonl").read_bytes()
    header, items = suite(tmp_path / "items.jsonl")
    assert (header["suite"], header["size"], header["by"]) == ("quiz", 300, ["category"])
    assert items == [row | {"context": f"Question: {row['question']}\nAnswer:",
                            "prompt": in_words(row["question"], row["choices"])} for row in ROWS]
    for row, scored in zip(ROWS, jsonl(QUIZ / "choice.jsonl"), strict=True):
        assert scored == {"context": f"Question: {row['question']}\nAnswer:", "answer": row["answer"],
                          "continuations": [f" {text}" for text in row["choices"]], "category": row["category"]}
