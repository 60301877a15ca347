"""MBPP: 500 test problems, 257 sanitized ones, 10 for prompts -> test, sanitized and fewshot.jsonl, meta.json

Austin et al. 2021, https://arxiv.org/abs/2108.07732, licence CC-BY-4.0,
https://github.com/google-research/google-research/tree/master/mbpp.

    python data/mbpp/prepare.py                                     # both pinned files, 0.9 MB
    python data/mbpp/prepare.py --src mbpp.jsonl --sanitized sanitized-mbpp.json  # or your copies, or one

What to know before using a number from it:
- Splits are task ids: 1 to 10 for prompts (the paper: 2, 3 and 4), 11 to 510 test; the rest is not written.
  The sanitized file has 427 verified problems, 257 with a test id: two sets, two numbers.
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
ROOT = f"https://raw.githubusercontent.com/google-research/google-research/{REVISION}/mbpp"
URLS = {"full": f"{ROOT}/mbpp.jsonl", "sanitized": f"{ROOT}/sanitized-mbpp.json"}
SHA256 = {"full": "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
          "sanitized": "ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9"}
LICENCE = "CC-BY-4.0"
FEWSHOT, TEST = range(1, 11), range(11, 511)  # task ids
COUNTS = {"full": (974, 500), "sanitized": (427, 257)}  # different ids in the file, and of the test split


def row_of(row, where):
    """(task, row)"""
    task = row.get("task_id")
    if type(task) is not int:
        die(f"{where}: task_id: expected a number")
    # a text under test_setup_code in the full file, a list under test_imports in the sanitized one
    setup = row["test_setup_code"] if "text" in row else "\n".join(row["test_imports"])
    return task, {"id": f"mbpp-{task}", "prompt": field(row, "text" if "text" in row else "prompt", where),
                  "tests": texts(row, "test_list", where), "code": field(row, "code", where), "setup": setup}


def main():
    ap = flags(__doc__, __file__, "a local copy of mbpp.jsonl, instead of the download")
    ap.add_argument("--sanitized", metavar="PATH", help="a local copy of sanitized-mbpp.json")
    args = ap.parse_args()
    files, gots = {}, {}
    for key, src in ("full", args.src), ("sanitized", args.sanitized):
        if src or not (args.src or args.sanitized):
            got = gots[key] = get(src, URLS[key], SHA256[key], args.any_version)
            tasks = dict(row_of(row, f"{got.name}:{line}") for line, row in read_rows(got))
            test = [row for task, row in tasks.items() if task in TEST]
            what = f"{got.name}: different problems, test problems"
            expect((len(tasks), len(test)), COUNTS[key], what, args.any_version)
            files["test.jsonl" if key == "full" else "sanitized.jsonl"] = test
            if key == "full":
                files["fewshot.jsonl"] = [row for task, row in tasks.items() if task in FEWSHOT]
    n = {name: len(rows) for name, rows in files.items()}
    save(args.out, files, gots, REVISION, LICENCE, by=None, n=n)


if __name__ == "__main__":
    main()
