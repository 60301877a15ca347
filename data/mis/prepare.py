"""MIS: 2,285 unsafe pairs of images with a question -> test, items.jsonl; 3,927 answered ones -> train.jsonl

Ding et al. 2025, arXiv 2501.18533, https://huggingface.co/datasets/Tuwhy/MIS_Test and MIS_Train, both
Apache-2.0. Images are needed, so fetch the sets first; the training set's images.zip (10.6 GB) is unpacked:

    hf download Tuwhy/MIS_Test --repo-type dataset --local-dir mis_test
    python data/mis/prepare.py --src mis_test/     # the folder with mis_{easy,hard,real}.json
    hf download Tuwhy/MIS_Train --repo-type dataset --local-dir mis_train
    python data/mis/prepare.py --src mis_train/    # the folder with mis_train.json; 3 minutes to decode all

- Every item is unsafe: refusing everything gives an attack rate of 0. Report a benign multi-image set too.
- The texts of real are taken from easy and hard: it is not independent of them. Give rates by `split`.
- The training set descends from MM-SafetyBench and AdvBench: after MIRage those two are not held-out.
- datasets.load_dataset fails on these files (the card leaves out id): here the JSON is read as it is.
- No checksum is established: counts are checked; 3,927 is what third-party code counts with an answer. Rows
  without their images stop the run. Training images are decoded: what cannot be read is named and counted.
- Training rows come as ShareGPT's conversations or as messages. Where a text has no <image>, the images stand
  before it, "Image-1: <image>" line by line, as in the test; another number of tags than images is an error.
Rows: test {"id": "mis-easy-1", "prompt", "category", "label": "forbidden", "images": [2 absolute paths],
"sub_category", "split"}; train {"id": "mis-train-1", "images", "messages", "category", "sub_category"}.
"""
import stat, sys, warnings, zipfile
from pathlib import Path, PurePosixPath

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import (counts, die, differs, expect, field, flags, get, items, joined, read_rows, save,
                   with_images, write)

LICENCE = "Apache-2.0"
COUNTS, TRAIN = {"easy": 1675, "hard": 510, "real": 100}, 3927
ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ("user", "assistant", "system")}
GONE = "no such image"

# ---- what data/m4instruct needs too

def unpack(path, out, most=64 << 30):
    """The files of a zip below out, but those there in their size. A name that climbs: none is written."""
    try:
        with zipfile.ZipFile(path) as file:
            found = [info for info in file.infolist() if not info.is_dir()]
            for info in found:
                parts = PurePosixPath(info.filename.replace("\\", "/")).parts
                link = stat.S_ISLNK(info.external_attr >> 16)
                if link or ".." in parts or parts[0] == "/" or ":" in info.filename:
                    die(f"{path}: {info.filename!r}: expected a file below the folder")
            size = sum(info.file_size for info in found)
            if size > most:
                die(f"{path}: {size:,} bytes unpacked, expected at most {most:,}")
            for info in found:
                target = out / info.filename
                if not target.is_file() or target.stat().st_size != info.file_size:
                    write(target, file.read(info))  # compared with its CRC
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as e:
        die(f"{path}: cannot be unpacked ({e})")

def flaw(path):
    """Why an image cannot be trained on, or None. It is decoded: a truncated one looks whole until then."""
    if not Path(path).is_file():
        return GONE
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning), \
                Image.open(path) as image:
            short, long = sorted(image.size)
            if short < 4 or long > 100 * short:
                return f"{image.size[0]} x {image.size[1]} pixels"
            image.load()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Warning) as e:
        return f"cannot be read ({e})"

def named(bad, any_version, kept, n):
    """bad: {path: why}. The first 20 by name, all by number."""
    for path, why in [*bad.items()][:20]:
        print(f"{path}: {why}", file=sys.stderr)
    gone = sum(why == GONE for why in bad.values())
    if bad:
        differs(f"{gone} images missing, {len(bad) - gone} that cannot be used: "
                f"{kept} of {n} rows have theirs", any_version)

def usable(rows, any_version):
    """The rows whose images can all be decoded."""
    bad = {path: flaw(path) for path in dict.fromkeys(path for row in rows for path in row["images"])}
    bad = {path: why for path, why in bad.items() if why}
    kept = [row for row in rows if not bad.keys() & {*row["images"]}]
    named(bad, any_version, len(kept), len(rows))
    return kept

def chat_of(row, root):
    """-> images as absolute paths, messages with one <image> for each; ValueError says what is wrong."""
    names = row.get("images", row.get("image"))
    names = [names] if isinstance(names, str) else names
    turns = row.get("conversations", row.get("messages"))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("image: expected a list of paths")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise ValueError(f"image: expected paths below {root}")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversations: expected a list of turns")
    messages = [{"role": ROLES.get(turn.get("from", turn.get("role"))),
                 "content": turn.get("value", turn.get("content"))} for turn in turns]
    if not all(message["role"] and isinstance(message["content"], str) for message in messages):
        raise ValueError("conversations: expected who speaks and a text in every turn")
    asks = [message for message in messages if message["role"] == "user"]
    if not asks or messages[-1]["role"] != "assistant":
        raise ValueError("conversations: expected a question first and an answer last")
    tags = sum(message["content"].count("<image>") for message in messages)
    if not tags:
        places = [f"Image-{k}: <image>\n" for k in range(1, len(names) + 1)]
        asks[0]["content"] = ("<image>\n" if len(names) == 1 else "".join(places)) + asks[0]["content"]
    elif tags != len(names):
        raise ValueError(f"conversations: {len(names)} images, and <image> stands {tags} times")
    return {"images": [str((Path(root) / name).absolute()) for name in names], "messages": messages}

# ---- the set

def train_row(row, where, i, root):
    try:
        chat = chat_of(row, root)
    except ValueError as e:
        die(f"{where}: {e}")
    kinds = {key: str(row.get(key) or "none") for key in ("category", "sub_category")}
    return {"id": f"mis-train-{i}"} | chat | kinds

def train(args, path):
    if (args.src / "images.zip").is_file():
        unpack(args.src / "images.zip", args.src)
    got = get(path, None)
    rows = [train_row(row, f"{got.name}:{i}", i, args.src) for i, row in read_rows(got)]
    n, rows = len(rows), [row for row in rows if row["messages"][-1]["content"].strip()]
    print(f"{n - len(rows)} rows without an answer are left out")
    expect(len(rows), TRAIN, f"{got.name}: rows with an answer", args.any_version)
    rows = usable(rows, args.any_version)
    save(args.out, {"train.jsonl": rows}, got, None, LICENCE, meta="meta_train.json")

def row_of(row, where, split):
    if not str(row.get("id")).isdecimal():  # a number, or its digits
        die(f"{where}: id: expected a whole number")
    return {"id": f"mis-{split}-{row['id']}", "prompt": field(row, "question", where),
            "category": field(row, "category", where), "label": "forbidden",
            "images": [field(row, "image_path1", where), field(row, "image_path2", where)],
            "sub_category": field(row, "sub_category", where), "split": split}

def test(args):
    gots = {split: get(args.src / f"mis_{split}.json", None) for split in COUNTS}
    rows = [row_of(row, f"{got.name}:{i}", split) for split, got in gots.items() for i, row in read_rows(got)]
    expect(counts(rows, "split"), COUNTS, f"{args.src}: items", args.any_version)
    expect(len(counts(rows, "id")), len(rows), f"{args.src}: different ids", args.any_version)
    rows = with_images(rows, args.src, args.any_version)
    got = joined(gots.values(), None, [args.src.resolve()])
    about = "refuses what two images mean only together"
    suite = items(rows, "mis", "refusal", "misuse", about, "https://arxiv.org/abs/2501.18533",
                  sum(COUNTS.values()), harmful=True, by=["category", "split"])
    files = {"test.jsonl": rows, "items.jsonl": suite}
    save(args.out, files, got, None, LICENCE, n=counts(rows, "split"))

def main():
    args = flags(__doc__, __file__, "the folder with mis_*.json and the images").parse_args()
    if not args.src:
        die("give --src DIR, from: hf download Tuwhy/MIS_Test --repo-type dataset --local-dir DIR")
    args.src = Path(args.src)
    path = args.src / "mis_train.json"
    if path.is_file():
        train(args, path)
    if not path.is_file() or (args.src / "mis_easy.json").is_file():
        test(args)

if __name__ == "__main__":
    main()
