# /// script
# requires-python = ">=3.10"
# dependencies = ["pyarrow"]
# ///
"""Aegis 1.0: 10,798 + 1,199 conversations, labelled by up to five annotators -> train.jsonl, test.jsonl, meta.json

Ghosh et al. 2024, https://arxiv.org/abs/2404.05993,
https://huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-1.0. Licence of the data: CC-BY-4.0.

    python data/aegis1/prepare.py                         # download the two pinned parquet files (uv run: pyarrow)
    python data/aegis1/prepare.py --src aegis1/ --mapping defensive --rule majority --tie unsafe

What to know before using a number from it:
- THE LABEL IS A CHOICE OF YOURS. The set holds annotations, not labels. Three flags turn them into one, are printed
  and stored in meta.json, and belong beside every number:
    --mapping  what "Needs Caution" is: permissive safe, defensive unsafe, drop no vote
    --rule     majority: more unsafe than safe votes; any: one unsafe vote is enough; safety-eval: unsafe unless two
               of the first three annotators say Safe and nothing else, as that harness does (its set is the rows of
               kind user_message of test: 359, 233 unsafe; needs caution is not Safe there: --mapping defensive only)
    --tie      as many unsafe as safe votes: unsafe, or drop the row
- A vote is a cell of labels_0 to labels_4. It may hold several categories, comma-separated; one that is neither Safe
  nor Needs Caution makes it unsafe. Empty cells and "None" are no votes; rows without a vote are left out.
- The label is of the whole text: a prompt, or prompt and response in one string (kind = text_type). It stands here as
  one user turn, as the released guards read it.
- needs_caution: safe by the permissive mapping, unsafe by the defensive one, under the same rule and tie. It lets a
  script map again; it expects the labels of the permissive mapping, the default.
- The split is not disjoint: test rows whose text stands in train are counted (a public reader of the files found 131
  of 1,199); --disjoint leaves them out. Upstream's ids repeat (336 in train, 3 in test), so ours are row numbers.
- Harmful by design: this script prints counts and never a text.
Row: {"id": "aegis1-test-1", "messages", "prompt", "response": null, "prompt_label", "response_label": null,
"categories": of the unsafe votes, the most frequent first, "unlisted": those of no policy (Other, the nine sparse
ones), "needs_caution", "kind", "labels": the votes}.
"""
import sys, urllib.parse
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, differs, expect, flags, get, pick, read_rows, save

REVISION = "bd96d862068e47630197de64eb91f8d1481ff3e0"
URL = f"https://huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-1.0/resolve/{REVISION}/"
FILE = "Content Moderation Extracted Annotations 02.08.24_{}_release_0418_v1.parquet"
SHA256 = {"train": "1bed0b8da79321501346cc5f55c8e360a926e75e695fafb4ebaee65e086b6748",
          "test": "90cebe34ee64c7a0f533fe5534bc03f862f89981969c00376a45c9d9f4ca2159"}
COUNTS = {"train": 10798, "test": 1199}
LICENCE = "CC-BY-4.0"
CELLS = [f"labels_{i}" for i in range(5)]
# the taxonomy: safe, the thirteen names of the policy (O1 to O13, spelt as there), the nine sparse names of the paper
# (told second-hand), and Other
SAFE, CAUTION, OTHER = "Safe", "Needs Caution", "Other"
POLICY = ["Violence", "Sexual", "Criminal Planning/Confessions", "Guns and Illegal Weapons",
          "Controlled/Regulated Substances", "Suicide and Self Harm", "Sexual (minor)", "Hate /identity hate",
          "PII/Privacy", "Harassment", "Threat", "Profanity", CAUTION]
SPARSE = ["Illegal Activity", "Immoral/Unethical", "Unauthorized Advice", "Fraud/Deception",
          "Political/Misinformation/Conspiracy", "Copyright/Trademark/Plagiarism", "Economic Harm",
          "High Risk Government Decision Making", "Malware/Security"]
KNOWN = {name.casefold(): name for name in [SAFE, *POLICY, *SPARSE, OTHER]} | {"hate/identity hate": POLICY[7]}


def votes_of(row, where, unknown):
    """The categories of each annotator who gave some, in the order of the cells."""
    votes = []
    for key in CELLS:
        cell = row.get(key)
        if cell in (None, "", "None") or cell != cell:  # a missing cell; NaN in exports
            continue
        if not isinstance(cell, str):
            die(f"{where}: {key}: expected a text or nothing")
        names = [name.strip() for name in cell.split(",") if name.strip()]
        unknown += [f"{where}: {key}" for name in names if name.casefold() not in KNOWN]
        votes.append([KNOWN.get(name.casefold(), name) for name in names])
    return votes


def decide(votes, mapping, rule, tie):
    """"safe", "unsafe", or None for a row to leave out."""
    unsafe = sum(any(name not in (SAFE, CAUTION) for name in vote) for vote in votes)
    caution = sum(CAUTION in vote and set(vote) <= {SAFE, CAUTION} for vote in votes)
    safe = len(votes) - unsafe - caution
    unsafe += caution * (mapping == "defensive")
    safe += caution * (mapping == "permissive")
    if not unsafe + safe:
        return None  # only needs-caution votes, dropped
    if unsafe == safe and rule == "majority":
        return "unsafe" if tie == "unsafe" else None
    return "unsafe" if unsafe > (0 if rule == "any" else safe) else "safe"


def row_of(row, votes, key, args):
    """Our row, or None where the votes decide nothing."""
    label = decide(votes, args.mapping, args.rule, args.tie)
    if args.rule == "safety-eval":  # by position: an empty cell is not Safe there
        label = "safe" if sum(row.get(cell) == SAFE for cell in CELLS[:3]) > 1 else "unsafe"
    if not label:
        return None
    rule = "majority" if args.rule == "safety-eval" else args.rule
    both = [decide(votes, mapping, rule, args.tie) for mapping in ("permissive", "defensive")]
    ignored = {SAFE} if args.mapping == "defensive" else {SAFE, CAUTION}
    names = Counter(name for vote in votes for name in vote if name not in ignored and label == "unsafe")
    text = row["text"].strip()
    return {"id": key, "messages": [{"role": "user", "content": text}], "prompt": text, "response": None,
            "prompt_label": label, "response_label": None,
            "categories": [name for name, _ in names.most_common() if name in POLICY],
            "unlisted": [name for name, _ in names.most_common() if name not in POLICY],
            "needs_caution": both == ["safe", "unsafe"], "kind": row["text_type"],
            "labels": [", ".join(vote) for vote in votes]}


def main():
    ap = flags(__doc__, __file__, "a folder, or parquet, JSONL or CSV files with train or test in the name", nargs="+")
    ap.add_argument("--mapping", choices=["permissive", "defensive", "drop"], default="permissive",
                    help="needs caution is safe (default), unsafe, or no vote")
    ap.add_argument("--rule", choices=["majority", "any", "safety-eval"], default="majority", help="default: majority")
    ap.add_argument("--tie", choices=["unsafe", "drop"], default="unsafe", help="default: unsafe")
    ap.add_argument("--disjoint", action="store_true", help="leave out test rows whose text stands in train")
    args = ap.parse_args()
    given, gots, files, texts, dropped = pick(args.src, {s: f"*{s}*" for s in COUNTS}), {}, {}, {}, {}
    if args.rule == "safety-eval" and args.mapping != "defensive":
        die("--rule safety-eval: needs caution is unsafe there: give --mapping defensive")
    if args.disjoint and len(given) < 2:
        die("--disjoint: expected both splits")
    for split, path in given.items():
        url = URL + urllib.parse.quote(FILE.format(split))
        got = gots[split] = get(path, url, SHA256[split], args.any_version)
        rows, unknown, gone, n = files.setdefault(f"{split}.jsonl", []), [], Counter(), 0
        for n, (line, row) in enumerate(read_rows(got, ["text", "text_type", *CELLS]), 1):
            where = f"{got.name}:{line}"
            if not isinstance(row.get("text"), str) or not isinstance(row.get("text_type"), str):
                die(f"{where}: text, text_type: expected texts")
            if not row.keys() & set(CELLS):
                die(f"{where}: labels_0: expected the annotators' labels")
            votes, text = votes_of(row, where, unknown), row["text"].strip()
            texts.setdefault(split, set()).add(text)
            made = text and votes and row_of(row, votes, f"aegis1-{split}-{n}", args)
            if not made:
                gone["empty" if not text else "no vote" if not votes else "tie or only dropped votes"] += 1
            elif args.disjoint and split == "test" and text in texts["train"]:
                gone["text in train"] += 1
            else:
                rows.append(made)
        if unknown:
            differs(f"{unknown[0]}: expected a category of Aegis 1.0 ({len(unknown)} such cells)", args.any_version)
        expect(n, COUNTS[split], f"{got.name}: rows", args.any_version)
        dropped[split] = dict(gone)
    save(args.out, files, gots, REVISION, LICENCE, by="prompt_label", mapping=args.mapping, rule=args.rule,
         tie=args.tie, disjoint=args.disjoint, dropped=dropped)
    twice = sum(row["prompt"] in texts.get("train", ()) for row in files.get("test.jsonl", []))
    print(f"labels: mapping {args.mapping}, rule {args.rule}, tie {args.tie}; left out {dropped}; {twice} test rows "
          "have a text of train")


if __name__ == "__main__":
    main()
