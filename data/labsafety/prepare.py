# /// script
# requires-python = ">=3.10"
# dependencies = ["pyarrow>=14"]
# ///
"""LabSafety Bench: 765 multiple-choice questions, 404 scenarios -> mcq.jsonl, scenarios.jsonl, images/, meta.json

Zhou et al. 2024, https://arxiv.org/abs/2410.14182, https://huggingface.co/datasets/yujunzhou/LabSafety_Bench.
Licence: MIT.

    python data/labsafety/prepare.py                              # download the pinned questions (10 MB), no scenarios
    python data/labsafety/prepare.py --revision COMMIT            # questions and scenarios of another revision
    python data/labsafety/prepare.py --src LabSafety_Bench/       # a clone of the data set, or a folder of JSONL files
    python data/labsafety/prepare.py --src QA-00000-of-00001.parquet scenarios.parquet test_qa_indices.json
    python data/labsafety/prepare.py --any-version --src llamafactory_data/text_qa_train.json    # the public train half

What to know before using a number from it:
- 632 text questions + 133 with an image. 404 scenarios -> 1,616 hazard items (4 aspects each) + 1,512 consequence
  items. A version of the README speaks of 520 scenarios and 4,090 items: the counts decide.
- The commit of the scenarios file that holds the 404 is not established, so the default download leaves scenarios out.
  No checksum is published for the parquet files: the counts are checked and the checksum of what was read is recorded.
- Half of the questions and scenarios were used for fine-tuning by the authors: `split` is "test" or "train" where
  their index files (llamafactory_data/test_*_indices.json, downloaded or in --src) cover the rows, else null. A model
  tuned on the train half may only be scored on the test half.
- Divide a scenario's recall by its gold points: an aspect without any is left out of `aspects`.
- `question` holds the options as published, with a new line where a backslash and an n stand before an option.
  `choices` has them apart where A, B, C, D can be told apart, else null.
- Parquet needs pyarrow (uv run installs it). Images are copied as they are, never decoded.
Rows: {"id": "labsafety-qa-0", "question", "choices": 4 texts or null, "answer": 0..3, "category": list, "level",
"topic", "image": path or null, "explanation", "split"} and {"id": "labsafety-scenario-0", "scenario", "subject",
"aspects": {name: [gold points]}, "decisions": [{"decision", "consequence"}], "split"}; what a source lacks is null or
[]. Numbers count from 0, as the index files do. A path is relative to the folder of the JSONL file.
"""
import argparse, hashlib, json, os, re, sys
from collections import Counter
from pathlib import Path

REVISION = "005ee2acd362fcbed616c3ea26d09750d36accca"  # has the questions; the scenarios came later
URL = "https://huggingface.co/datasets/yujunzhou/LabSafety_Bench/resolve/{}/data/"
PARQUET = ["QA-00000-of-00001.parquet", "QA_I-00000-of-00001.parquet", "scenarios.parquet"]
SPLIT_URL = ("https://raw.githubusercontent.com/YujunZhou/LabSafety-Bench/6190fa1250a6c5c66874b2aa60ca165312c64c91/"
             "llamafactory_data/")
INDICES = {"test_qa_indices.json": "2577e70fa54bb2db3faeebfdd101f465da41875a7eef1affeaec46387371f992",
           "test_scenario_indices.json": "9eb8ec4ada1d3ba7cafe258488197f85d0fb302163e0da2b5edeb484927e9d3c"}
LICENCE = "MIT"
TEXT, WITH_IMAGE, SCENARIOS, DECISIONS = 632, 133, 404, 1512
OPTIONS = re.compile(r"(?s)\A.*?\sA\s*[:.)]\s*(.+?)[\s,;]+B\s*[:.)]\s*(.+?)[\s,;]+C\s*[:.)]\s*(.+?)[\s,;]+"
                     r"D\s*[:.)]\s*(.+?)[\s,;]*\Z")  # one option a line, or all in one line


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


# copied from data/advbench/prepare.py: fetch
def fetch(src, url):
    """The bytes of the local file src or, without one, of the pinned public URL."""
    if src:
        try:
            return Path(src).read_bytes()
        except OSError as e:
            die(f"{src}: cannot be read ({e.strerror})")
    import http.client, urllib.request  # here: importing these takes longer than converting a local file
    print(f"downloading {url}")
    raw = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            while chunk := response.read(1 << 20):
                raw += chunk
                print(f"\r  {len(raw) / 1e6:.1f} MB", end="", flush=True)
            if response.length:  # bytes announced and never sent: read() alone does not notice
                raise OSError("the connection closed early")
    except (OSError, http.client.HTTPException) as e:
        die(f"{url}: cannot be read ({e}); see --src")
    finally:
        print()
    return bytes(raw)


# copied from data/advbench/prepare.py: field
def field(row, key, where):
    if not isinstance(row.get(key), str) or not row[key].strip():
        die(f"{where}: {key}: expected a text that is not empty")
    return row[key]


# copied from data/hellaswag/prepare.py: read_jsonl
def read_jsonl(raw, name):
    """Yields (line, row). Split at newline bytes only: texts may hold U+2028, which str.splitlines takes for one."""
    for line, text in enumerate(raw.split(b"\n"), 1):
        if text.strip():
            try:
                row = json.loads(text)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                die(f"{name}:{line}: row: expected one JSON object")
            yield line, row


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


def read_parquet(raw, name):
    """Yields (1-based row, row)."""
    try:
        import pyarrow, pyarrow.parquet
    except ImportError:
        die(f"{name}: reading parquet needs pyarrow: pip install pyarrow, or start this script with uv run")
    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(raw)).to_pylist()
    except (pyarrow.ArrowException, OSError) as e:
        die(f"{name}: not a parquet file ({str(e).splitlines()[0]})")
    yield from enumerate(rows, 1)


def read_json(raw, name, kind, expected):
    """The JSON value of a whole file; a line is named where it is no JSON."""
    try:
        value = json.loads(raw)
    except ValueError as e:
        die(f"{name}:{getattr(e, 'lineno', 1)}: file: expected {expected}")
    if not isinstance(value, kind):
        die(f"{name}:1: file: expected {expected}")
    return value


def read_train(raw, name):
    """Yields rows of text_qa_train.json, the fine-tuning form, as rows of the data set."""
    for i, row in enumerate(read_json(raw, name, list, "a list of objects"), 1):
        where = f"{name}: item {i}"
        if not isinstance(row, dict):
            die(f"{where}: row: expected an object")
        question, answer = field(row, "input", where), field(row, "output", where)
        key = re.search(r"Final Answer:\s*([A-D])\W*\Z", answer)
        yield i, {"Question": re.sub(r"\AQuestion: |\s*Step-by-Step analysis:\s*\Z", "", question),
                  "Correct Answer": key and key[1], "Explanation": key and answer[:key.start()].strip()}


def sources(args):
    """Yields (name, bytes): the download, or the named files; of a folder the parquet files, else the JSONL files."""
    if not args.src:
        url = URL.format(args.revision or REVISION)
        for file in PARQUET if args.revision else PARQUET[:2]:
            yield url + file, fetch(None, url + file)
        for file in INDICES:
            yield SPLIT_URL + file, fetch(None, SPLIT_URL + file)
    for path in map(Path, args.src or []):
        files = [path]
        if path.is_dir():
            files = [path / d / file for d in ("", "data") for file in PARQUET if (path / d / file).is_file()]
            files = (files or sorted(path.glob("*.jsonl"))) + [path / f for f in INDICES if (path / f).is_file()]
            if not files:
                die(f"{path}: expected {', '.join(PARQUET)} or .jsonl files")
        for file in files:
            yield str(file), fetch(file, None)


def question(row, where, key, folder, images):
    """One row of mcq.jsonl; puts the bytes of its image under a name into images."""
    text, letter, category = field(row, "Question", where), row.get("Correct Answer"), row.get("Category")
    text = re.sub(r"\\n(?=[A-D]\s*[:.)])", "\n", text)  # in ten questions of the train half
    if letter not in ("A", "B", "C", "D"):
        die(f"{where}: Correct Answer: expected A, B, C or D")
    if not isinstance(category := [] if category is None else category, list):
        die(f"{where}: Category: expected a list of texts")
    path, picture, image = row.get("Image Path"), row.get("Decoded Image"), None
    if path:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            die(f"{where}: Image Path: expected a path below the folder of the file")
        picture = picture.get("bytes") if isinstance(picture, dict) else None
        image = f"images/{key}{Path(path).suffix.lower()}"
        images[image] = picture or fetch(folder / path, None)
    options = OPTIONS.match(text)
    return {"id": key, "question": text, "choices": options and [o.strip() for o in options.groups()],
            "answer": "ABCD".index(letter), "category": category,
            "level": row.get("Level") or row.get("Knowledge Requirement Level"), "topic": row.get("Topic"),
            "image": image, "explanation": row.get("Explanation")}


def scenario(row, where, key):
    issues, decisions = row.get("LabSafety_Related_Issues"), row.get("Decisions")
    if not isinstance(issues, dict) or not all(isinstance(p, str) for points in issues.values() for p in points or []):
        die(f"{where}: LabSafety_Related_Issues: expected an object of lists of texts")
    if not isinstance(decisions, list) or not all(isinstance(d, dict) for d in decisions):
        die(f"{where}: Decisions: expected a list of objects")
    return {"id": key, "scenario": field(row, "Scenario", where), "subject": row.get("Subject"),
            "aspects": {name: points for name, points in issues.items() if points},
            "decisions": [{"decision": field(d, "Decision", where), "consequence": field(d, "Consequence", where)}
                          for d in decisions]}


def write_images(out, images):
    temp = out / f".image.tmp-{os.getpid()}"
    try:
        for name, picture in images.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            temp.write_bytes(picture)
            os.replace(temp, out / name)
    except OSError as e:
        if temp.exists():
            temp.unlink()
        die(f"{out}: cannot be written ({e.strerror or e})")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="PATH", nargs="+", help="a folder or files: .parquet, .jsonl, .json")
    ap.add_argument("--revision", metavar="COMMIT", help=f"download another revision than {REVISION[:8]}")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another count or checksum, with a warning")
    ap.error = die
    args = ap.parse_args()

    digest, mcq, scenarios, images, test, n = hashlib.sha256(), [], [], {}, {}, Counter()
    name = " ".join(args.src or [URL.format(args.revision or REVISION)])
    for file, raw in sources(args):
        digest.update(raw)
        base = Path(file).name
        if base in INDICES:
            if (sha := hashlib.sha256(raw).hexdigest()) != INDICES[base]:
                differs(f"{file}: sha256 {sha}, expected {INDICES[base]}", args.any_version)
            test[base] = read_json(raw, file, (list, dict), "a list or an object of lists of numbers")
            continue
        reader = {".parquet": read_parquet, ".jsonl": read_jsonl, ".json": read_train}.get(Path(file).suffix)
        if not reader:
            die(f"{file}: expected .parquet, .jsonl or text_qa_train.json")
        half = "train" if "train" in base else None  # the fine-tuning half has no numbers of the whole set
        for line, row in reader(raw, file):
            where = f"{file}:{line}"
            kind = "scenario" if "Scenario" in row else "qa_i" if row.get("Image Path") else "qa"
            key = f"labsafety-{kind}-{half + '-' if half else ''}{n[kind, half]}"
            n[kind, half] += 1
            if kind == "scenario":
                scenarios.append(scenario(row, where, key) | {"split": half})
            else:
                mcq.append(question(row, where, key, Path(file).parent, images) | {"split": half})
    if n["qa", None] == TEXT and "test_qa_indices.json" in test:
        for i, row in enumerate(row for row in mcq if row["id"].startswith("labsafety-qa-")):
            row["split"] = "test" if i in test["test_qa_indices.json"] else "train"
    if n["scenario", None] == SCENARIOS and "test_scenario_indices.json" in test:
        seen = Counter()  # these indices count within each subject
        for row in scenarios:
            row["split"] = "test" if seen[row["subject"]] in test["test_scenario_indices.json"].get(
                row["subject"], []) else "train"
            seen[row["subject"]] += 1
    if not mcq and not scenarios:
        die(f"{name}: no rows found")
    with_image, decisions = sum(bool(row["image"]) for row in mcq), sum(len(row["decisions"]) for row in scenarios)
    if mcq and (len(mcq) - with_image, with_image) != (TEXT, WITH_IMAGE):
        differs(f"{name}: {len(mcq) - with_image} questions and {with_image} with an image, expected {TEXT} and "
                f"{WITH_IMAGE}", args.any_version)
    if scenarios and (len(scenarios), decisions) != (SCENARIOS, DECISIONS):
        differs(f"{name}: {len(scenarios)} scenarios, {decisions} decisions, expected {SCENARIOS}, {DECISIONS}",
                args.any_version)
    meta = {"source": " ".join(Path(p).name for p in args.src) if args.src else name,
            "revision": None if args.src else args.revision or REVISION, "sha256": digest.hexdigest(),
            "n": {"mcq": len(mcq), "scenarios": len(scenarios)}, "licence": LICENCE}
    write_images(args.out, images)  # first, so that no row names an image that is not there
    files = {f"{kind}.jsonl": rows for kind, rows in (("mcq", mcq), ("scenarios", scenarios)) if rows}
    write(args.out, files | {"meta.json": [meta]})
    if mcq:
        print(f"{args.out / 'mcq.jsonl'}: {len(mcq)} questions, {with_image} with an image, "
              f"{sum(row['choices'] is None for row in mcq)} without separate choices; split: "
              + ", ".join(f"{k} {v}" for k, v in Counter(row["split"] for row in mcq).items()) + "; answers: "
              + ", ".join(f"{'ABCD'[k]} {v}" for k, v in sorted(Counter(row["answer"] for row in mcq).items())))
    if scenarios:
        aspects = Counter(name for row in scenarios for name in row["aspects"])
        print(f"{args.out / 'scenarios.jsonl'}: {len(scenarios)} scenarios, {decisions} decisions, {aspects.total()} "
              f"aspects with {sum(len(p) for row in scenarios for p in row['aspects'].values())} gold points; split: "
              + ", ".join(f"{k} {v}" for k, v in Counter(row["split"] for row in scenarios).items()))
    else:
        print("no scenarios: they need --revision or --src with scenarios.parquet")
    print(f"sha256 {meta['sha256']}")


if __name__ == "__main__":
    main()

# Output on the train half, in a JSONL form of the public files ($D; long lines folded). The real parquet files could
# not be tried here; tests/test_data_safety.py runs small ones of the same layout where pyarrow is installed.
# $ python data/labsafety/prepare.py --any-version --src $D/labsafety_bench --out /tmp/out
# warning: $D/labsafety_bench: 316 questions and 0 with an image, expected 632 and 133
# warning: $D/labsafety_bench: 201 scenarios, 757 decisions, expected 404, 1512
# /tmp/out/mcq.jsonl: 316 questions, 0 with an image, 0 without separate choices; split: train 316; answers: A 57, B
#   124, C 80, D 55
# /tmp/out/scenarios.jsonl: 201 scenarios, 757 decisions, 801 aspects with 1714 gold points; split: train 201
# sha256 540cced1ccb6b67a2296435781cd2e2bc9b360729af6c80e56d7b5014c7b6c72
