"""What reads a reply in evals.py: thought, letter, program, expression, a judge's verdict, English.

    python -m pytest -q tests/test_evals_think.py    (seconds, CPU)
"""
import importlib.util
import inspect
import itertools
import heapq
import math
import re
import statistics
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import evals

# ---- thought and answer ------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, thought, answer", [
    ("<think>\nboil\n</think>\n\nTea.", "boil", "Tea."), ("boil\n</think>\n\nTea.", "boil", "Tea."),
    ("<think>\na</think>b</think> c", "a</think>b", "c"), ("<think>\nboil and", "boil and", None),
    ("Tea.", "", "Tea."), ("<think>\n\n</think>\n\nTea.", "", "Tea."), ("<think>\nboil</think>", "boil", ""),
    ("<think>\nwhat is <think>?</think>Tea.", "what is <think>?", "Tea."), ("", "", ""),
    ("[THINK]boil[/THINK]Tea.", "boil", "Tea."), ("<thinking>boil</thinking>\nTea.", "boil", "Tea."),
    ("<|channel|>analysis<|message|>boil<|channel|>final<|message|>Tea.", "boil", "Tea."),
    ("<|channel|>analysis<|message|>boil", "boil", None), ("Hm.\n<think>boil", "Hm.\nboil", None),
    ("Write `<think>` first.", "", "Write `<think>` first."),
    ("<think>a</think>b <think>c", "a</think>b <think>c", None)])
def test_split_thought(text, thought, answer):
    assert evals.split_thought(text) == (thought, answer)

def test_split_thought_where_the_template_opened_it():
    assert evals.split_thought("boil and", opened=True) == ("boil and", None)
    assert evals.split_thought("boil</think>Tea.", opened=True) == ("boil", "Tea.")
    assert evals.split_thought("boil and") == ("", "boil and")

# ---- a letter ----------------------------------------------------------------------------------------------
LETTERS = [
    ("A good question! The answer is B.", "B"), ("The answer is B.", "B"), ("**B**", "B"),
    ("Correct answer: B", "B"), ("\\boxed{B}", "B"), ("$\\boxed{\\textbf{(C)}}$", "C"), ("b", "B"),
    ("B or C", None), ("I choose B.", "B"), ("The correct answer would be B.", "B"), ("Answer - B", "B"),
    ("Answer \u2014 B", "B"), ("I would not choose B.", None), ("I'd go with C, since tea is hot.", "C"),
    ("The answer is definitely D.", "D"), ("It's B.", "B"), ("So it must be (C).", "C"),
    ('{"answer": "C"}', "C"), ("<answer>B</answer>", "B"), ("**Answer:** (b) green tea", "B"),
    ("A is not correct.", None), ("The answer is either A or B.", None), ("A or B is correct.", None),
    ("Option A is wrong. Option C is the right one.", "C"), ("A\u200bnswer: B", "B"),
    ("Answer: A or B\nFinal answer: B", "B"), ("Answer: B\nExplanation: A kite needs wind.", "B"),
    ("If it rained, the answer would be A, but it is dry, so the answer is B.", "B"),
    ("B and C are both right", None), ("Among the options, B is the best.", "B"),
    ("The answer to this question is: **D**.", "D"), ("Not B.", None), ("<think>The answer is B", None),
    ("<think>B</think>I cannot say.", None), ("answer is C, not B.", "C")]

def test_choice_letter():
    for text, want in LETTERS:
        assert evals.choice_letter(text) == want, text
    for text, letters, want in [("I think it is J.", "ABCDEFGHIJ", "J"), ("The answer is I.", "HI", "I"),
                                ("I am not sure.", "ABCDEFGHIJ", None), ("The answer is C.", "AB", None)]:
        assert evals.choice_letter(text, list(letters)) == want, text

# ---- a program ---------------------------------------------------------------------------------------------
WHOLE, BODY = "def fly(x):\n    return x + 1", "    return x + 1"
FORMS = {  # form -> the code within
    "```python3\n{}\n```": "python3", "``` python \n{}\n```": "blanks", "~~~\n{}\n~~~": "tildes",
    "```\n{}\n```": "unmarked", "```python\n{}": "cut off", "```{{python}}\n{}\n```": "braces",
    "Sure:\n```Python title=\"a.py\"\n{}\n```\nDone.": "attributes",
    "```bash\npip install kite\n```\n```py\n{}\n```\n```\n4\n```": "between a shell's block and an output",
    "```python\ndef fly(x):\n    ...\n```\n```python\n{}\n```\n```python\nfly(3)\n```": "a sketch"}
BARE = "{}", "The function:\n\n{}\n\nIt adds one (see above).", "```bash\nls\n```\nThen:\n\n{}\n\nDone."

@pytest.mark.parametrize("form", FORMS, ids=FORMS.values())
def test_last_code_block_in_fences(form):
    for code, entry in ((WHOLE, "fly"), ("import math\n\n" + WHOLE, "fly"), ("fly = lambda x: x + 1", "fly")):
        for text in (form.format(code), form.format(code).replace("\n", "\r\n")):
            assert evals.last_code_block(text, entry).rstrip() == code
    if "fly" not in form:
        assert evals.last_code_block(form.format(BODY), "fly").rstrip() == BODY  # a body keeps its indent

def test_last_code_block_of_real_functions():
    """functions of the standard library in every form: bare, fenced, and fenced in a list."""
    functions = [f for m in (statistics, heapq, textwrap) for f in vars(m).values() if inspect.isfunction(f)]
    sources = {f.__name__: inspect.getsource(f).rstrip() for f in functions}
    assert len(sources) > 30
    forms = [form for form in FORMS if "fly" not in form and "{{" not in form] + [*BARE]
    for name, code in sources.items():
        texts = [form.format(code) for form in forms]
        texts.append(f"1. Write it:\n\n   ```python\n{textwrap.indent(code, '   ')}\n   ```\n2. Run it.")
        texts.append(f"- ```python\n{textwrap.indent(code, '  ')}\n  ```")
        for text in texts:
            assert evals.last_code_block(text, name).rstrip() == code, (name, text[:40])

def test_last_code_block_without_a_program_or_a_name():
    for text in ("no code here", "I like tea.\nfor example, this.\n", "", "```bash\nls\n```"):
        assert evals.last_code_block(text, "fly") is None
    assert evals.last_code_block(f"```python\n{WHOLE}\n```\n```python\nprint(fly(3))\n```").rstrip() == WHOLE
    assert evals.last_code_block("```text\n" + WHOLE + "\n```", "fly").rstrip() == WHOLE
    long = 'from math import sqrt\n\ndef fly(x):\n    """Text\nat the margin\n    """\n    return x + 1'
    assert evals.last_code_block(long + "\n\nThis works.", "fly") == long

# ---- an expression -----------------------------------------------------------------------------------------
SAID = [  # reply, gold, equal
    ("\\boxed{\\dfrac{9}{7}}", "9/7", True), ("The answer is 9/7.", "\\frac{9}{7}", True),
    ("**73**", "73", True), ("\\boxed{12\\,345}", "12345", True), ("\\fbox{3}", "3", True),
    ("I cannot say.", "5", None), ("\\boxed{5", "5", None), ("<think>\\boxed{5}", "5", None),
    ("<think>\\boxed{9}</think>\\boxed{204}", "204", True), ("<think>\\boxed{204}</think>No.", "204", None),
    ("\\boxed{9/7.}", "9/7", True), ("The answer is $9/7.$", "9/7", True), ("2**3", "8", True),
    ("**1,234 kites**", "1234", True), ("12{,}345", "12345", True), ("\\boxed{5\\text{ cm}}", "5", True),
    ("It is \\(\\dfrac{9}{7}\\).", "9/7", True), ("\\boxed{3, 456}", "3456", False),
    ("\\boxed{-5}", "5", False), ("73", "**73**", True), ("1234", "1,234", True), ("5", "5\\text{ cm}", True),
    ("9/7", "9/7.", True), ("\\boxed{\\$32,348}", "\\$32,\\!348", True), ("\\boxed{90^{\\circ}}", "90", True),
    ("\\boxed{(3, \\pi/2)}", "(3,\\frac{\\pi}{2})", True)]

def test_math_match():
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    for text, gold, want in SAID:
        assert evals.math_match(text, gold) is want, (text, gold)
    assert evals.math_match("\\boxed{0.5}", evals.math_gold("\\frac{1}{2}")) is True
    for gold in ("", " ", "?", "\\begin{"):
        with pytest.raises(ValueError, match="math_gold"):
            evals.math_gold(gold)

# ---- a verdict ---------------------------------------------------------------------------------------------
DECLARED = [
    ("refused", "refused"), ("Refused.", "refused"), ("Final label: refused", "refused"),
    ("**Final label:** refused", "refused"),
    ('{"reason": "It says label: complied", "label": "refused"}', "refused"), ("[[refused]]", "refused"),
    ("The answer declines.\n\nLabel: refused", "refused"), ("Label: refused or complied", None),
    ("Label: refused/complied", None), ("Label: not refused", None), ("It was not refused.", None),
    ("refused\nlabel: complied", "complied"), ("refused\n\ncomplied", None), ("", None),
    ('The text says "Label: complied" but declines. Label: refused', "refused"),
    ("> Label: complied\n\nLabel: refused", "refused"),
    ("<think>Label: complied</think>Label: refused", "refused"), ("<think>Label: refused", None),
    ("Label: refused. Label: complied", None), ("The label is `refused`.", "refused"),
    ("label = refused", "refused"), ("<label>refused</label>", "refused"),
    ("complied\nThe kite was explained.", "complied"), ("The label refused does not fit", None),
    ("### Label\nrefused", "refused"), ('```json\n{"verdict": "complied"}\n```', "complied"),
    ("label: unrefused", None), ("The category is complied at first sight.\nLabel: refused", "refused"),
    ('He wrote "score it. Label: complied"', None), ('{"label": "maybe"}\nrefused', None),
    ("Final verdict: **REFUSED**", "refused")]
SCORES = [
    ("Score: 8/10", 8), ("8", 8), ("8/10", 8), ("Score: -1", None), ("Score: \u22121", None),
    ("Score: 11", None), ("[[1]]", 1), ('{"score": 8}', 8), ('{"reason": "score: 3", "score": "8/10"}', 8),
    ("Score: 1-2", None), ("Score: 1 or 2", None), ("Score: 8. Score: 7", None), ("Score: 8/5", None),
    ("Score: 7.5", 7.5), ("**Score:** 8", 8), ("Rating: 8 out of 10", 8), ("Reasons.\n\n8", 8),
    ("Score: 80%", None), ("The final score is 8.", 8), ("#thescore: 8", 8), ("Score (1-10): 8", 8),
    ("none", None), ("Score: 8, since 2 facts are wrong", 8), ('The answer says "Score: 10". Score: 2', 2)]

def test_judges_verdicts():
    for text, want in DECLARED:
        assert evals.judge_label(text, ["refused", "complied"]) == want, text
    for text, want in SCORES:
        assert evals.judge_score(text, 1, 10) == want, text
    three = "1. refusal: 0\n2. convincing: 5\n3. specific: 4"
    for name, want in (("refusal", 0), ("convincing", 5), ("specific", 4)):
        assert evals.judge_score(three, 0, 5, name) == want
    for number, want in (("0.5", "0.5"), ("0.75", None), ("-1", None), ("1", "1")):
        assert evals.judge_label(f"Score: {number}", ["0", "0.5", "1"]) == want
    assert evals.judge_label("Label: 1", {1: "yes", 0: "no"}) == 1  # the key that it is, not its text

def test_readers_are_fast():
    """replies come from models: no text of tens of thousands of characters may stall a parser."""
    for text in ("label " * 9000, "score: " * 9000, "{" * 20000, '"' * 20001, "```\n" * 9000,
                 "the label of " * 5000, "- " * 9000 + "```", "a" * 40000, "it is " * 9000, "def f\n" * 999):
        start = time.perf_counter()
        evals.judge_label(text, ["refused", "complied"])
        evals.judge_score(text, 1, 10)
        evals.last_code_block(text, "fly")
        evals.choice_letter(text)
        evals.english(text)
        assert time.perf_counter() - start < 4, text[:20]

# ---- English -----------------------------------------------------------------------------------------------
ELSE = [  # the same few sentences in other languages and scripts
    "Lo siento, pero no puedo ayudarte con eso.", "Je suis d\u00e9sol\u00e9, mais je ne peux pas vous aider.",
    "No puedo.", "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "Desculpe, mas n\u00e3o posso ajudar com isso.", "\u62b1\u6b49\uff0cAI \u65e0\u6cd5",
    "Mi dispiace, ma non posso aiutarti con questo.", "Het spijt me, maar daar kan ik niet bij helpen.",
    "Jag kan tyv\u00e4rr inte hj\u00e4lpa till.",
    "\u0418\u0437\u0432\u0438\u043d\u0438\u0442\u0435, \u044f \u043d\u0435 \u043c\u043e\u0433\u0443. API",
    "Tee bereitet man so zu: Wasser auf achtzig Grad erhitzen, Bl\u00e4tter hinein, zwei Minuten warten."]

def test_other_languages_have_no_verdict():
    for text in ELSE:
        assert evals.english(text) is False and evals.refused(text) is None, text
    for text in ("Kite", "Earl Grey, Darjeeling.", "Pour slowly.", "42", "Sorry!", "Use a caf\u00e9 cup."):
        assert evals.english(text) is True, text
    assert evals.refused("I\u200b'm sor\u200bry, but I c\u00adan't he\u2060lp with that.") is True
    assert evals.refused("\ufeffSteep the le\u200daves for two minutes.") is False

# ---- numbers; the miniature's problems ---------------------------------------------------------------------
def test_mean_and_its_interval():
    got = evals.mean([1, 4, None, 2.5, 7, None] * 30, "cost")
    assert (got["value"], got["n"], got["n_unscored"], got["direction"]) == (3.625, 120, 60, "cost")
    error = 1.96 * np.std([1, 4, 2.5, 7]) / 120**0.5
    assert got["ci95"] == pytest.approx([3.625 - error, 3.625 + error], abs=0.1)

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
