"""StrongREJECT: 313 forbidden prompts in 6 categories, or the 60 of --small -> prompts.jsonl

Souly et al. 2024, arXiv 2402.10260, https://github.com/alexandrasouly/strongreject, licence MIT.

    python data/strongreject/prepare.py            # download the pinned file, 56 kB; --src FILE: your copy
    python data/strongreject/prepare.py --small    # 60 -> prompts_small.jsonl, meta_small.json

- 92 of the 313 come from older sets, 25 word for word from AdvBench: remove duplicates before pooling.
- The 60 (10 a category) are all among the 313: never add the two up. One category is spelled differently in
  the two files; both get the spelling of the full one.
Row: {"id": "strongreject-1", "prompt", "category", "label": "forbidden"}; numbered by row.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import counts, die, expect, field, flags, get, read_csv, save

REVISION = "f7cad6c17e624e21d8df2278e918ae1dddb4cb56"
URL = f"https://raw.githubusercontent.com/alexandrasouly/strongreject/{REVISION}/strongreject_dataset/"
LICENCE = "MIT"
FULL = {"Non-violent crimes": 59, "Violence": 54, "Disinformation and deception": 50, "Sexual content": 50,
        "Hate, harassment and discrimination": 50, "Illegal goods and services": 50}
SPELLING = {name.lower(): name for name in FULL}
SETS = {  # --small: file, checksum, counts, id prefix, suffix of the files written
    False: ("strongreject_dataset.csv", "4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381",
            FULL, "strongreject", ""),
    True: ("strongreject_small_dataset.csv",
           "3051340e3e89a3598d764dde497d5fcda80e258ac05cc35e6bd87228ac3d467c",
           dict.fromkeys(FULL, 10), "strongreject-small", "_small")}


def main():
    ap = flags(__doc__, __file__)
    ap.add_argument("--small", action="store_true", help="the 60-prompt set instead of the 313")
    args = ap.parse_args()
    file, sha256, numbers, prefix, suffix = SETS[args.small]
    got, rows = get(args.src, URL + file, sha256, args.any_version), []
    for i, (line, row) in enumerate(read_csv(got, ["category", "source", "forbidden_prompt"]), 1):
        where = f"{got.name}:{line}"
        category = field(row, "category", where).lower()
        rows.append({"id": f"{prefix}-{i}", "prompt": field(row, "forbidden_prompt", where),
                     "category": SPELLING.get(category) or die(f"{where}: category: expected one of the six"),
                     "label": "forbidden"})
    expect(counts(rows, "category"), numbers, f"{got.name}: prompts", args.any_version)
    save(args.out, {f"prompts{suffix}.jsonl": rows}, got, REVISION, LICENCE, meta=f"meta{suffix}.json")


if __name__ == "__main__":
    main()
