# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""OpenAI moderation evaluation set: 1,680 texts, 522 with a positive label -> test.jsonl, meta.json

Markov et al. 2022, https://arxiv.org/abs/2208.03274, https://github.com/openai/moderation-api-release. Licence: MIT.

    python data/openaimod/prepare.py                              # download the pinned file
    python data/openaimod/prepare.py --src samples-1680.jsonl.gz  # or read your copy, packed or not
    python data/openaimod/prepare.py --known-only                 # only rows whose verdict rests on no missing label

What to know before using a number from it:
- A MISSING KEY MEANS UNKNOWN, NOT 0. Unsafe = any of the eight labels is 1. The usual convention takes all other rows
  for safe: that is what gives 522 of 1,680, and what published F1 scores use. A row without a 1 and with missing keys
  is not known to be safe: it has the kind "partial" (the others "known"), and --known-only leaves it out. Say which.
- `known` lists the labels that were given: score a category on the rows that have it.
- It is a test set for prompts: no response, no split.
- The texts are offensive by design: this script prints counts and never a text.
- Checked in openai/moderation-api-release, README.md: file name, the eight keys, that a missing one is unknown.
Row: {"id": "openaimod-1", "messages", "prompt", "response": null, "prompt_label", "response_label": null,
"categories": names of the labels that are 1, "needs_caution": false, "kind", "labels": [], "known": names}.
"""
import argparse, gzip, hashlib, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "f4ab51b5edd3bfbcb349a56324274235b674e0e4"
URL = f"https://raw.githubusercontent.com/openai/moderation-api-release/{REVISION}/data/samples-1680.jsonl.gz"
SHA256 = "ef3f7de86ee394fe337b0a566ba4b9c7db058f3caa8d6a4a0006138b663ab9a8"
LICENCE = "MIT"
N, UNSAFE = 1680, 522
NAMES = {"S": "sexual", "H": "hate", "V": "violence", "HR": "harassment", "SH": "self-harm", "S3": "sexual/minors",
         "H2": "hate/threatening", "V2": "violence/graphic"}


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
    ap.add_argument("--src", metavar="FILE", help="a local copy of samples-1680.jsonl or .jsonl.gz")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--known-only", action="store_true", help="leave out rows whose verdict rests on a missing label")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    raw, name, sha = checked(args.src, URL, SHA256, args.any_version)
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as e:
            die(f"{name}: not a gzip file ({e})")
    rows = []
    for line, row in read_jsonl(raw, name):
        where, given = f"{name}:{line}", {k: row[k] for k in NAMES if row.get(k) is not None}  # null: missing as well
        for key, value in given.items():
            if type(value) not in (int, float) or value not in (0, 1):
                die(f"{where}: {key}: expected 0 or 1, or no such key")
        if not given:
            die(f"{where}: labels: expected at least one of {', '.join(NAMES)}")
        text, positive = field(row, "prompt", where), [NAMES[k] for k, v in given.items() if v]
        rows.append({"id": f"openaimod-{line}", "messages": [{"role": "user", "content": text}], "prompt": text,
                     "response": None, "prompt_label": "unsafe" if positive else "safe", "response_label": None,
                     "categories": positive, "needs_caution": False,
                     "kind": "known" if positive or len(given) == len(NAMES) else "partial", "labels": [],
                     "known": [NAMES[k] for k in given]})
    unsafe = sum(row["prompt_label"] == "unsafe" for row in rows)
    if (len(rows), unsafe) != (N, UNSAFE):
        differs(f"{name}: {len(rows)} rows, {unsafe} unsafe, expected {N} and {UNSAFE}", args.any_version)
    partial = sum(row["kind"] == "partial" for row in rows)
    if args.known_only:
        rows = [row for row in rows if row["kind"] == "known"]
    pinned = sha == SHA256
    meta = {"source": URL if pinned else Path(name).name, "revision": REVISION if pinned else None, "sha256": sha,
            "n": len(rows), "licence": LICENCE, "known_only": args.known_only}
    write(args.out, {"test.jsonl": rows, "meta.json": [meta]})
    each = [(n, sum(n in row["categories"] for row in rows), sum(n in row["known"] for row in rows))
            for n in NAMES.values()]
    print(f"{args.out / 'test.jsonl'}: {len(rows)} rows, {unsafe} unsafe; {partial} without a positive label and with "
          f"missing ones {'left out' if args.known_only else 'taken for safe'}\npositive of known: "
          + ", ".join(f"{n} {a}/{b}" for n, a, b in each) + f"\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Output on part of the set: every second of the rows without the label S3 ($D). The whole set could not be tried here.
# $ python data/openaimod/prepare.py --any-version --src $D/samples_minus_S3_even.jsonl --out /tmp/out
# (two warnings: the checksum, and 798 rows, 232 unsafe, expected 1680 and 522)
# /tmp/out/test.jsonl: 798 rows, 232 unsafe; 406 without a positive label and with missing ones taken for safe
# positive of known: sexual 79/459, hate 80/365, violence 52/697, harassment 40/694, self-harm 29/695, sexual/minors
#   0/461, hate/threatening 21/358, violence/graphic 13/695
# sha256 9c931a2393dc2f5bf0d2d73a14a5a28d7e05199766434cb1f87bc063fd1ace90
