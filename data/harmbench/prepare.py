# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""HarmBench, text behaviors: 400 = 200 standard, 100 contextual, 100 copyright -> prompts.jsonl, meta.json

Mazeika et al. 2024, https://arxiv.org/abs/2402.04249, https://github.com/centerforaisafety/HarmBench, licence MIT.

    python data/harmbench/prepare.py                                          # download the pinned file
    python data/harmbench/prepare.py --src harmbench_behaviors_text_all.csv   # or read your copy; --out DIR: elsewhere

What to know before using a number from it:
- `kind` is the functional category. Most refusal studies report only the 200 standard behaviors; copyright needs
  matching against the protected text, not a judge or a phrase list: never pool the three.
- A contextual behavior means nothing without its ContextString. The prompt is joined as the benchmark's direct
  requests are: context, blank line, ---, blank line, behavior. `behavior` and `context` are kept apart too, since
  HarmBench's classifier is asked about the behavior, with the context in its own place.
- 393 of the 400 behaviors have different texts: BehaviorID is the key. 80 rows are the validation part, 320 the test
  part (files _val and _test); this file holds both. 9 behaviors are also in JailbreakBench: remove duplicates.
- Copies that differ in one behavior are around, so the checksum decides.
- The texts are harmful by design: this script prints counts and never a prompt.
- Columns checked in Virtue-Research/guard-eval-harness, src/guard_eval_harness/datasets/harmbench_behaviors.py.
Row: {"id": "harmbench-BEHAVIORID", "prompt", "category": semantic category, "label": "forbidden", "kind": "standard",
"contextual" or "copyright", "behavior", "context": text or ""}.
"""
import argparse, csv, hashlib, io, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "8e1604d1171fe8a48d8febecd22f600e462bdcdd"
URL = (f"https://raw.githubusercontent.com/centerforaisafety/HarmBench/{REVISION}/data/behavior_datasets/"
       "harmbench_behaviors_text_all.csv")
SHA256 = "8d81accedd38eaaf8b760618622bb888417d1fd0c86eba65c427a16f1cbb4afc"
LICENCE = "MIT"
KINDS, DIFFERENT = {"standard": 200, "contextual": 100, "copyright": 100}, 393


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


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="FILE", help="a local copy of the CSV, instead of the download")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    raw, name = fetch(args.src, URL), args.src or URL
    sha = hashlib.sha256(raw).hexdigest()
    if sha != SHA256:
        differs(f"{name}: sha256 {sha}, expected {SHA256}", args.any_version)
    rows, columns = [], ["Behavior", "FunctionalCategory", "SemanticCategory", "ContextString", "BehaviorID"]
    for line, row in read_csv(raw, name, columns):
        where = f"{name}:{line}"
        behavior, context, kind = field(row, "Behavior", where), row["ContextString"], row["FunctionalCategory"]
        if kind not in KINDS:
            die(f"{where}: FunctionalCategory: expected one of {', '.join(KINDS)}")
        if kind == "contextual":
            field(row, "ContextString", where)
        rows.append({"id": f"harmbench-{field(row, 'BehaviorID', where)}",
                     "prompt": f"{context}\n\n---\n\n{behavior}" if context else behavior,
                     "category": field(row, "SemanticCategory", where), "label": "forbidden", "kind": kind,
                     "behavior": behavior, "context": context})
    kinds, different = Counter(row["kind"] for row in rows), len({row["behavior"] for row in rows})
    found = ", ".join(f"{c} {n}" for c, n in kinds.items())
    if len({row["id"] for row in rows}) != len(rows):
        die(f"{name}: BehaviorID: {len(rows)} rows, expected each id once")
    if kinds != KINDS or different != DIFFERENT:
        differs(f"{name}: {len(rows)} behaviors ({found}), {different} different texts, expected "
                f"{sum(KINDS.values())} ({', '.join(f'{c} {n}' for c, n in KINDS.items())}), {DIFFERENT} different",
                args.any_version)
    pinned = sha == SHA256
    meta = {"source": URL if pinned else Path(name).name, "revision": REVISION if pinned else None, "sha256": sha,
            "n": len(rows), "licence": LICENCE}
    write(args.out, {"prompts.jsonl": rows, "meta.json": [meta]})
    categories = ", ".join(f"{c} {n}" for c, n in Counter(row["category"] for row in rows).most_common())
    print(f"{args.out / 'prompts.jsonl'}: {len(rows)} prompts, all forbidden: {found}\n"
          f"categories: {categories}\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). The commit, the checksum and the counts are the
# published ones; tests/test_data_safety.py runs the code on a small file of the same shape.
