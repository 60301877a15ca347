# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""ToxicChat 0124: 5,082 + 5,083 user prompts -> train.jsonl, test.jsonl, train_human.jsonl, test_human.jsonl, meta.json

Lin et al. 2023, https://arxiv.org/abs/2310.17389, https://huggingface.co/datasets/lmsys/toxic-chat. Licence of the
data: CC-BY-NC-4.0 (non-commercial).

    python data/toxicchat/prepare.py                       # download the two pinned CSV files, 14 MB
    python data/toxicchat/prepare.py --src toxicchat/      # or read your copy; --out DIR: write elsewhere

What to know before using a number from it:
- TWO CONVENTIONS THAT DO NOT COMPARE. The full split (test.jsonl) takes rows that no person read, because moderation
  scores were low, for not toxic; test_human.jsonl is the part with human annotation (safety-eval's default: 2,853
  rows, 362 toxic). The second has about twice the share of toxic rows, so F1 and AUPRC are higher. Name the file.
- unsafe = toxicity 1. jailbreaking is a label of its own, kept as a field and not part of it.
- It is about the user's input. The model's output is not judged and is not kept.
- Use 0124: the earlier release 1123 has other labels.
- The texts are offensive in places: this script prints counts and never a text.
- Checked in Advait-Pathak9222/BurningShadows, controlplane/corpora/toxicchat.py: pin, checksums, columns, 5,654 human.
Row: {"id": "toxicchat-test-1", "messages", "prompt", "response": null, "prompt_label", "response_label": null,
"categories": [], "needs_caution": false, "kind": "human" or "auto", "labels": [], "jailbreaking"}.
"""
import argparse, csv, hashlib, io, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "29df8e4dba60e1f4af4b4075c0705c5b313548a8"
URL = f"https://huggingface.co/datasets/lmsys/toxic-chat/resolve/{REVISION}/data/0124/"
FILES = {"train": "toxic-chat_annotation_train.csv", "test": "toxic-chat_annotation_test.csv"}
SHA256 = {"train": "702eb9b7cac96c3c35e28b9b95855a71f26f21afba8666f9d243f1fa469e81ed",
          "test": "3c2e49889626f7738dca0a29bface0ba0a0595b2ffdd17f0e02f19df7c3c4c9b"}
LICENCE = "CC-BY-NC-4.0"
COUNTS = {"train": 5082, "test": 5083}
HUMAN_TEST = 2853, 362  # safety-eval's rows and toxic ones
COLUMNS = ["user_input", "human_annotation", "toxicity", "jailbreaking"]


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
    ap.add_argument("--src", metavar="PATH", nargs="+", help="the folder with the two CSV files, or one of them")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    given = dict.fromkeys(FILES)
    if args.src:
        paths = [p for s in args.src for p in (sorted(Path(s).glob("*.csv")) if Path(s).is_dir() else [Path(s)])]
        given = {split: str(p) for split, file in FILES.items() for p in paths if p.name == file}
        if not given:
            die(f"{args.src[0]}: expected {' and '.join(FILES.values())}")
    csv.field_size_limit(1 << 24)  # some outputs are longer than the default allows
    files, shas, source, empty = {}, {}, {}, {}
    for split, path in given.items():
        raw, name, shas[split] = checked(path, URL + FILES[split], SHA256[split], args.any_version)
        rows, n = [], 0
        for line, row in read_csv(raw, name, COLUMNS):
            where, n = f"{name}:{line}", n + 1
            for key, values in (("human_annotation", "True False"), ("toxicity", "0 1"), ("jailbreaking", "0 1")):
                if row[key] not in values.split():
                    die(f"{where}: {key}: expected {' or '.join(values.split())}")
            if row["user_input"].strip():
                text = row["user_input"]
                rows.append({"id": f"toxicchat-{split}-{n}", "messages": [{"role": "user", "content": text}],
                             "prompt": text, "response": None,
                             "prompt_label": "unsafe" if row["toxicity"] == "1" else "safe", "response_label": None,
                             "categories": [], "needs_caution": False,
                             "kind": "human" if row["human_annotation"] == "True" else "auto", "labels": [],
                             "jailbreaking": int(row["jailbreaking"])})
        human = [row for row in rows if row["kind"] == "human"]
        toxic = sum(row["prompt_label"] == "unsafe" for row in human)
        if n != COUNTS[split]:
            differs(f"{name}: {n} rows, expected {COUNTS[split]}", args.any_version)
        elif split == "test" and (len(human), toxic) != HUMAN_TEST:
            differs(f"{name}: {len(human)} rows with human annotation, {toxic} toxic, expected {HUMAN_TEST[0]} and "
                    f"{HUMAN_TEST[1]}", args.any_version)
        files |= {f"{split}.jsonl": rows, f"{split}_human.jsonl": human}
        source[split] = URL + FILES[split] if shas[split] == SHA256[split] else Path(name).name
        empty[split] = n - len(rows)
    pinned = all(shas[split] == SHA256[split] for split in shas)
    meta = {"source": source, "revision": REVISION if pinned else None, "sha256": shas,
            "n": {name: len(rows) for name, rows in files.items()}, "licence": LICENCE, "empty": empty}
    write(args.out, files | {"meta.json": [meta]})
    for name, rows in files.items():
        labels = Counter(row["prompt_label"] for row in rows)
        share = labels["unsafe"] / max(1, len(rows))
        print(f"{args.out / name}: {len(rows)} prompts, {labels['unsafe']} toxic ({share:.1%}), "
              f"{sum(row['jailbreaking'] for row in rows)} jailbreaking")
    print("\n".join(f"{split} sha256 {sha}, {empty[split]} empty ones left out" for split, sha in shas.items()))


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). The revision and the checksums are those that public
# projects pin; tests/test_data_guard.py runs the code on small files of the same shape.
