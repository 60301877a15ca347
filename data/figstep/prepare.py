# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""FigStep: 500 questions drawn as images of numbered lists, 10 topics of 50 -> prompts.jsonl, meta.json

Gong et al. 2023, https://arxiv.org/abs/2311.05608, https://github.com/CryptoAILab/FigStep (also ThuCCSLab).
Licence: MIT.

Images are needed, so clone the repository first; nothing is downloaded here:

    git clone https://github.com/CryptoAILab/FigStep && git -C FigStep checkout 0861b17b3d67887c06ee3534ec65b3012f9becb7
    python data/figstep/prepare.py --src FigStep/            # all 500
    python data/figstep/prepare.py --src FigStep/ --tiny     # SafeBench-Tiny: 50, to prompts_tiny.jsonl

What to know before using a number from it:
- The text sent with every image is one and the same. It is not repeated here: it is read from src/generate_prompts.py
  of the clone, or from --prompt FILE. Wordings with other lengths are around: compare numbers only with the same text.
- `question` is what the image asks for: a judge needs it, the model under test must not see it.
- 3 of the 10 topics are legal, financial and health advice, which many models answer with care: give rates by topic.
- No checksum is established: the counts are checked, the checksum of the question file is recorded.
- Images are looked for, never opened. Rows without their image stop the run; --any-version leaves them out.
- The questions are harmful by design: this script prints counts and never one of them.
- Checked in ThuCCSLab/FigStep, src/generate_prompts.py and file list; microsoft/PyRIT, figstep_dataset.py: columns.
Row: {"id": "figstep-TOPIC-TASK", "prompt", "category": topic, "label": "forbidden", "images": [absolute path],
"question"}.
"""
import argparse, ast, csv, hashlib, io, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "0861b17b3d67887c06ee3534ec65b3012f9becb7"  # what to check out; a folder does not prove that it is this one
LICENCE = "MIT"
SETS = {False: ("safebench.csv", "SafeBench", 50, ""), True: ("SafeBench-Tiny.csv", "SafeBench-Tiny", 5, "_tiny")}


# copied from data/advbench/prepare.py: die
def die(message):
    print(message, file=sys.stderr)
    raise SystemExit(2)


# copied from data/advbench/prepare.py: differs
def differs(message, any_version):
    """A checksum or a count that is not the published one stops the run; --any-version turns it into a warning."""
    if not any_version:
        die(f"{message}; --any-version accepts it")
    print(f"warning: {message}", file=sys.stderr)


# copied from data/advbench/prepare.py: read_csv
def read_csv(raw, name, columns):
    """Yields (last line of the row, row). Quoted fields may hold commas and newlines: lines are never split by hand."""
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""))
        if not set(columns) <= set(reader.fieldnames or []):  # what stands there may be a prompt: not shown
            die(f"{name}:1: header: expected the columns {','.join(columns)}")
        for row in reader:
            if None in row or None in row.values():
                die(f"{name}:{reader.line_num}: row: expected {len(reader.fieldnames)} fields")
            yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as e:
        die(f"{name}: expected UTF-8 CSV ({e})")


# copied from data/advbench/prepare.py: field
def field(row, key, where):
    if not isinstance(row.get(key), str) or not row[key].strip():
        die(f"{where}: {key}: expected a text that is not empty")
    return row[key]


# copied from data/mis/prepare.py: with_images
def with_images(rows, root, any_version):
    """The rows whose images exist below root, with absolute paths. Images are looked for, never opened."""
    kept, gone = [], []
    for row in rows:
        if any(Path(p).is_absolute() or ".." in Path(p).parts for p in row["images"]):
            die(f"{row['id']}: images: expected paths below {root}")
        paths = [(root / p).absolute() for p in row["images"]]
        gone += [p for p in paths if not p.is_file()]
        if all(p.is_file() for p in paths):
            kept.append(row | {"images": [str(p) for p in paths]})
    if gone:
        differs(f"{gone[0]}: no such image, and {len(gone) - 1} others: {len(kept)} of {len(rows)} rows have theirs",
                any_version)
    return kept


# copied from data/advbench/prepare.py: write
def write(out, files):
    """All files under temporary names, then the renames: nothing is ever half-written."""
    temps = {name: out / f".{name}.tmp-{os.getpid()}" for name in files}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():  # ASCII: no U+2028 inside a row for a careless reader to split at
            temps[name].write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
        for name, temp in temps.items():
            os.replace(temp, out / name)
    except OSError as e:
        for temp in temps.values():
            if temp.exists():
                temp.unlink()
        die(f"{out}: cannot be written ({e.strerror or e})")


def read(path):
    try:
        return path.read_bytes()
    except OSError as e:
        die(f"{path}: cannot be read ({e.strerror})")


def carrier(path):
    """The text that goes with every image: the first one returned under `== QueryType.figstep` in the authors' file."""
    try:
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.If) and "figstep" in ast.unparse(node.test).split(".")[-1:]:
                for part in (p for statement in node.body for p in ast.walk(statement)):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.strip():
                        return part.value
    except (SyntaxError, ValueError):
        pass
    die(f"{path}: QueryType.figstep: expected the text sent with the images; give it with --prompt FILE")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="DIR", type=Path, help="a clone of the repository")
    ap.add_argument("--tiny", action="store_true", help="SafeBench-Tiny, 50 questions")
    ap.add_argument("--prompt", metavar="FILE", type=Path, help="a text file with the text sent with every image")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another count or lost images, with a warning")
    ap.error = die
    args = ap.parse_args()
    if not args.src:
        die(f"give --src DIR, a clone of https://github.com/CryptoAILab/FigStep at commit {REVISION}")

    file, folder, each, suffix = SETS[args.tiny]
    name, rows = args.src / "data" / "question" / file, []
    raw = read(name)
    if args.prompt:
        prompt = field({"prompt": read(args.prompt).decode("utf-8-sig", "replace").strip()}, "prompt", args.prompt)
    else:
        prompt = carrier(args.src / "src" / "generate_prompts.py")
    for line, row in read_csv(raw, name, ["dataset", "category_id", "task_id", "category_name", "question"]):
        where = f"{name}:{line}"
        dataset, topic, task = (field(row, key, where) for key in ("dataset", "category_id", "task_id"))
        rows.append({"id": f"figstep-{topic}-{task}", "prompt": prompt, "category": field(row, "category_name", where),
                     "label": "forbidden", "images": [f"data/images/{folder}/query_{dataset}_{topic}_{task}_6.png"],
                     "question": field(row, "question", where)})
    topics = Counter(row["category"] for row in rows)
    if sorted(topics.values()) != [each] * 10 or len({row["id"] for row in rows}) != len(rows):
        differs(f"{name}: {len(rows)} questions in {len(topics)} topics, expected {10 * each} in 10 of {each}, each id "
                "once", args.any_version)
    rows = with_images(rows, args.src, args.any_version)
    sha = hashlib.sha256(raw).hexdigest()
    meta = {"source": args.src.resolve().name, "revision": None, "sha256": sha, "n": len(rows), "licence": LICENCE}
    write(args.out, {f"prompts{suffix}.jsonl": rows, f"meta{suffix}.json": [meta]})
    print(f"{args.out / f'prompts{suffix}.jsonl'}: {len(rows)} images, all forbidden: "
          + ", ".join(f"{c} {n}" for c, n in Counter(row["category"] for row in rows).items()) + f"\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). tests/test_data_safety.py runs the code on a small
# folder of the same layout.
