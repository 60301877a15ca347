"""WildJailbreak: 2,000 + 210 prompts to test on -> prompts, items.jsonl; with --train also train.jsonl

Jiang et al. 2024, arXiv 2406.18510. Licence: ODC-BY. GATED: accept the terms at
https://huggingface.co/datasets/allenai/wildjailbreak, fetch the files with your own account:

    hf download allenai/wildjailbreak eval/eval.tsv train/train.tsv --repo-type dataset \\
        --local-dir wj --revision 5ddc12a7894f842b0619b8e1c7ee496b198af009
    python data/wildjailbreak/prepare.py --src wj/eval/eval.tsv --train wj/train/train.tsv

- adversarial_benign rows look like jailbreaks and are not (allowed): their refusals are the over-refusal
  rate. Never pool the labels: with 2,000 to 210, refusing everything would look like 90 % right.
- --train (261,559 rows): instructions to build a safety set from, without the completions.
  The prompt of an adversarial row is `adversarial`; its `vanilla` is what it was made from. Prompts of the
  evaluation part are left out and counted, compared but for case and spaces: near copies may remain. It
  takes half a minute, and nine times the file's size in memory.
- SafeChain's WildJailbreakEval (data/wildjailbreakeval, 300 rows) is another set, made from this.
- The checksums were read in public code that pins this revision, the counts to train on in a public list of
  one copy. Keep the rows to yourself.
Rows: {"id": "wildjailbreak-eval-1", "prompt", "category": data_type, "label": "forbidden" or "allowed"} and
{"id": "wildjailbreak-train-1", "prompt", "label": data_type, "category": "harmful" or "benign"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, die, expect, field, flags, get, items, read_csv, save

REVISION = "5ddc12a7894f842b0619b8e1c7ee496b198af009"
FILE, TRAIN_FILE = "allenai/wildjailbreak eval/eval.tsv", "allenai/wildjailbreak train/train.tsv"
SHA256 = "eeb7e43aafa0151588f5cb8994b99adc0ee34a57819d92f43a6084f0b7fe4fa4"
TRAIN_SHA256 = "376719bfdb46ad1a19e7ba4f587f80cc7cb1368cc213ee647ef739c170550f7a"
LICENCE = "ODC-BY, gated: not to be passed on without its terms"
COUNTS = {"adversarial_harmful": 2000, "adversarial_benign": 210}
LABELS = {"adversarial_harmful": "forbidden", "adversarial_benign": "allowed"}
TRAIN_COUNTS = {"harmful": 132778, "benign": 128781}
TYPES = ["vanilla_harmful", "vanilla_benign", "adversarial_harmful", "adversarial_benign"]

ABOUT = {"domain": "misuse", "paper": "https://arxiv.org/abs/2406.18510", "harmful": True, "about":
         "refuses jailbreaks and answers what only looks like one: two rates, never pooled"}

def plain(text):
    return " ".join(text.split()).casefold()

def training_rows(got, evaluated, any_version):
    """The instructions, without those of the evaluation part -> (rows, numbers of what was left out)"""
    rows, dropped, found = [], {"empty": 0, "evaluated": 0}, dict.fromkeys(TRAIN_COUNTS, 0)
    columns = ["vanilla", "adversarial", "data_type"]
    for i, (line, row) in enumerate(read_csv(got, columns, delimiter="\t"), 1):
        way, category = choice(row, "data_type", f"{got.name}:{line}", TYPES).split("_")
        found[category] += 1
        same = plain(row[way])
        if not same or same in evaluated:
            dropped["evaluated" if same else "empty"] += 1
            continue
        rows.append({"id": f"wildjailbreak-train-{i}", "prompt": row[way], "label": row["data_type"],
                     "category": category})
    expect(found, TRAIN_COUNTS, f"{got.name}: rows", any_version)
    print(f"{got.name}: left out {dropped}")
    return rows, dropped

def main():
    ap = flags(__doc__, __file__, "eval.tsv, fetched with your own account")
    ap.add_argument("--train", metavar="PATH", help="train.tsv: also train.jsonl")
    args = ap.parse_args()
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
    suite = items(rows, "wildjailbreak", "refusal", size=sum(COUNTS.values()), **ABOUT)
    files, gots, more = {"prompts.jsonl": rows, "items.jsonl": suite}, got, {}
    if args.train:
        train = get(args.train, TRAIN_FILE, TRAIN_SHA256, args.any_version)
        evaluated = {plain(row["prompt"]) for row in rows}
        files["train.jsonl"], more["dropped"] = training_rows(train, evaluated, args.any_version)
        gots = {"prompts.jsonl": got, "train.jsonl": train}
    save(args.out, files, gots, REVISION, LICENCE, **more)

if __name__ == "__main__":
    main()
