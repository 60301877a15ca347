"""WildJailbreak, evaluation part: 2,000 adversarial harmful, 210 adversarial benign -> prompts.jsonl

Jiang et al. 2024, arXiv 2406.18510. Licence: ODC-BY. GATED: accept the terms at
https://huggingface.co/datasets/allenai/wildjailbreak, fetch the files with your own account:

    hf download allenai/wildjailbreak eval/eval.tsv --repo-type dataset --local-dir wildjailbreak \\
        --revision 5ddc12a7894f842b0619b8e1c7ee496b198af009
    python data/wildjailbreak/prepare.py --src wildjailbreak/eval/eval.tsv

- adversarial_benign rows look like jailbreaks and are not (allowed): their refusals are the over-refusal
  rate. Never pool the labels: with 2,000 to 210, refusing everything would look like 90 % right.
- The training file (261,559 rows) is not read; it may hold near copies of these prompts, which must not be
  trained on. SafeChain's WildJailbreakEval (300 rows) is another set, made from it.
- The checksum was read in public code that pins this revision. Keep the rows to yourself.
Row: {"id": "wildjailbreak-eval-1", "prompt", "category": data_type, "label": "forbidden" or "allowed"};
numbered by row.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, die, expect, field, flags, get, read_csv, save

REVISION = "5ddc12a7894f842b0619b8e1c7ee496b198af009"
FILE = "allenai/wildjailbreak eval/eval.tsv"
SHA256 = "eeb7e43aafa0151588f5cb8994b99adc0ee34a57819d92f43a6084f0b7fe4fa4"
LICENCE = "ODC-BY, gated: not to be passed on without its terms"
COUNTS = {"adversarial_harmful": 2000, "adversarial_benign": 210}
LABELS = {"adversarial_harmful": "forbidden", "adversarial_benign": "allowed"}

def main():
    args = flags(__doc__, __file__, "eval.tsv, fetched with your own account").parse_args()
    if not args.src:
        die("gated: accept the terms at https://huggingface.co/datasets/allenai/wildjailbreak, fetch "
            "eval/eval.tsv with your account, then --src FILE")
    got, rows = get(args.src, FILE, SHA256, args.any_version), []
    for i, (line, row) in enumerate(read_csv(got, ["adversarial", "data_type"], delimiter="\t"), 1):
        where = f"{got.name}:{line}"
        kind = choice(row, "data_type", where, LABELS)
        rows.append({"id": f"wildjailbreak-eval-{i}", "prompt": field(row, "adversarial", where),
                     "category": kind, "label": LABELS[kind]})
    expect(counts(rows, "category"), COUNTS, f"{got.name}: rows", args.any_version)
    save(args.out, {"prompts.jsonl": rows}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
