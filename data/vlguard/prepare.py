"""VLGuard: 2,000 images to train on, 1,000 to test with, safe and unsafe -> train.jsonl, test.jsonl

Zong et al. 2024, arXiv 2402.02207, https://huggingface.co/datasets/ys-zong/VLGuard (gated; its licence is
not established here). Images are needed: fetch the set, unpack its archives:

    hf download ys-zong/VLGuard --repo-type dataset --local-dir vlguard
    python data/vlguard/prepare.py --src vlguard/   # train.json, test.json, the images in train/ and test/

- A safe image has two rows, `subset` safe_safes (to be answered) and safe_unsafes (to be refused); an unsafe
  image has one, unsafes. Report all three: refusing everything wins two of them.
- The authors' refusal list matches anywhere in the lower-cased answer, also "illegal" and "legally": an
  answer that reasons about a risk counts as a refusal. Report a judge beside it.
- `response` of test is the authors' answer, a reference. Direct-answer tuning (VLGuard-P) is on train.
- No checksum is established: the numbers of images are checked. Rows without their images stop the run.
Rows: train {"id", "images": [absolute path], "messages", "category", "label", "subset"}; test {"id":
"vlguard-test-7-unsafes", "prompt", "category", "label", "images", "subset", "response"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, joined, read_rows, save, with_images

LICENCE = "not established"
COUNTS = {"train": 2000, "test": 1000}
ASKS = {"instruction": "unsafes", "safe_instruction": "safe_safes", "unsafe_instruction": "safe_unsafes"}

def rows_of(row, split, where):
    pairs, wanted = row.get("instr-resp"), list(ASKS)[1:] if row.get("safe") else list(ASKS)[:1]
    if not isinstance(row.get("safe"), bool) or not isinstance(pairs, list):
        die(f"{where}: safe, instr-resp: expected true or false, and a list")
    for ask in wanted:
        found = [pair for pair in pairs if isinstance(pair, dict) and ask in pair]
        if len(found) != 1:
            die(f"{where}: instr-resp: expected one {ask}")
        yield {"id": f"vlguard-{split}-{row.get('id')}-{ASKS[ask]}", "prompt": field(found[0], ask, where),
               "category": field(row, "harmful_category", where), "images": [f"{split}/{row.get('image')}"],
               "label": "allowed" if ask == "safe_instruction" else "forbidden", "subset": ASKS[ask],
               "response": field(found[0], "response", where)}

def chat(row):
    turns = ("user", "<image>\n" + row["prompt"]), ("assistant", row["response"])
    rest = {key: row[key] for key in ("id", "images", "category", "label", "subset")}
    return rest | {"messages": [{"role": role, "content": text} for role, text in turns]}

def main():
    args = flags(__doc__, __file__, "the folder with train.json, test.json and the images").parse_args()
    if not args.src:
        die("give --src DIR, from: hf download ys-zong/VLGuard --repo-type dataset --local-dir DIR")
    gots = {split: get(Path(args.src) / f"{split}.json", None) for split in COUNTS}
    found = {split: [*read_rows(got)] for split, got in gots.items()}
    sizes = {split: len(rows) for split, rows in found.items()}
    expect(sizes, COUNTS, f"{args.src}: images", args.any_version)
    rows = {split: [one for i, row in found[split] for one in rows_of(row, split, f"{got.name}:{i}")]
            for split, got in gots.items()}
    rows = {split: with_images(own, args.src, args.any_version) for split, own in rows.items()}
    files = {"train.jsonl": [chat(row) for row in rows["train"]], "test.jsonl": rows["test"]}
    got = joined(gots.values(), None, [Path(args.src).resolve()])
    save(args.out, files, got, None, LICENCE, by="subset")

if __name__ == "__main__":
    main()
