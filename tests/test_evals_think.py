"""evals.py's numbers of models that think, against brute force and by hand; the miniature's problems.

    python -m pytest -q tests/test_evals_think.py    (seconds, CPU)
"""
import importlib.util
import itertools
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import evals

def test_mean_and_its_interval():
    got = evals.mean([1, 4, None, 2.5, 7, None] * 30, "cost")
    assert (got["value"], got["n"], got["n_unscored"], got["direction"]) == (3.625, 120, 60, "cost")
    error = 1.96 * np.std([1, 4, 2.5, 7]) / 120**0.5
    assert got["ci95"] == pytest.approx([3.625 - error, 3.625 + error], abs=0.1)

@pytest.mark.parametrize("text, thought, answer", [
    ("<think>\nboil\n</think>\n\nTea.", "boil", "Tea."), ("boil\n</think>\n\nTea.", "boil", "Tea."),
    ("<think>\na</think>b</think> c", "a</think>b", "c"), ("<think>\nboil and", "boil and", None),
    ("Tea.", "", "Tea."), ("<think>\n\n</think>\n\nTea.", "", "Tea."), ("<think>\nboil</think>", "boil", ""),
    ("<think>\nwhat is <think>?</think>Tea.", "what is <think>?", "Tea."), ("", "", "")])
def test_split_thought(text, thought, answer):
    assert evals.split_thought(text) == (thought, answer)

def solve(kind, text):
    """the answer by another way than the program that wrote the problem."""
    numbers, last = [int(x) for x in re.findall(r"\d+", text)], text.split()[-1].rstrip("?")
    if kind == "chain":
        links = dict(re.findall(r"The (\w+ \w+) (?:opens the|holds a) (\w+(?: box)?)", text))
        return "a " + links[links[re.search(r"the (\w+ key) lead", text)[1]]]
    if kind == "order":
        taller, smaller = map(set, zip(*re.findall(r"(\w+) is taller than (\w+)", text)))
        names = {"tallest": taller - smaller, "middle": taller & smaller, "shortest": smaller - taller}[last]
        return " ".join(names)
    if kind == "count":
        numbers = [int(n) for n, colour in re.findall(r"(\d+) (\w+)", text) if colour == last]
    return str(numbers[-1] - math.prod(numbers[:-1]) if kind == "change" else sum(numbers))

def test_problems_are_right_different_and_the_same_each_time():
    path = Path(__file__).resolve().parent.parent / "data/think/prepare.py"
    think = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("think", path))
    spec.loader.exec_module(think)
    training = think.problems(500, seed=0)
    assert training == think.problems(500, seed=0) and training != think.problems(500, seed=2)
    held_out = think.problems(100, seed=1, without={r["prompt"] for r in training})
    assert len({r["prompt"] for r in training + held_out}) == 600  # disjoint, and all of them different
    kinds = [r["kind"] for r in held_out]
    assert Counter(kinds) == dict.fromkeys(("addition", "change", "order", "count", "chain"), 20)
    for r in training + held_out:
        assert solve(r["kind"], r["prompt"]) == r["answer"] == r["thought"].rstrip(".")[-len(r["answer"]):], r
        sums = r["thought"].replace(" times ", " * ").replace(" is ", " = ")
        for left, right in re.findall(r"(\d+(?: [-+*] \d+)+) = (\d+)", sums):
            assert eval(left) == int(right), r  # digits and signs only
