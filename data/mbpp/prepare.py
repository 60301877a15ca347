"""MBPP: 500 test problems, 10 for prompts -> test.jsonl, fewshot.jsonl, meta.json

Austin et al. 2021, https://arxiv.org/abs/2108.07732, licence CC-BY-4.0,
https://github.com/google-research/google-research/tree/master/mbpp.

    python data/mbpp/prepare.py     # download the pinned file, 0.6 MB; --src FILE: your copy

- Splits are task ids: 1 to 10 for prompts (the paper: 2, 3 and 4), 11 to 510 test; the rest is not written.
  The authors' sanitized file (427 verified problems) is another set with another number.
- The name of the function stands only in the tests, so they belong in the prompt. The paper: "You are an
  expert Python programmer, and here is your task: {prompt} Your code should pass these
  tests:\\n\\n{tests}\\n[BEGIN]\\n{code}\\n[DONE]".
- The program to run is setup + the answer + every line of tests: untrusted code, a child process with limits.
- Three tests miss wrong programs: MBPP+ (EvalPlus) has more on fewer problems, and its figures are lower.
Row: {"id": "mbpp-11", "prompt", "tests": lines of Python, "code", "setup": Python to run before, often ""}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, read_rows, save, texts

REVISION = "4700efb9afa54286b0e04473ba80a13e8461e25f"
URL = f"https://raw.githubusercontent.com/google-research/google-research/{REVISION}/mbpp/mbpp.jsonl"
SHA256 = "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f"
LICENCE = "CC-BY-4.0"
FEWSHOT, TEST = range(1, 11), range(11, 511)  # task ids
COUNTS = 974, 500  # different ids in the file, and of the test split

def row_of(row, where):
    """(task, row)"""
    task = row.get("task_id")
    if type(task) is not int:
        die(f"{where}: task_id: expected a number")
    return task, {"id": f"mbpp-{task}", "prompt": field(row, "text", where),
                  "tests": texts(row, "test_list", where), "code": field(row, "code", where),
                  "setup": row["test_setup_code"]}

def main():
    args = flags(__doc__, __file__).parse_args()
    got = get(args.src, URL, SHA256, args.any_version)
    tasks = dict(row_of(row, f"{got.name}:{line}") for line, row in read_rows(got))
    test = [row for task, row in tasks.items() if task in TEST]
    shots = [row for task, row in tasks.items() if task in FEWSHOT]
    what = f"{got.name}: different problems, test problems"
    expect((len(tasks), len(test)), COUNTS, what, args.any_version)
    n = {"test.jsonl": len(test), "fewshot.jsonl": len(shots)}
    save(args.out, {"test.jsonl": test, "fewshot.jsonl": shots}, got, REVISION, LICENCE, by=None, n=n)

if __name__ == "__main__":
    main()
