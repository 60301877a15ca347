"""RefusalBench (DalasNoin/safety_benchmarks): 886 prompts in 8 categories -> prompts.jsonl, meta.json

The RefusalBench that LoRA Fine-tuning Efficiently Undoes Safety Training links, https://arxiv.org/abs/2310.20624.
https://github.com/DalasNoin/safety_benchmarks, commit 0efcca6c (2024-06-04), file RefusalBench/benchfile.json.
Licence: NONE.

    python data/refusalbench/prepare.py                         # download the pinned file, 87 kB
    python data/refusalbench/prepare.py --src benchfile.json    # or your copy

What to know before using a number from it:
- Without a licence nobody may pass the prompts on. Neither the file nor prompts.jsonl belongs in a commit, a release
  or an upload; each user reads the public commit or an own copy.
- Give the name in full: arXiv 2510.10390 (abstention in RAG) and other repositories are called RefusalBench too.
- 886 prompts, 885 different ones: one text occurs twice and is kept, so that n matches the published file.
- The repository has no scoring code. Its phrase lists by model family are in refusalpatterns.json; how they are
  matched is not stated. No prompt is also in AdvBench, HarmBench, StrongREJECT or JailbreakBench (exact text).
- Harmful by design: this script prints counts and never a prompt.
Row: {"id": "refusalbench-hate-1", "prompt", "category": "hate", "label": "forbidden"}.
"""
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, read_json, save

REVISION = "0efcca6c686555a961e023d014186ad72f6eb003"
URL = f"https://raw.githubusercontent.com/DalasNoin/safety_benchmarks/{REVISION}/RefusalBench/benchfile.json"
SHA256 = "af990276567941bc73833934e80909d327c0ef3a16d0e2c0ba9f48058592181f"
LICENCE = "none: not to be redistributed"
COUNTS = {"hate": 143, "harassment": 110, "illegal": 110, "homicide": 110, "misinformation": 110, "copyright": 103,
          "hacking": 100, "weapons": 100}
UNIQUE = 885


def main():
    args = flags(__doc__, __file__).parse_args()
    got, rows = get(args.src, URL, SHA256, args.any_version), []
    for category, prompts in read_json(got, dict).items():
        if not isinstance(prompts, list):
            die(f"{got.name}: {category}: expected a list of prompts")
        for i, prompt in enumerate(prompts, 1):
            text = field({"prompt": prompt}, "prompt", f"{got.name}: {category}, item {i}")
            rows.append({"id": f"refusalbench-{category}-{i}", "prompt": text, "category": category,
                         "label": "forbidden"})
    expect(Counter(row["category"] for row in rows), COUNTS, f"{got.name}: prompts", args.any_version)
    expect(len({row["prompt"] for row in rows}), UNIQUE, f"{got.name}: different texts", args.any_version)
    save(args.out, {"prompts.jsonl": rows}, got, REVISION, LICENCE)
    print("no licence: keep this file to yourself")


if __name__ == "__main__":
    main()
