"""XSTest v2: 450 prompts, 250 safe that look unsafe and 200 unsafe contrasts -> prompts.jsonl, items.jsonl

Röttger et al. 2024, arXiv 2308.01263, https://github.com/paul-rottger/xstest (formerly exaggerated-safety).
Licence of the prompts: CC-BY-4.0.

    python data/xstest/prepare.py                  # download the pinned prompts, 39 kB; --src FILE: your copy
    python data/xstest/prepare.py --completions model_completions/*.csv   # also completions.jsonl

- 18 types of 25 prompts. The types contrast_* are the unsafe ones. safe -> allowed, unsafe -> forbidden.
- --completions takes files of the same repository with a human final_label. They stay under the model
  vendors' terms: keep completions.jsonl out of any release.
- They count v2-1 to v2-450. So that a file of v1 is not joined by number to the wrong prompts, the prompts
  are compared: v2-195 of the GPT-4 file is worded differently; more than 5 differences stop the run.
Rows: {"id": "xstest-1", "prompt", "category": type, "label": "allowed" or "forbidden"} and {"id", "prompt",
"completion", "label": "full_compliance", "full_refusal" or "partial_refusal", "source": file name}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, die, differs, expect, field, flags, get, items, read_csv, save

REVISION = "d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d"
URL = f"https://raw.githubusercontent.com/paul-rottger/xstest/{REVISION}/xstest_prompts.csv"
SHA256 = "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a"
LICENCE = "CC-BY-4.0"
LABELS = {"safe": "allowed", "unsafe": "forbidden"}
COUNTS, TYPES = {"allowed": 250, "forbidden": 200}, [25] * 18
FINAL = {"1_full_compliance": "full_compliance", "2_full_refusal": "full_refusal",
         "3_partial_refusal": "partial_refusal"}
HUMANS = "the authors' labels of GPT-4's answers of 2023, refusals in full or in part"
ABOUT = {"domain": "over-refusal", "paper": "https://arxiv.org/abs/2308.01263", "harmful": True, "size": 450,
         "about": "refuses unsafe prompts and answers safe ones that look alike: two rates, never pooled",
         "published": {"GPT-4, unsafe prompts": {"value": 0.995, "label": "forbidden", "source": HUMANS},
                       "GPT-4, safe prompts": {"value": 0.084, "label": "allowed", "source": HUMANS}}}

def completions_of(got, prompts, any_version):
    """The rows of one completion file. They have no published checksum: number and prompts are checked."""
    rows, reworded = [], []
    for line, row in read_csv(got, ["id", "prompt", "completion", "final_label"]):
        where = f"{got.name}:{line}"
        key = f"xstest-{field(row, 'id', where).removeprefix('v2-')}"
        if key not in prompts:
            die(f"{where}: id: expected v2-N or N, with N an id of the prompts file")
        if field(row, "prompt", where) != prompts[key]:
            reworded.append(key)
        label = FINAL[choice(row, "final_label", where, FINAL)]
        rows.append({"id": key, "prompt": row["prompt"], "completion": row["completion"],  # may be empty
                     "label": label, "source": Path(got.name).name})
    if counts(rows, "id") != dict.fromkeys(prompts, 1) or len(reworded) > 5:
        differs(f"{got.name}: {len(rows)} completions, {len(reworded)} of them for other prompts, expected "
                f"one for each of the {len(prompts)} prompts", any_version)
    print(f"{got.name}: prompts worded differently: {', '.join(reworded) or 'none'}")
    return rows

def main():
    ap = flags(__doc__, __file__)
    ap.add_argument("--completions", metavar="FILE", nargs="+", default=[], help="human-labelled CSVs")
    args = ap.parse_args()
    got, rows = get(args.src, URL, SHA256, args.any_version), []
    for line, row in read_csv(got, ["id", "prompt", "type", "label"]):
        where = f"{got.name}:{line}"
        label = LABELS[choice(row, "label", where, LABELS)]
        rows.append({"id": f"xstest-{field(row, 'id', where)}", "prompt": field(row, "prompt", where),
                     "category": field(row, "type", where), "label": label})
    expect(counts(rows, "label"), COUNTS, f"{got.name}: prompts", args.any_version)
    types = list(counts(rows, "category").values())
    expect(types, TYPES, f"{got.name}: prompts of each type", args.any_version)
    files, about, prompts = {}, {}, {row["id"]: row["prompt"] for row in rows}
    if args.completions:
        gots = [get(path, None) for path in args.completions]
        found = [row for g in gots for row in completions_of(g, prompts, args.any_version)]
        files = {"completions.jsonl": found}
        about = {"completions": {"n": len(found), "sha256": {Path(g.name).name: g.sha for g in gots},
                                 "licence": "the model vendors' terms: not for release"}}
    files |= {"prompts.jsonl": rows, "items.jsonl": items(rows, "xstest", "refusal", **ABOUT)}
    save(args.out, files, got, REVISION, LICENCE, by="label", n=len(rows), **about)

if __name__ == "__main__":
    main()
