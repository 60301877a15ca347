"""MBPP: 500 test problems -> items.jsonl, items-instruct.jsonl, meta.json

Austin et al. 2021, https://arxiv.org/abs/2108.07732, licence CC-BY-4.0,
https://github.com/google-research/google-research/tree/master/mbpp.

    python data/mbpp/prepare.py     # download the pinned file, 0.6 MB; --src FILE: your copy

- Splits are task ids: 11 to 510 are the test; the rest is not written. The paper shows 2, 3 and 4 first; here
  no examples are shown, so scores are lower.
  The authors' sanitized file (427 verified problems) is another set with another number.
- The name of the function stands only in the tests, so they belong in the prompt. The paper: "You are an
  expert Python programmer, and here is your task: {prompt} Your code should pass these
  tests:\\n\\n{tests}\\n[BEGIN]\\n{code}\\n[DONE]".
- The program to run is setup + the answer + every line of tests: untrusted code, a child process with limits.
- Two suites: base models go on after task and tests in a docstring (items.jsonl), chat models are asked for a
  code block (items-instruct.jsonl). Their numbers are not comparable.
- Three tests miss wrong programs: MBPP+ (EvalPlus) has more on fewer problems, and its figures are lower.
Row: {"id": "mbpp-11", "prompt", "match": "code", "code": {"prompt": Python to run before, often "",
"entry_point", "test"}, "solution": the authors' program}.
"""
import re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, items, read_rows, save, texts

REVISION = "4700efb9afa54286b0e04473ba80a13e8461e25f"
URL = f"https://raw.githubusercontent.com/google-research/google-research/{REVISION}/mbpp/mbpp.jsonl"
SHA256 = "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f"
LICENCE = "CC-BY-4.0"
TEST = range(11, 511)  # task ids
COUNTS = 974, 500  # different ids in the file, and of the test split

ABOUT = {"domain": "code", "paper": "https://arxiv.org/abs/2108.07732", "size": COUNTS[1], "max_new": 384}
STOP = ["\nclass ", "\nassert", '\n"""', "\nprint(", "\nif __name__", "\n```"]
ASK = "The program must pass these tests:"

def row_of(row, where):
    """(task, row)"""
    task = row.get("task_id")
    if type(task) is not int:
        die(f"{where}: task_id: expected a number")
    solution, tests = field(row, "code", where), texts(row, "test_list", where)
    called = [name for name in re.findall(r"(?m)^def (\w+)", solution) if f"{name}(" in tests[0]]
    setup = row["test_setup_code"]
    code = {"prompt": setup and f"{setup}\n", "entry_point": called[-1] if called else None,
            "test": "\n".join([*tests, ""])}
    return task, (field(row, "text", where), tests, {"id": f"mbpp-{task}", "match": "code", "code": code,
                                                     "solution": solution})

def main():
    args = flags(__doc__, __file__).parse_args()
    got = get(args.src, URL, SHA256, args.any_version)
    tasks = dict(row_of(row, f"{got.name}:{line}") for line, row in read_rows(got))
    test = [row for task, row in tasks.items() if task in TEST]
    what = f"{got.name}: different problems, test problems"
    expect((len(tasks), len(test)), COUNTS, what, args.any_version)
    goes_on = [row | {"prompt": "\n".join(['"""', task, *tests, '"""\n'])} for task, tests, row in test]
    asked = [row | {"prompt": "\n".join([task, ASK, *tests, "Reply with one Python code block."])}
             for task, tests, row in test]
    goes_on = items(goes_on, "mbpp", "exact", **ABOUT, raw=True, stop=STOP,
                    about="writes short programs that pass their tests, going on after them")
    asked = items(asked, "mbpp_instruct", "exact", **ABOUT,
                  about="writes short programs that pass their tests, when asked to in words")
    save(args.out, {"items.jsonl": goes_on, "items-instruct.jsonl": asked}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
