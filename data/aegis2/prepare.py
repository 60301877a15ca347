"""Aegis 2.0: 33,416 prompts and dialogues with labels -> train.jsonl, validation.jsonl, test.jsonl

Ghosh et al. 2025, arXiv 2501.09004, hub: nvidia/Aegis-AI-Content-Safety-Dataset-2.0, licence CC-BY-4.0.

    python data/aegis2/prepare.py     # download five pinned JSON files, 28 MB; --src FOLDER: your copy
    python data/aegis2/prepare.py --src aegis2/ --mapping defensive --rule any

- Released are labels, not votes: the human majority of the conversation is the prompt's label; a response has
  the jury's label if the conversation is unsafe, else it inherits safe. The tie rule is not published. Left
  to choose: --mapping, whether a safe prompt with the category Needs Caution stays safe (permissive, as
  released); --rule, whether that category must come first (most frequent) or may stand anywhere (any).
- Prompts that read REDACTED are of another corpus: left out and counted. Harnesses that keep them get other
  numbers, and the card's counts are not the paper's 34,248.
- Unsafe prompt => unsafe response is nearly true without the 5,200 refusals (kind "refusal": a deflection to
  an unsafe prompt, response safe). They reuse ids of other rows: -refusal is added, and -refusal-2 for the
  second to one prompt; some repeat the first word for word.
- An empty response is none. A null response_label is no label: never count it as harmful, or as safe.
- violated_categories are of the conversation: a safe prompt may have some (kept), and one that is named after
  the response does not describe the prompt. Do not train a prompt-only category head on them unfiltered.
Row: {"id", "messages", "prompt", "response", "prompt_label", "response_label", "categories", "needs_caution",
"kind": "prompt", "dialogue" or "refusal", "labels": [], "response_source"}.
"""
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, die, differs, expect, field, flags, get, pick, read_rows, save

REVISION = "d86bb8bedff51d25ac834ab7838f1cc61acb7a2c"
URL = f"https://huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-2.0/resolve/{REVISION}/"
FILES = {  # name: rows, checksum
    "train.json": (25007, "154fba82c71d9fa73abd2ca5588a198e693ddc816c83444df180a22f613e02f6"),
    "refusals_train.json": (5000, "ff948d3696c9da94cf2523f5d4ae7f16cad7b3c0fd3cb46a331dad0ed717fbe2"),
    "validation.json": (1245, "a97200e226ad4f6ba6a639982f817f675909bc74513859df3e8fc9a92951dfcd"),
    "refusals_validation.json": (200, "aba81546da0108bc931ae7fb7662b687b42b0bb3e734cde34fbddfbe33cadfcf"),
    "test.json": (1964, "b0a6d602260524866053cb34105194f074f2c2906e3691b68d43b9e6e9318f35")}
LICENCE = "CC-BY-4.0"
LABELS = ("safe", "unsafe")
SOURCES = ("human", "llm_jury", "refusal_data_augmentation")
CAUTION = "Needs Caution"
CATEGORIES = [
    "Violence", "Sexual", "Criminal Planning/Confessions", "Guns and Illegal Weapons",
    "Controlled/Regulated Substances", "Suicide and Self Harm", "Sexual (minor)", "Hate/Identity Hate",
    "PII/Privacy", "Harassment", "Threat", "Profanity", CAUTION, "Other", "Manipulation", "Fraud/Deception",
    "Malware", "High Risk Gov Decision Making", "Political/Misinformation/Conspiracy",
    "Copyright/Trademark/Plagiarism", "Unauthorized Advice", "Illegal Activity", "Immoral/Unethical"]
KNOWN = {name.casefold(): name for name in CATEGORIES}

def row_of(row, where, split, args, unknown):
    """Our row, or why there is none."""
    label = choice(row, "prompt_label", where, LABELS)
    prompt, response, names = (row.get(key) or "" for key in ("prompt", "response", "violated_categories"))
    if not isinstance(row.get("prompt"), str) or not isinstance(response, str) or not isinstance(names, str):
        die(f"{where}: prompt, response, violated_categories: expected texts")
    names = [name.strip() for name in names.split(",") if name.strip()]
    unknown += [f"{where}: violated_categories" for name in names if name.casefold() not in KNOWN]
    names = [KNOWN.get(name.casefold(), name) for name in names]
    if prompt.strip() in ("REDACTED", ""):
        return "redacted" if prompt.strip() else "empty"
    messages, kind, source, judged = [{"role": "user", "content": prompt}], "prompt", None, None
    if response.strip():
        messages.append({"role": "assistant", "content": response})
        source = choice(row, "response_label_source", where, SOURCES)
        kind = "refusal" if source == SOURCES[2] else "dialogue"
        judged = choice(row, "response_label", where, LABELS)
    caution = label == "safe" and CAUTION in (names[:1] if args.rule == "first" else names)
    key = str(row["id"]) if type(row.get("id")) is int else field(row, "id", where)
    return {"id": f"aegis2-{split}-{key}" + "-refusal" * (kind == "refusal"), "messages": messages,
            "prompt": prompt, "response": response if judged else None,
            "prompt_label": "unsafe" if caution and args.mapping == "defensive" else label,
            "response_label": judged, "categories": names, "needs_caution": caution, "kind": kind,
            "labels": [], "response_source": source}

def main():
    ap = flags(__doc__, __file__, "the folder with the five JSON files, or some of them", nargs="+")
    ap.add_argument("--mapping", choices=["permissive", "defensive"], default="permissive")
    ap.add_argument("--rule", choices=["first", "any"], default="first")
    args = ap.parse_args()
    gots, files, dropped, unknown, times = {}, {}, {}, [], Counter()
    for file, path in pick(args.src, {file: file for file in FILES}).items():
        split, (n, sha256) = file.removesuffix(".json").removeprefix("refusals_"), FILES[file]
        got = gots[file] = get(path, URL + file, sha256, args.any_version)
        found = [row_of(row, f"{got.name}:{i}", split, args, unknown) for i, row in read_rows(got)]
        expect(len(found), n, f"{got.name}: rows", args.any_version)
        rows, gone = files.setdefault(f"{split}.jsonl", []), dropped.setdefault(split, Counter())
        for row in found:
            if isinstance(row, str):
                gone[row] += 1
                continue
            if row["kind"] == "refusal":  # more than one to a prompt: the later ones are numbered
                times[row["id"]] += 1
                row["id"] += f"-{times[row['id']]}" * (times[row["id"]] > 1)
            rows.append(row)
    if unknown:
        differs(f"{unknown[0]}: expected categories of Aegis 2.0, {len(unknown)} others", args.any_version)
    for name, rows in files.items():
        expect(len(counts(rows, "id")), len(rows), f"{name}: different ids", args.any_version)
    dropped = {split: dict(gone) for split, gone in dropped.items()}
    print(f"labels: as released, needs caution {args.mapping}, where it is the {args.rule} category")
    print(f"left out {dropped}")
    save(args.out, files, gots, REVISION, LICENCE, by="prompt_label", mapping=args.mapping, rule=args.rule,
         tie="decided before the release", dropped=dropped)

if __name__ == "__main__":
    main()
