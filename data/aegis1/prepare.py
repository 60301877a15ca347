# /// script
# dependencies = ["pyarrow"]
# ///
"""Aegis 1.0: 10,798 + 1,199 conversations, labelled by up to five annotators -> train.jsonl, test.jsonl

Ghosh et al. 2024, arXiv 2404.05993, hub: nvidia/Aegis-AI-Content-Safety-Dataset-1.0, licence CC-BY-4.0.

    python data/aegis1/prepare.py                  # download the two pinned parquet files (uv run: pyarrow)
    python data/aegis1/prepare.py --src aegis1/ --mapping defensive --rule majority --tie unsafe

- THE LABEL IS A CHOICE OF YOURS. Three flags turn the annotations into a label, are stored in meta.json and
  belong beside every number. --mapping: "Needs Caution" is safe (permissive), unsafe (defensive), or no vote
  (drop). --rule: majority; any (one unsafe vote is enough). --tie: unsafe, or drop the row. The harness
  safety-eval decides by position, so its numbers are not comparable.
- A vote is a cell of labels_0 to labels_4, of one or several categories; one that is neither Safe nor Needs
  Caution makes it unsafe. Empty cells and "None" are no votes; rows without a vote are left out.
- The label is of the whole text: a prompt, or prompt and response in one string (kind = text_type). It stands
  here as one user turn, as the released guards read it.
- needs_caution: safe by the permissive mapping (the default), unsafe by the defensive one: to map again.
- The split is not disjoint: a public reader found 131 of 1,199 texts of test in train. Ids are row numbers.
Row: {"id": "aegis1-test-1", "messages", "prompt", "response": null, "prompt_label", "response_label": null,
"categories": of the unsafe votes, the most frequent first, "unlisted": those of no policy, "needs_caution",
"kind", "labels": the votes}.
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
# the taxonomy: safe, the policy's names (O1 to O13, spelt as there), the nine sparse ones (told second-hand)
SAFE, CAUTION, OTHER = "Safe", "Needs Caution", "Other"
POLICY = ["Violence", "Sexual", "Criminal Planning/Confessions", "Guns and Illegal Weapons",
          "Controlled/Regulated Substances", "Suicide and Self Harm", "Sexual (minor)", "Hate /identity hate",
          "PII/Privacy", "Harassment", "Threat", "Profanity", CAUTION]
SPARSE = ["Illegal Activity", "Immoral/Unethical", "Unauthorized Advice", "Fraud/Deception",
          "Political/Misinformation/Conspiracy", "Copyright/Trademark/Plagiarism", "Economic Harm",
          "High Risk Government Decision Making", "Malware/Security"]
KNOWN = {name.casefold(): name for name in [SAFE, *POLICY, *SPARSE, OTHER]}
KNOWN["hate/identity hate"] = "Hate /identity hate"

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

def row_of(row, where, key, args, unknown):
    """Our row, or why there is none."""
    if not isinstance(row.get("text"), str) or not isinstance(row.get("text_type"), str):
        die(f"{where}: text, text_type: expected texts")
    votes, text = votes_of(row, where, unknown), row["text"].strip()
    label = decide(votes, args.mapping, args.rule, args.tie)
    if not (text and label):
        return "empty" if not text else "no vote" if not votes else "tie or only dropped votes"
    both = [decide(votes, mapping, args.rule, args.tie) for mapping in ("permissive", "defensive")]
    ignored = {SAFE} if args.mapping == "defensive" else {SAFE, CAUTION}
    names = Counter(name for vote in votes for name in vote if name not in ignored and label == "unsafe")
    names = [name for name, _ in names.most_common()]
    return {"id": key, "messages": [{"role": "user", "content": text}], "prompt": text, "response": None,
            "prompt_label": label, "response_label": None,
            "categories": [name for name in names if name in POLICY],
            "unlisted": [name for name in names if name not in POLICY],
            "needs_caution": both == ["safe", "unsafe"], "kind": row["text_type"],
            "labels": [", ".join(vote) for vote in votes]}

def main():
    ap = flags(__doc__, __file__, "a folder or files (parquet, JSONL, CSV) named *train*, *test*", nargs="+")
    ap.add_argument("--mapping", choices=["permissive", "defensive", "drop"], default="permissive")
    ap.add_argument("--rule", choices=["majority", "any"], default="majority")
    ap.add_argument("--tie", choices=["unsafe", "drop"], default="unsafe")
    args = ap.parse_args()
    gots, files, dropped, unknown = {}, {}, {}, []
    for split, path in pick(args.src, {split: f"*{split}*" for split in COUNTS}).items():
        url = URL + urllib.parse.quote(FILE.format(split))
        got = gots[split] = get(path, url, SHA256[split], args.any_version)
        rows = list(read_rows(got, ["text", "text_type", *CELLS]))
        expect(len(rows), COUNTS[split], f"{got.name}: rows", args.any_version)
        made = [row_of(row, f"{got.name}:{line}", f"aegis1-{split}-{n}", args, unknown)
                for n, (line, row) in enumerate(rows, 1)]
        dropped[split] = dict(Counter(row for row in made if isinstance(row, str)))
        files[f"{split}.jsonl"] = [row for row in made if isinstance(row, dict)]
        if not files[f"{split}.jsonl"]:
            die(f"{got.name}: labels_0: expected the annotators' labels, found no vote")
    if unknown:
        differs(f"{unknown[0]}: expected a category of Aegis 1.0, {len(unknown)} others", args.any_version)
    print(f"labels: mapping {args.mapping}, rule {args.rule}, tie {args.tie}; left out {dropped}")
    save(args.out, files, gots, REVISION, LICENCE, by="prompt_label", mapping=args.mapping, rule=args.rule,
         tie=args.tie, dropped=dropped)

if __name__ == "__main__":
    main()
