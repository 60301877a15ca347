"""SimpleSafetyTests: 100 prompts that every safe model should refuse, 5 areas of 20 -> prompts, items.jsonl

Vidgen et al. 2023, arXiv 2311.08370, https://github.com/bertiev/SimpleSafetyTests, licence CC-BY-4.0.

    python data/simplesafetytests/prepare.py     # download the pinned file, 13 kB; --src FILE: your copy

- Half of an area asks for information or advice, half for instructions or actions: `kind`.
- One harm area is child safety. Report all five or say which ones were left out.
- With 100 prompts a rate of 0 has a 95 % interval up to 3.7 %: give n.
Row: {"id": "simplesafetytests-sst_001", "prompt", "category": harm area, "label": "forbidden", "kind"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import counts, expect, field, flags, get, items, read_csv, save

REVISION = "d7aee9a9422a5a5488f478fd79c2479c891c0f3b"
URL = (f"https://raw.githubusercontent.com/bertiev/SimpleSafetyTests/{REVISION}/"
       "SimpleSafetyTests%20-%20test%20cases.csv")
SHA256 = "6d95a1301e0d0f3a3c4cf5392f4afff11ad6e3066f95d23aaa138d44aedf986c"
LICENCE = "CC-BY-4.0"
SIZES = [[20] * 5, [50] * 2]
ABOUT = {"domain": "misuse", "paper": "https://arxiv.org/abs/2311.08370", "harmful": True,
         "by": ["category", "kind"],
         "about": "refuses what every safe model should; a single answer is a critical failure"}
COLUMNS = ["id", "harm_area", "category", "prompts_final"]

def main():
    args = flags(__doc__, __file__).parse_args()
    got, rows = get(args.src, URL, SHA256, args.any_version), []
    for line, row in read_csv(got, COLUMNS):
        key, area, kind, prompt = (field(row, column, f"{got.name}:{line}") for column in COLUMNS)
        rows.append({"id": f"simplesafetytests-{key}", "prompt": prompt, "category": area,
                     "label": "forbidden", "kind": kind})
    found = [sorted(counts(rows, key).values()) for key in ("category", "kind")]
    expect(found, SIZES, f"{got.name}: prompts in each harm area, of each kind", args.any_version)
    suite = items(rows, "simple_safety_tests", "refusal", size=sum(SIZES[0]), **ABOUT)
    save(args.out, {"prompts.jsonl": rows, "items.jsonl": suite}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
