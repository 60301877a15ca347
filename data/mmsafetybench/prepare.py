"""MM-SafetyBench: 1,680 questions in 13 scenarios, three images each -> prompts, items.jsonl

Liu et al. 2023, arXiv 2311.17600. Licence: not established here (guard-eval-harness names CC-BY-NC-4.0).
Images are needed: clone the repository, unpack the archive that its README links to data/imgs, so that
data/imgs/01-Illegal_Activitiy/SD/0.jpg exists:

    git clone https://github.com/isXinLiu/MM-SafetyBench
    git -C MM-SafetyBench checkout b80eedea3db312c09ded2082813390f68e750ef3
    python data/mmsafetybench/prepare.py --src MM-SafetyBench/

- SD images go with `Rephrased Question(SD)`; SD_TYPO and TYPO images with `Rephrased Question`. Some public
  code pairs them wrongly. Papers differ in the kinds they report: give the rate of each `kind`.
- Scenarios 8 and 10 to 13 (lobbying, legal, financial and health advice, government decisions) are judged by
  other rules: there a careful answer can be right. Give rates by scenario.
- MIS training data descends from this set: scores after such training are not held-out.
- No checksum is established: counts are checked. Rows without their images stop the run.
- `question` is the original question: a judge needs it, the model under test must not see it.
Row: {"id": "mmsafetybench-01-0-SD", "prompt", "category": scenario, "label": "forbidden", "images": [absolute
path], "question", "kind"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import counts, die, expect, field, flags, get, items, joined, read_json, save, with_images

LICENCE = "not established; guard-eval-harness names CC-BY-NC-4.0"
COUNTS = {"01-Illegal_Activitiy": 97, "02-HateSpeech": 163, "03-Malware_Generation": 44,  # spelled so
          "04-Physical_Harm": 144, "05-EconomicHarm": 122, "06-Fraud": 154, "07-Sex": 109,
          "08-Political_Lobbying": 153, "09-Privacy_Violence": 139, "10-Legal_Opinion": 130,
          "11-Financial_Advice": 167, "12-Health_Consultation": 109, "13-Gov_Decision": 149}
KINDS = {"SD": "Rephrased Question(SD)", "SD_TYPO": "Rephrased Question", "TYPO": "Rephrased Question"}

ABOUT = {"domain": "misuse", "paper": "https://arxiv.org/abs/2311.17600", "harmful": True,
         "by": ["category", "kind"], "about":
         "refuses harm asked with an image; in scenarios 8 and 10 to 13 a careful answer can be right"}

def rows_of(got, scenario):
    for i, row in read_json(got, dict).items():
        where = f"{got.name}: item {i}"
        if not i.isdecimal() or not isinstance(row, dict):
            die(f"{where}: item: expected a number and an object")
        for kind in KINDS:
            yield {"id": f"mmsafetybench-{scenario.split('-')[0]}-{i}-{kind}",
                   "prompt": field(row, KINDS[kind], where), "category": scenario, "label": "forbidden",
                   "images": [f"{scenario}/{kind}/{i}.jpg"], "question": field(row, "Question", where),
                   "kind": kind}

def main():
    args = flags(__doc__, __file__, "a clone of the repository").parse_args()
    if not args.src:
        die("give --src DIR, a clone of https://github.com/isXinLiu/MM-SafetyBench at commit b80eedea")
    folder = Path(args.src) / "data" / "processed_questions"
    gots = {path.stem: get(path, None) for path in sorted(folder.glob("*.json"))}
    if not gots:
        die(f"{folder}: no questions found, expected {next(iter(COUNTS))}.json and 12 others")
    rows = [row for scenario, got in gots.items() for row in rows_of(got, scenario)]
    found = counts([row for row in rows if row["kind"] == "SD"], "category")
    expect(found, COUNTS, f"{folder}: questions", args.any_version)
    rows = with_images(rows, Path(args.src) / "data" / "imgs", args.any_version)
    got = joined(gots.values(), None, [Path(args.src).resolve()])
    suite = items(rows, "mm_safetybench", "refusal", size=len(KINDS) * sum(COUNTS.values()), **ABOUT)
    files = {"prompts.jsonl": rows, "items.jsonl": suite}
    save(args.out, files, got, None, LICENCE, n=counts(rows, "kind"))

if __name__ == "__main__":
    main()
