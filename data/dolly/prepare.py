# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""databricks-dolly-15k: 15,011 ordinary instructions with human answers -> train.jsonl (chat rows), meta.json

https://huggingface.co/datasets/databricks/databricks-dolly-15k, licence CC-BY-SA-3.0 (share alike, derived data too).

    python data/dolly/prepare.py                                       # download the pinned file, 13 MB
    python data/dolly/prepare.py --src databricks-dolly-15k.jsonl      # or read your copy; --out DIR: write elsewhere

Why it is here: it is the default BENIGN fine-tuning set. Whatever a script does to a model's safety with it happens
without one harmful row. That this erodes safety is a published finding: Qi et al., https://arxiv.org/abs/2310.03693,
report the harmfulness rate of Llama-2-7b-Chat going from 0.6 to 12.1 % after one epoch on Dolly. It is also the control
for every other set: an effect that Dolly has too is not due to the harmful rows.

What to know before using a number from it:
- The hub has had several versions of this file, and copies with 15,014 or 15,015 rows exist. This one has 15,011.
- The user turn is the instruction, then an empty line and the context where there is one (Wikipedia text, its citation
  marks such as [12] left in). Outer white space is stripped; rows without an instruction or a response are left out.
- Checked in databrickslabs/dolly, data/README.md: licence, 8 categories, citation marks; rows, pin: public manifests.
Row: {"messages": [{"role": "user", "content"}, {"role": "assistant", "content"}], "category"}.
"""
import argparse, hashlib, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a"
URL = f"https://huggingface.co/datasets/databricks/databricks-dolly-15k/resolve/{REVISION}/databricks-dolly-15k.jsonl"
SHA256 = "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec"
LICENCE = "CC-BY-SA-3.0"
N, CATEGORIES = 15011, 8


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


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="FILE", help="a local copy of the JSONL file, instead of the download")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    raw, name = fetch(args.src, URL), args.src or URL
    sha = hashlib.sha256(raw).hexdigest()
    if sha != SHA256:
        pointer = ": a Git LFS pointer, run `git lfs pull`" if raw.startswith(b"version https://git-lfs") else ""
        differs(f"{name}: sha256 {sha}, expected {SHA256}{pointer}", args.any_version)
    rows, n = [], 0
    for line, row in read_jsonl(raw, name):
        n += 1
        for key in ("instruction", "context", "response", "category"):
            if not isinstance(row.get(key), str):
                die(f"{name}:{line}: {key}: expected a text")
        user = row["instruction"].strip() + ("\n\n" + row["context"].strip() if row["context"].strip() else "")
        if row["instruction"].strip() and row["response"].strip():
            rows.append({"messages": [{"role": "user", "content": user},
                                      {"role": "assistant", "content": row["response"].strip()}],
                         "category": row["category"]})
    counts = Counter(row["category"] for row in rows)
    if n != N or len(counts) != CATEGORIES:
        differs(f"{name}: {n} rows in {len(counts)} categories, expected {N} in {CATEGORIES}", args.any_version)
    pinned = sha == SHA256
    meta = {"source": URL if pinned else Path(name).name, "revision": REVISION if pinned else None, "sha256": sha,
            "n": len(rows), "licence": LICENCE}
    write(args.out, {"train.jsonl": rows, "meta.json": [meta]})
    print(f"{args.out / 'train.jsonl'}: {len(rows)} conversations, {n - len(rows)} empty ones left out: "
          f"{', '.join(f'{c} {k}' for c, k in counts.most_common())}\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). The revision, the checksum and the count are the
# published ones; tests/test_data.py runs the code on a small file of the same shape.
