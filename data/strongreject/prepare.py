"""StrongREJECT: 313 forbidden prompts in 6 categories -> prompts.jsonl

Souly et al. 2024, arXiv 2402.10260, https://github.com/alexandrasouly/strongreject, licence MIT.

    python data/strongreject/prepare.py            # download the pinned file, 56 kB; --src FILE: your copy

- 92 of the 313 come from older sets, 25 word for word from AdvBench: remove duplicates before pooling.
- The authors' small set of 60 (10 a category) is all among the 313, with a category spelled differently.
Row: {"id": "strongreject-1", "prompt", "category", "label": "forbidden"}; numbered by row.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, expect, field, flags, get, read_csv, save

REVISION = "f7cad6c17e624e21d8df2278e918ae1dddb4cb56"
URL = (f"https://raw.githubusercontent.com/alexandrasouly/strongreject/{REVISION}/strongreject_dataset/"
       "strongreject_dataset.csv")
SHA256 = "4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381"
LICENCE = "MIT"
COUNTS = {"Non-violent crimes": 59, "Violence": 54, "Disinformation and deception": 50, "Sexual content": 50,
          "Hate, harassment and discrimination": 50, "Illegal goods and services": 50}

def main():
    args = flags(__doc__, __file__).parse_args()
    got, rows = get(args.src, URL, SHA256, args.any_version), []
    for i, (line, row) in enumerate(read_csv(got, ["category", "source", "forbidden_prompt"]), 1):
        where = f"{got.name}:{line}"
        rows.append({"id": f"strongreject-{i}", "prompt": field(row, "forbidden_prompt", where),
                     "category": choice(row, "category", where, COUNTS), "label": "forbidden"})
    expect(counts(rows, "category"), COUNTS, f"{got.name}: prompts", args.any_version)
    save(args.out, {"prompts.jsonl": rows}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
