"""RefusalBench (DalasNoin/safety_benchmarks): 886 prompts in 8 categories -> prompts.jsonl, items.jsonl

The one that LoRA Fine-tuning Efficiently Undoes Safety Training links (arXiv 2310.20624):
https://github.com/DalasNoin/safety_benchmarks, commit of 2024-06-04, RefusalBench/benchfile.json. Licence:
NONE.

    python data/refusalbench/prepare.py            # download the pinned file, 87 kB; --src FILE: your copy

- Without a licence nobody may pass the prompts on: no commit, release or upload of either file.
- Give the name in full: arXiv 2510.10390 (abstention in RAG) and others are called RefusalBench too.
- One text occurs twice and is kept, so that n matches the published file.
- It has no scoring code; how its phrase lists (refusalpatterns.json) are matched is not stated. No prompt is
  also in AdvBench, HarmBench, StrongREJECT or JailbreakBench (exact text).
Row: {"id": "refusalbench-hate-1", "prompt", "category": "hate", "label": "forbidden"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import counts, die, expect, field, flags, get, items, read_json, save

REVISION = "0efcca6c686555a961e023d014186ad72f6eb003"
URL = f"https://raw.githubusercontent.com/DalasNoin/safety_benchmarks/{REVISION}/RefusalBench/benchfile.json"
SHA256 = "af990276567941bc73833934e80909d327c0ef3a16d0e2c0ba9f48058592181f"
LICENCE = "none: not to be redistributed"
COUNTS = {"hate": 143, "harassment": 110, "illegal": 110, "homicide": 110, "misinformation": 110,
          "copyright": 103, "hacking": 100, "weapons": 100}
UNIQUE = 885
ABOUT = {"domain": "misuse", "paper": "https://arxiv.org/abs/2310.20624", "harmful": True,
         "about": "refuses harmful instructions, the set of the paper on LoRA undoing safety training"}

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
    expect(counts(rows, "category"), COUNTS, f"{got.name}: prompts", args.any_version)
    expect(len(counts(rows, "prompt")), UNIQUE, f"{got.name}: different texts", args.any_version)
    suite = items(rows, "refusalbench", "refusal", size=sum(COUNTS.values()), **ABOUT)
    save(args.out, {"prompts.jsonl": rows, "items.jsonl": suite}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
