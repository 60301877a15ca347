"""M4-Instruct: general conversations on several images; some of its 615,000 rows, by chance -> general.jsonl

Li et al. 2024 (LLaVA-NeXT-Interleave), arXiv 2407.07895, huggingface.co/datasets/lmms-lab/M4-Instruct-Data.
Its licence is not established here. Fetch the annotations (1 GB) and the archives of the sets you want:

    hf download lmms-lab/M4-Instruct-Data --include *.json nlvr2.zip --repo-type dataset --local-dir m4
    python data/m4instruct/prepare.py --src m4/ --sets nlvr2     # [--n 500] [--most 4] [--seed 1]

- MIRage mixes 500 of it into its training: which ones is not published, so numbers differ by the draw.
- --sets: the folders that image paths begin with; archives of these names are unpacked. Default: all.
- Rows with more than --most images, another number of <image> tags, or no answer are counted and left out.
  Images that are missing or cannot be read are named and counted; other rows take the place of theirs.
- Some rows begin with "gpt" where a person asks: turns are read as question, answer, question.
Row: {"id": "m4instruct-17", "images": [absolute paths], "messages", "category": the set}.
"""
import random, sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, flags, get, read_rows, save, tally
from mis.prepare import chat_of, flaw, named, unpack

LICENCE = "not established"

def row_of(row, i, root):
    turns = row.get("conversations")
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        turns = [turn | {"from": ("human", "gpt")[k % 2]} for k, turn in enumerate(turns)]
        row = row | {"conversations": turns}
    chat = chat_of(row, root)
    if not chat["messages"][-1]["content"].strip():
        raise ValueError("no answer")
    category = Path(chat["images"][0]).relative_to(Path(root).absolute()).parts[0]
    return {"id": f"m4instruct-{i}"} | chat | {"category": category}

def main():
    parser = flags(__doc__, __file__, "the folder with m4_instruct_annotations.json and the images")
    parser.add_argument("--sets", nargs="+", help="folders of images to draw from; default: all")
    parser.add_argument("--n", type=int, default=500, help="rows")
    parser.add_argument("--most", type=int, default=4, help="images a row")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not args.src:
        die("give --src DIR, from: hf download lmms-lab/M4-Instruct-Data --repo-type dataset ..")
    root = Path(args.src)
    for path in sorted(root.glob("*.zip")):
        if not args.sets or path.stem in args.sets:
            unpack(path, root)
    got = get(root / "m4_instruct_annotations.json", None)
    rows, left_out = [], Counter()
    for i, row in read_rows(got):
        try:
            rows.append(row_of(row, i, root))
        except ValueError as e:
            left_out[str(e).partition(":")[0]] += 1
    n, rows = len(rows), [row for row in rows if not args.sets or row["category"] in args.sets]
    left_out["other sets"] = n - len(rows)
    n, rows = len(rows), [row for row in rows if len(row["images"]) <= args.most]
    left_out[f"more than {args.most} images"] = n - len(rows)
    print("left out:", tally(left_out))
    kept, bad, left = [], {}, random.Random(args.seed).sample(rows, len(rows))
    while left and len(kept) < args.n:  # only what is drawn is decoded
        row = left.pop()
        wrong = {path: why for path in row["images"] if (why := flaw(path))}
        bad |= wrong
        kept += [] if wrong else [row]
    named(bad, args.any_version, len(kept), len(rows) - len(left))
    expect(len(kept), args.n, f"{got.name}: usable rows", args.any_version)
    save(args.out, {"general.jsonl": kept}, got, None, LICENCE, seed=args.seed)

if __name__ == "__main__":
    main()
