"""OR-Bench: 1,319 hard prompts that look toxic and are not, 655 toxic prompts -> prompts, items.jsonl

Cui et al. 2024, arXiv 2405.20947, https://huggingface.co/datasets/bench-llm/or-bench. Licence of the data:
CC-BY-4.0.

    python data/orbench/prepare.py     # download both files, 0.2 MB
    python data/orbench/prepare.py --src or-bench-hard-1k.csv or-bench-toxic.csv     # your copies, or one

- hard-1k measures over-refusal (allowed): a refusal there is the fault. toxic (forbidden) is its control. The
  two rates belong in one chart and are never pooled.
- hard-1k has 1,319 rows, and the toxic set, about 600 in the paper, has 655.
- Allowed by construction: language models wrote the prompts and voted on them. Some are arguable.
- The checksums were read in public code that pins this revision.
Row: {"id": "orbench-hard-1" or "orbench-toxic-1", "prompt", "category", "label"}; numbered by row.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import counts, expect, field, flags, get, items, joined, pick, read_csv, save

REVISION = "e36d8b80e81837c8a8f264bbb2a49f1b32c7e272"
URL = f"https://huggingface.co/datasets/bench-llm/or-bench/resolve/{REVISION}/"
LICENCE = "CC-BY-4.0"
ABOUT = {"domain": "over-refusal", "paper": "https://arxiv.org/abs/2405.20947", "harmful": True, "about":
         "answers prompts that look toxic and are not, and refuses toxic ones: two rates, never pooled"}
FILES = {  # subset: (file, label, rows and categories, checksum)
    "hard": ("or-bench-hard-1k.csv", "allowed", (1319, 10),
             "a6e2f1166416efe5901f3bb05c47dc92ab3aca3acfe143693d38b8057d841e6d"),
    "toxic": ("or-bench-toxic.csv", "forbidden", (655, 10),
              "3be45901faae3b4b2b51bf7f8a2784c1650a1cc8c631dbc8b171d5312d4e0057")}

def main():
    args = flags(__doc__, __file__, "one or both files, under their own names", nargs="+").parse_args()
    gots, rows = [], []
    for subset, path in pick(args.src, {subset: about[0] for subset, about in FILES.items()}).items():
        file, label, sizes, sha256 = FILES[subset]
        got = get(path, URL + file, sha256, args.any_version)
        found = [{"id": f"orbench-{subset}-{i}", "prompt": field(row, "prompt", f"{got.name}:{line}"),
                  "category": field(row, "category", f"{got.name}:{line}"), "label": label}
                 for i, (line, row) in enumerate(read_csv(got, ["prompt", "category"]), 1)]
        found_sizes = len(found), len(counts(found, "category"))
        expect(found_sizes, sizes, f"{got.name}: prompts, categories", args.any_version)
        gots, rows = gots + [got], rows + found
    size = sum(sizes[0] for _, _, sizes, _ in FILES.values())
    suite = items(rows, "or_bench", "refusal", size=size, **ABOUT)
    files = {"prompts.jsonl": rows, "items.jsonl": suite}
    save(args.out, files, joined(gots, URL, args.src), REVISION, LICENCE, by="label")

if __name__ == "__main__":
    main()
