"""WildJailbreak, evaluation part: 2,000 adversarial harmful, 210 adversarial benign -> prompts.jsonl

Jiang et al. 2024, arXiv 2406.18510. Licence: ODC-BY. GATED: accept the terms at
https://huggingface.co/datasets/allenai/wildjailbreak, fetch the files with your own account:

    hf download allenai/wildjailbreak eval/eval.tsv train/train.tsv --repo-type dataset \\
        --local-dir wildjailbreak --revision 5ddc12a7894f842b0619b8e1c7ee496b198af009
    python data/wildjailbreak/prepare.py --src wildjailbreak/eval/eval.tsv
    python data/wildjailbreak/prepare.py --src wildjailbreak/train/train.tsv     # 261,559 rows -> train.jsonl

- Only train has the column vanilla: the header tells them apart. The prompt is `adversarial` in adversarial
  rows, else `vanilla`. Completions are not written.
- adversarial_benign rows look like jailbreaks and are not (allowed): their refusals are the over-refusal
  rate. Never pool the labels: with 2,000 to 210, refusing everything would look like 90 % right.
- SafeChain's WildJailbreakEval (300 rows) is another set, made from this one. Evaluation prompts must not be
  trained on; the train file may hold near copies of them.
- The checksums were read in public code that pins this revision. Keep the rows to yourself.
Row: {"id": "wildjailbreak-eval-1", "prompt", "category": data_type, "label": "forbidden" for _harmful,
"allowed" for _benign}; the number is the 1-based row of its file.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, die, expect, field, flags, get, read_csv, read_file, save

REVISION = "5ddc12a7894f842b0619b8e1c7ee496b198af009"
LICENCE = "ODC-BY, gated: not to be passed on without its terms"
TYPES = {"eval": ["adversarial_harmful", "adversarial_benign"]}
TYPES["train"] = [*TYPES["eval"], "vanilla_harmful", "vanilla_benign"]
SHA256 = {"eval": "eeb7e43aafa0151588f5cb8994b99adc0ee34a57819d92f43a6084f0b7fe4fa4",
          "train": "376719bfdb46ad1a19e7ba4f587f80cc7cb1368cc213ee647ef739c170550f7a"}
COUNTS = {"eval": {"adversarial_harmful": 2000, "adversarial_benign": 210}, "train": 261559}
WRITTEN = {"eval": ("prompts.jsonl", "meta.json"), "train": ("train.jsonl", "meta_train.json")}


def main():
    args = flags(__doc__, __file__, "eval.tsv or train.tsv, fetched with your own account").parse_args()
    if not args.src:
        die("gated: accept the terms at https://huggingface.co/datasets/allenai/wildjailbreak, fetch "
            "eval/eval.tsv (or train/train.tsv) with your account, then --src FILE")
    rows, header = [], read_file(args.src).split(b"\n", 1)[0]
    split = "train" if b"vanilla" in header else "eval"
    got = get(args.src, f"allenai/wildjailbreak {split}/{split}.tsv", SHA256[split], args.any_version)
    for i, (line, row) in enumerate(read_csv(got, ["adversarial", "data_type"], delimiter="\t"), 1):
        where = f"{got.name}:{line}"
        kind = choice(row, "data_type", where, TYPES[split])
        rows.append({"id": f"wildjailbreak-{split}-{i}", "prompt": field(row, kind.split("_")[0], where),
                     "category": kind, "label": "forbidden" if kind.endswith("harmful") else "allowed"})
    found = counts(rows, "category")
    expect(found if split == "eval" else len(rows), COUNTS[split], f"{got.name}: rows", args.any_version)
    target, meta = WRITTEN[split]
    save(args.out, {target: rows}, got, REVISION, LICENCE, meta=meta)


if __name__ == "__main__":
    main()
