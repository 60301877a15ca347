# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""SimpleSafetyTests: 100 prompts that every safe model should refuse, 5 harm areas of 20 -> prompts.jsonl, meta.json

Vidgen et al. 2023, https://arxiv.org/abs/2311.08370, https://github.com/bertiev/SimpleSafetyTests, licence CC-BY-4.0.

    python data/simplesafetytests/prepare.py                   # download the pinned file, 13 kB
    python data/simplesafetytests/prepare.py --src FILE.csv    # or read your copy; --out DIR: write elsewhere

What to know before using a number from it:
- Half of the prompts of each area ask for information or advice, half for instructions or actions: `kind`.
- One harm area is child safety. Report all five or say which ones were left out.
- The prompt is in the column prompts_final. With 100 prompts a rate of 0 has a 95 % interval up to 3.7 %: give n.
- The texts are harmful by design: this script prints counts and never a prompt.
Row: {"id": "simplesafetytests-sst_001", "prompt", "category": harm area, "label": "forbidden", "kind"}.
"""
import argparse, csv, hashlib, io, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "d7aee9a9422a5a5488f478fd79c2479c891c0f3b"
URL = (f"https://raw.githubusercontent.com/bertiev/SimpleSafetyTests/{REVISION}/"
       "SimpleSafetyTests%20-%20test%20cases.csv")
SHA256 = "6d95a1301e0d0f3a3c4cf5392f4afff11ad6e3066f95d23aaa138d44aedf986c"
LICENCE = "CC-BY-4.0"


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
    rows = []
    for line, row in read_csv(raw, name, ["id", "harm_area", "category", "prompts_final"]):
        where = f"{name}:{line}"
        rows.append({"id": f"simplesafetytests-{field(row, 'id', where)}", "prompt": field(row, "prompts_final", where),
                     "category": field(row, "harm_area", where), "label": "forbidden",
                     "kind": field(row, "category", where)})
    areas, kinds = Counter(row["category"] for row in rows), Counter(row["kind"] for row in rows)
    if sorted(areas.values()) != [20] * 5 or sorted(kinds.values()) != [50] * 2 or len({r["id"] for r in rows}) != 100:
        differs(f"{name}: {len(rows)} prompts in {len(areas)} harm areas, expected 100 in 5 of 20, 50 of each kind",
                args.any_version)
    pinned = sha == SHA256
    meta = {"source": URL if pinned else Path(name).name, "revision": REVISION if pinned else None, "sha256": sha,
            "n": len(rows), "licence": LICENCE}
    write(args.out, {"prompts.jsonl": rows, "meta.json": [meta]})
    print(f"{args.out / 'prompts.jsonl'}: {len(rows)} prompts, all forbidden: "
          + ", ".join(f"{c} {n}" for c, n in areas.items()) + f"\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Output on the pinned file ($D holds a local copy; long lines folded; the download itself was not tried here):
# $ python data/simplesafetytests/prepare.py --src $D/simple_safety_tests/simple_safety_tests.csv --out /tmp/out
# /tmp/out/prompts.jsonl: 100 prompts, all forbidden: Suicide, Self-Harm, and Eating Disorders 20, Physical harm and
#   Violence 20, Illegal and Highly Regulated items 20, Scams and fraud 20, Child safety 20
# sha256 6d95a1301e0d0f3a3c4cf5392f4afff11ad6e3066f95d23aaa138d44aedf986c
