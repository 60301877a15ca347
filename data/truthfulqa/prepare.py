# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""TruthfulQA, multiple choice: 817 questions with the targets of MC1 and MC2 -> validation.jsonl, meta.json

Lin et al. 2021, https://arxiv.org/abs/2109.07958, https://github.com/sylinrl/TruthfulQA, licence Apache-2.0.

    python data/truthfulqa/prepare.py                                          # download both pinned files, 1.2 MB
    python data/truthfulqa/prepare.py --src mc_task.json TruthfulQA.csv        # or your copies; --out DIR: elsewhere

What to know before using a number from it:
- Upstream the right choice of MC1 is first in every row: a model shown the choices in that order scores by position.
  Here the MC1 choices are shuffled, with a generator seeded by SEED and the question, so the order never depends on
  the rest of the file. The choices of MC2 keep their order: it is only scored by probability mass.
- MC1 = share of questions where the one right choice has the highest log-probability. MC2 = probability of the true
  choices divided by that of all choices, averaged. Both put six fixed question-answer pairs before "Q: ..\\nA:".
- Categories stand only in the CSV, whose rows have another order: the files are joined by the text of the question. In
  a common copy one text differs; such a row gets the category "unknown". More than one stops the run.
- This is the 2021 release, which leaderboards use; the repository's main branch has changed since. Say which.
- The best answer to 56 questions is "I have no comment": a model trained to refuse gains on them.
Row: {"id": "truthfulqa-1", "question", "mc1": {"choices", "answer": 0-based}, "mc2": {"choices", "labels": 0 or 1},
"category"}; the id is the 1-based position in mc_task.json.
"""
import argparse, csv, hashlib, io, json, os, random, sys
from collections import Counter
from pathlib import Path

REVISION = "013686a06be7a7bde5bf8223943e106c7250123c"
ROOT = f"https://raw.githubusercontent.com/sylinrl/TruthfulQA/{REVISION}"
URLS = {"mc_task.json": f"{ROOT}/data/mc_task.json", "TruthfulQA.csv": f"{ROOT}/TruthfulQA.csv"}
SHA256 = {"mc_task.json": "6eb4125d25750c0145c4be2dce00440736684ab6f74ce6bff2139571cc758954",
          "TruthfulQA.csv": "8d7dd15f033196140f032d97d30f037da7a7b1192c3f36f9937c1850925335a2"}
LICENCE = "Apache-2.0"
N, SEED = 817, 0


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


# copied from data/gsm8k/prepare.py: checked
def checked(src, url, sha256, any_version):
    """The bytes of a source, the name for messages, and the checksum after it was compared with the pinned one."""
    raw, name = fetch(src, url), src or url
    sha = hashlib.sha256(raw).hexdigest()
    if sha != sha256:
        differs(f"{name}: sha256 {sha}, expected {sha256}", any_version)
    return raw, name, sha


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


def read_array(raw, name):
    """Yields (where, row) of a JSON array of objects; items count from 1."""
    try:
        rows = json.loads(raw)
    except ValueError as e:
        die(f"{name}:{getattr(e, 'lineno', 1)}: file: expected one JSON array")
    if not isinstance(rows, list):
        die(f"{name}:1: file: expected one JSON array")
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            die(f"{name}: item {i}: row: expected one JSON object")
        yield f"{name}: item {i}", row


# copied from data/advbench/prepare.py: field
def field(row, key, where):
    if not isinstance(row.get(key), str) or not row[key].strip():
        die(f"{where}: {key}: expected a text that is not empty")
    return row[key]


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


def targets(row, key, where):
    """({choice: 0 or 1}) as two lists."""
    found = row.get(key)
    if not isinstance(found, dict) or len(found) < 2 or not set(found.values()) <= {0, 1} or 1 not in found.values():
        die(f"{where}: {key}: expected an object of two or more choices with 0 or 1, one at least with 1")
    return list(found), [int(v) for v in found.values()]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="FILE", nargs=2, help="local copies of mc_task.json and TruthfulQA.csv")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    given = sorted(args.src or [None, None], key=lambda src: bool(src and src.endswith(".csv")))  # the CSV second
    if args.src and not given[1].endswith(".csv") or args.src and given[0].endswith(".csv"):
        die(f"{' '.join(args.src)}: expected mc_task.json and TruthfulQA.csv")
    (tasks, name, sha), (table, csv_name, csv_sha) = (
        checked(src, URLS[k], SHA256[k], args.any_version) for k, src in zip(URLS, given))
    categories = {field(row, "Question", f"{csv_name}:{line}").strip(): field(row, "Category", f"{csv_name}:{line}")
                  for line, row in read_csv(table, csv_name, ["Question", "Category"])}
    rows = []
    for where, row in read_array(tasks, name):
        question = field(row, "question", where).strip()
        choices, labels = targets(row, "mc1_targets", where)
        if sum(labels) != 1:
            die(f"{where}: mc1_targets: expected exactly one choice with 1")
        right = choices[labels.index(1)]
        random.Random(f"{SEED} {question}").shuffle(choices)
        all_choices, all_labels = targets(row, "mc2_targets", where)
        rows.append({"id": f"truthfulqa-{len(rows) + 1}", "question": question,
                     "mc1": {"choices": choices, "answer": choices.index(right)},
                     "mc2": {"choices": all_choices, "labels": all_labels},
                     "category": categories.get(question, "unknown")})
    if len(rows) != N:
        differs(f"{name}: {len(rows)} questions, expected {N}", args.any_version)
    unknown = sum(row["category"] == "unknown" for row in rows)
    if unknown > 1:
        differs(f"{name}: {unknown} questions are not in {csv_name}", args.any_version)
    shas = {"mc_task.json": sha, "TruthfulQA.csv": csv_sha}
    meta = {"source": {k: URLS[k] if shas[k] == SHA256[k] else Path(n).name for k, n in zip(URLS, (name, csv_name))},
            "revision": REVISION if shas == SHA256 else None, "sha256": shas, "n": len(rows), "seed": SEED,
            "licence": LICENCE}
    write(args.out, {"validation.jsonl": rows, "meta.json": [meta]})
    counts = Counter(row["category"] for row in rows)
    places = ", ".join(f"{i} {n}" for i, n in sorted(Counter(row["mc1"]["answer"] for row in rows).items()))
    print(f"{args.out / 'validation.jsonl'}: {len(rows)} questions in {len(counts) - (unknown > 0)} categories, "
          f"{unknown} without one\nposition of the right MC1 choice: {places}")
    for key, value in shas.items():
        print(f"{key} sha256 {value}")


if __name__ == "__main__":
    main()

# Output on a third party's copy ($D; long line folded), whose CSV is the pinned file and whose mc_task.json is not. The
# pinned mc_task.json could not be tried here (no network): its checksum is the one in the metadata of the hub's loader.
# $ python data/truthfulqa/prepare.py --any-version --src $D/mc_task.json $D/TruthfulQA.csv --out /tmp/out
# warning: $D/mc_task.json: sha256 b3799639bc76c939836d587de7d30b48d91012cb34be04806d33106ce06c162a,
#   expected 6eb4125d25750c0145c4be2dce00440736684ab6f74ce6bff2139571cc758954
# /tmp/out/validation.jsonl: 817 questions in 38 categories, 1 without one
# position of the right MC1 choice: 0 192, 1 186, 2 161, 3 125, 4 77, 5 45, 6 22, 7 3, 8 5, 9 1
# mc_task.json sha256 b3799639bc76c939836d587de7d30b48d91012cb34be04806d33106ce06c162a
# TruthfulQA.csv sha256 8d7dd15f033196140f032d97d30f037da7a7b1192c3f36f9937c1850925335a2
