"""OpenAI moderation evaluation set: 1,680 texts, 522 with a positive label -> test.jsonl

Markov et al. 2022, arXiv 2208.03274, https://github.com/openai/moderation-api-release. Licence: MIT.

    python data/openaimod/prepare.py     # download the pinned file; --src FILE: your copy, packed or not

- A MISSING KEY MEANS UNKNOWN, NOT 0. Unsafe = any of the eight labels is 1. The usual convention takes all
  other rows for safe: that gives 522 of 1,680, and published F1 scores. A row without a 1 and with missing
  keys is not known to be safe: it has the kind "partial" (others "known"). Say which were scored.
- `known` lists the labels that were given: score a category on the rows that have it.
- It is a test set for prompts: no response, no split.
Row: {"id": "openaimod-1", "messages", "prompt", "response": null, "prompt_label", "response_label": null,
"categories": names of the labels that are 1, "needs_caution": false, "kind", "labels": [], "known": names}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, die, expect, field, flags, get, read_rows, save

REVISION = "f4ab51b5edd3bfbcb349a56324274235b674e0e4"
URL = f"https://raw.githubusercontent.com/openai/moderation-api-release/{REVISION}/data/samples-1680.jsonl.gz"
SHA256 = "ef3f7de86ee394fe337b0a566ba4b9c7db058f3caa8d6a4a0006138b663ab9a8"
LICENCE = "MIT"
COUNTS = {"safe": 1158, "unsafe": 522}
NAMES = {"S": "sexual", "H": "hate", "V": "violence", "HR": "harassment", "SH": "self-harm",
         "S3": "sexual/minors", "H2": "hate/threatening", "V2": "violence/graphic"}

def row_of(row, where, line):
    given = [key for key in NAMES if row.get(key) is not None]  # null: missing as well
    if not given or any(isinstance(row[key], bool) for key in given):
        die(f"{where}: labels: expected 0 or 1 in at least one of {', '.join(NAMES)}")
    text = field(row, "prompt", where)
    positive = [NAMES[key] for key in given if choice(row, key, where, (0, 1))]
    return {"id": f"openaimod-{line}", "messages": [{"role": "user", "content": text}], "prompt": text,
            "response": None, "prompt_label": "unsafe" if positive else "safe", "response_label": None,
            "categories": positive, "needs_caution": False,
            "kind": "known" if positive or len(given) == len(NAMES) else "partial", "labels": [],
            "known": [NAMES[key] for key in given]}

def main():
    args = flags(__doc__, __file__).parse_args()
    got = get(args.src, URL, SHA256, args.any_version)
    rows = [row_of(row, f"{got.name}:{line}", line) for line, row in read_rows(got)]
    expect(counts(rows, "prompt_label"), COUNTS, f"{got.name}: rows", args.any_version)
    save(args.out, {"test.jsonl": rows}, got, REVISION, LICENCE, by="prompt_label")

if __name__ == "__main__":
    main()
