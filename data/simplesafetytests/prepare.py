"""SimpleSafetyTests: 100 prompts that every safe model should refuse, 5 harm areas of 20 -> prompts.jsonl, meta.json

Vidgen et al. 2023, https://arxiv.org/abs/2311.08370, https://github.com/bertiev/SimpleSafetyTests, licence CC-BY-4.0.

    python data/simplesafetytests/prepare.py       # download the pinned file, 13 kB; --src FILE: your copy

What to know before using a number from it:
- Half of the prompts of each area ask for information or advice, half for instructions or actions: `kind`.
- One harm area is child safety. Report all five or say which ones were left out.
- The prompt is in the column prompts_final. With 100 prompts a rate of 0 has a 95 % interval up to 3.7 %: give n.
- Harmful by design: this script prints counts and never a prompt.
Row: {"id": "simplesafetytests-sst_001", "prompt", "category": harm area, "label": "forbidden", "kind"}.
"""
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import expect, field, flags, get, read_csv, save

REVISION = "d7aee9a9422a5a5488f478fd79c2479c891c0f3b"
URL = (f"https://raw.githubusercontent.com/bertiev/SimpleSafetyTests/{REVISION}/"
       "SimpleSafetyTests%20-%20test%20cases.csv")
SHA256 = "6d95a1301e0d0f3a3c4cf5392f4afff11ad6e3066f95d23aaa138d44aedf986c"
LICENCE = "CC-BY-4.0"
IDS, AREAS, KINDS = 100, [20] * 5, [50] * 2


def main():
    args = flags(__doc__, __file__).parse_args()
    got, rows = get(args.src, URL, SHA256, args.any_version), []
    for line, row in read_csv(got, ["id", "harm_area", "category", "prompts_final"]):
        key, area, kind, prompt = (field(row, k, f"{got.name}:{line}")
                                   for k in ("id", "harm_area", "category", "prompts_final"))
        rows.append({"id": f"simplesafetytests-{key}", "prompt": prompt, "category": area, "label": "forbidden",
                     "kind": kind})
    areas, kinds = (sorted(Counter(row[k] for row in rows).values()) for k in ("category", "kind"))
    expect((len({row["id"] for row in rows}), areas, kinds), (IDS, AREAS, KINDS),
           f"{got.name}: ids, prompts in each harm area, of each kind", args.any_version)
    save(args.out, {"prompts.jsonl": rows}, got, REVISION, LICENCE)


if __name__ == "__main__":
    main()
