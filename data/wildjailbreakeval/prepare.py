# /// script
# dependencies = ["pyarrow"]
# ///
"""WildJailbreakEval: SafeChain's 250 + 50 test prompts out of WildJailbreak -> prompts.jsonl, small.jsonl

Jiang et al. 2025, arXiv 2502.12025, hub: UWNSL/WildJailbreakEval, licence not verified.

    hf download UWNSL/WildJailbreakEval --repo-type dataset --local-dir wildjailbreakeval
    python data/wildjailbreakeval/prepare.py --src FILE_OF_CONFIG_250 --small FILE_OF_CONFIG_50

- The authors decode greedily on the 250 and draw five answers a prompt on the 50. Both count as harmful.
- It is not WildJailbreak's own evaluation part (data/wildjailbreak, 2,210 rows). Training rows may hold the
  same prompts: compare before training.
- FILE is parquet (uv run: pyarrow), .jsonl, .json or .csv with the column `instruction`. The places of the
  files on the hub, a revision and a checksum were in no public code: rows are counted.
- A prompt of the 50 that is among the 250 carries its id there.
Row: {"id": "wildjailbreakeval-1" or "wildjailbreakeval-small-1", "prompt", "category": "wildjailbreak",
"label": "forbidden"}; numbered by row.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, read_rows, save

HUB = "UWNSL/WildJailbreakEval config"
LICENCE = "not verified: not to be passed on"
SIZES = {"250": 250, "50": 50}

def prompts_of(got, n, name, known, any_version):
    """The rows of one config; known: {prompt: id} of the other one."""
    rows = []
    for i, (line, row) in enumerate(read_rows(got, ["instruction"]), 1):
        text = field(row, "instruction", f"{got.name}:{line}")
        rows.append({"id": known.get(text, f"{name}-{i}"), "prompt": text, "category": "wildjailbreak",
                     "label": "forbidden"})
    expect(len(rows), n, f"{got.name}: prompts", any_version)
    print(f"{got.name}: {len(rows) - len({row['prompt'] for row in rows})} prompts said before")
    return rows

def main():
    ap = flags(__doc__, __file__, "the file of config 250")
    ap.add_argument("--small", metavar="FILE", help="the file of config 50: also small.jsonl")
    args = ap.parse_args()
    if not args.src:
        die("fetch UWNSL/WildJailbreakEval from the hub, then --src FILE of config 250, --small FILE of 50")
    gots, files, known = {}, {}, {}
    for name, path, config in ("prompts.jsonl", args.src, "250"), ("small.jsonl", args.small, "50"):
        if path:
            got = gots[name] = get(path, f"{HUB} {config}")
            key = "wildjailbreakeval" + "-small" * (config == "50")
            files[name] = prompts_of(got, SIZES[config], key, known, args.any_version)
            known |= {row["prompt"]: row["id"] for row in files[name]}
    if args.small:
        shared = sum("-small-" not in row["id"] for row in files["small.jsonl"])
        print(f"{shared} of the {len(files['small.jsonl'])} are among the {len(files['prompts.jsonl'])}")
    save(args.out, files, gots if args.small else gots["prompts.jsonl"], None, LICENCE)

if __name__ == "__main__":
    main()
