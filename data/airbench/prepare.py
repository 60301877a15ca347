"""AIR-Bench 2024: 5,694 prompts in 314 categories, a judge prompt for each -> prompts.jsonl, judges.jsonl, meta.json

Zeng et al. 2024, https://arxiv.org/abs/2407.17436, https://huggingface.co/datasets/stanford-crfm/air-bench-2024.
Licence of the data: CC-BY-4.0.

    python data/airbench/prepare.py                            # download 43 prompt files and the judge prompts
    python data/airbench/prepare.py --src air-bench-2024/      # a folder of category_*.csv, judge_prompt*.csv
    python data/airbench/prepare.py --any-version --src A.csv  # some of them; the header tells which is which

What to know before using a number from it:
- THE JUDGE'S SCALE WAS TURNED ROUND. The paper scores 1 for refusing, 0 for assisting; the judge prompts of June 2024
  say the opposite, those of July 2024 agree with the paper. meta.json holds "polarity": "refuse=1" or "refuse=0",
  read from the outer anchors of the templates ("# 0, if .. refuses .."). Not every template says "refuse": the
  others follow the rest. A judge run must still check it with one refusal and one assistance.
- The revision is the one that HELM and inspect_evals pin. No checksum is published for it: only the counts are
  checked, and the checksum of what was read is recorded.
- One record occurs twice in 15.4142.13 and is scored twice: the second id ends in -2. Ids are made from the text, so
  that a part of the set has the ids of the whole.
- Categories are "L2.L3.L4"; L3 39+40 and 41+42 are merged as 3940 and 4142. 14 and 15 (discrimination, privacy) hold
  49 % of the prompts: the mean over prompts and the mean over categories differ. Print both.
- A region (china, eu_comprehensive, eu_mandatory, us) is a list of L3 in the data card, README.md: downloaded, or
  read from the folder of --src; without it "us" is not available: its list is published nowhere else.
- The names of `l1` are in no column: assigned from L2 after the paper's taxonomy, as second-hand sources give it.
- {{QUESTION}} and {{ANSWER}} in a template are filled in one pass: the question may hold the other placeholder.
Rows: {"id": "airbench-L2.L3.L4-8 hex digits", "prompt", "category": "L2.L3.L4", "label": "forbidden", "l1", "l2",
"l3", "l4"} and {"category", "template"}. Harmful by design: this script prints counts and never a prompt.
"""
import hashlib, re, sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, differs, expect, field, flags, get, joined, read_csv, save

REVISION = "976d9fbb0f52bce704dcbef5bd7a2652e65f2a21"
URL = f"https://huggingface.co/datasets/stanford-crfm/air-bench-2024/resolve/{REVISION}/"
FILES = [f"category_{i}.csv" for i in [*range(1, 39), 3940, 4142, 43, 44, 45]] + ["judge_prompt_final.csv", "README.md"]
LICENCE = "CC-BY-4.0"
# prompts in each L2 category, then the name of its L1 category
L2 = dict(enumerate([222, 390, 369, 636, 144, 105, 45, 375, 150, 135, 75, 54, 75, 1608, 1191, 120], 1))
L1 = ["System & Operational Risks"] * 2 + ["Content Safety Risks"] * 5 + ["Societal Risks"] * 5 + [
    "Legal & Rights Risks"] * 4
L3_COUNT, L4_COUNT = 43, 314
NAMES = ["cate-idx", "l2-name", "l3-name", "l4-name"]
ANCHOR = re.compile(r"^\W*([01])(?:\.0)?\s*[,:]\s*(.+)$", re.M)  # the outer scores; 0.5 does not match


def polarity(templates, name, asked):
    """"refuse=1" or "refuse=0": the outer score that refusing gets. A few templates may be worded oddly, not many."""
    votes = Counter()
    for template in templates:
        scores = {score for score, text in ANCHOR.findall(template) if "refus" in text.lower()}
        if len(scores) == 1:
            votes[f"refuse={scores.pop()}"] += 1
    (first, n), *rest = votes.most_common() or [(asked, 0)]
    if not first:
        die(f"{name}: judge_prompt: the anchors do not tell which score refuses: give --polarity refuse=1 or refuse=0")
    if rest and rest[0][1] > 0.02 * n:
        die(f"{name}: judge_prompt: both directions in one set: {first} {n}, {rest[0][0]} {rest[0][1]}")
    if asked and asked != first:
        die(f"{name}: judge_prompt: the anchors say {first}, not {asked}")
    print(f"{len(templates)} judge prompts: {first}, said by {n}, the opposite by {sum(k for _, k in rest)}")
    return first


def files_of(src):
    """Each CSV file, and the data card, as a Got: downloaded, in the folders, or named."""
    for path in src or FILES:
        if src and Path(path).is_dir():
            found = [p for glob in ("category_*.csv", "judge_prompt*.csv", "README.md") for p in Path(path).glob(glob)]
            if not found:
                die(f"{path}: expected category_*.csv and judge_prompt*.csv")
            yield from (get(p, None) for p in sorted(found))
        else:
            yield get(path if src else None, URL + path)


def regions_of(card):
    """{region: [L3, ...]} from the data card's configs, each a list of category_L3.csv."""
    configs = re.split(r"config_name:\s*", card.raw.decode("utf-8", "replace"))[1:]
    found = {config.split()[0]: re.findall(r"category_(\d+)\.csv", config) for config in configs}
    return {name: l3s for name, l3s in found.items() if name != "default" and l3s}


def main():
    ap = flags(__doc__, __file__, "a folder with the CSV files, or CSV files", nargs="+")
    ap.add_argument("--polarity", choices=["refuse=1", "refuse=0"], help="for judge prompts whose anchors do not tell")
    args = ap.parse_args()
    tables, rows, judges, seen, about = [], [], {}, Counter(), {}
    for got in files_of(args.src):
        if got.name.endswith(".md"):
            about["regions"] = regions_of(got)
            continue
        tables.append(got)
        column = "judge_prompt" if b"judge_prompt" in got.raw.split(b"\n", 1)[0] else "prompt"
        for line, row in read_csv(got, [*NAMES, column]):
            where = f"{got.name}:{line}"
            text, category, *names = (field(row, key, where) for key in (column, *NAMES))
            l2 = re.fullmatch(r"(\d+)\.\d+\.\d+", category)
            if not l2 or int(l2[1]) not in L2:
                die(f"{where}: cate-idx: expected L2.L3.L4 with L2 from 1 to 16")
            if column == "prompt":
                key = f"airbench-{category}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
                seen[key] += 1
                rows.append({"id": key + f"-{seen[key]}" * (seen[key] > 1), "prompt": text, "category": category,
                             "label": "forbidden", "l1": L1[int(l2[1]) - 1], **dict(zip(["l2", "l3", "l4"], names))})
            elif category in judges:
                die(f"{where}: cate-idx: expected each category once")
            elif text.count("{{QUESTION}}") != 1 or text.count("{{ANSWER}}") != 1:
                die(f"{where}: judge_prompt: expected {{{{QUESTION}}}} and {{{{ANSWER}}}}, each once")
            else:
                judges[category] = text
    got, l4s = joined(tables, URL, args.src), {row["category"] for row in rows}
    counts = {k: n for k, n in sorted(Counter(int(row["category"].split(".")[0]) for row in rows).items())}
    expect(counts, L2, f"{got.name}: prompts by L2", args.any_version)
    expect((len({l4.split(".")[1] for l4 in l4s}), len(l4s)), (L3_COUNT, L4_COUNT), f"{got.name}: L3, L4 categories",
           args.any_version)
    if len(judges) != L4_COUNT or not l4s <= set(judges):
        differs(f"{got.name}: {len(judges)} judge prompts, {len(l4s - set(judges))} categories without one, expected "
                f"{L4_COUNT} and 0", args.any_version)
    if not rows and not judges:
        die(f"{got.name}: no rows found")
    templates = [{"category": key, "template": text} for key, text in judges.items()]
    files = {name: found for name, found in (("prompts.jsonl", rows), ("judges.jsonl", templates)) if found}
    about["polarity"] = polarity(judges.values(), got.name, args.polarity) if judges else None
    save(args.out, files, got, REVISION, LICENCE, by=None, n={"prompts": len(rows), "judges": len(judges)}, **about)
    print(f"{len(l4s)} categories, {len(rows) - len(seen)} repeated prompts; by L2: "
          + ", ".join(f"{k} {n}" for k, n in counts.items()))


if __name__ == "__main__":
    main()
