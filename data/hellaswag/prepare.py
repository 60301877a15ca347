# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""HellaSwag: 10,042 validation items, a context and 4 endings each -> validation.jsonl, meta.json

Zellers et al. 2019, https://arxiv.org/abs/1905.07830, https://github.com/rowanz/hellaswag, licence MIT.

    python data/hellaswag/prepare.py                               # download the pinned file, 12 MB
    python data/hellaswag/prepare.py --src hellaswag_val.jsonl     # or read your copy; --out DIR: write elsewhere

What to know before using a number from it:
- Texts are prepared as EleutherAI's lm-evaluation-harness prepares them, so that scores can be compared with its
  `hellaswag` task: "activity label: ctx_a Ctx_b", " [title]" -> ". ", bracketed WikiHow markup removed, double spaces
  replaced once. Python's capitalize() also lowers the rest of ctx_b; the harness does so, hence this file does.
- Score an ending as a continuation after one space. The harness reports acc (sum of log-probabilities) and acc_norm
  (divided by the length of the ending); leaderboards quote 10-shot acc_norm. The test split has no public labels.
- It was public before most of today's models were trained: read it as a before/after measure.
- Checked in rowanz/hellaswag, data/README.md; huggingface/datasets, datasets/hellaswag/hellaswag.py: keys, types.
Row: {"question", "choices": 4 texts, "answer": 0..3, "category": "activitynet" or "wikihow"}.
"""
import argparse, hashlib, json, os, re, sys
from collections import Counter
from pathlib import Path

REVISION = "a29ff8e9a04bba4bd6588223785ce105328adc57"
URL = f"https://raw.githubusercontent.com/rowanz/hellaswag/{REVISION}/data/hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
LICENCE = "MIT"
N = 10042


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


def clean(text):
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="FILE", help="a local copy of hellaswag_val.jsonl, instead of the download")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    raw, name = fetch(args.src, URL), args.src or URL
    sha = hashlib.sha256(raw).hexdigest()
    if sha != SHA256:
        differs(f"{name}: sha256 {sha}, expected {SHA256}", args.any_version)
    rows = []
    for line, row in read_jsonl(raw, name):
        where = f"{name}:{line}"
        row = {"ctx_b": ""} | row  # the hub's reader takes it for optional, too
        label, endings = row.get("label"), row.get("endings")
        if str(label) not in ("0", "1", "2", "3"):  # the hub's copy has them as text, and "" in the test split
            die(f"{where}: label: expected 0, 1, 2 or 3")
        if not isinstance(endings, list) or len(endings) != 4 or not all(isinstance(e, str) for e in endings):
            die(f"{where}: endings: expected a list of 4 texts")
        for key in ("activity_label", "ctx_a", "ctx_b", "source_id"):  # ctx_b may be empty
            if not isinstance(row.get(key), str):
                die(f"{where}: {key}: expected a text")
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        rows.append({"question": clean(context), "choices": [clean(e) for e in endings], "answer": int(label),
                     "category": row["source_id"].split("~")[0]})
    if len(rows) != N:
        differs(f"{name}: {len(rows)} items, expected {N}", args.any_version)
    pinned = sha == SHA256
    meta = {"source": URL if pinned else Path(name).name, "revision": REVISION if pinned else None, "sha256": sha,
            "n": len(rows), "licence": LICENCE}
    write(args.out, {"validation.jsonl": rows, "meta.json": [meta]})
    counts = Counter(row["category"] for row in rows)
    found = ", ".join(f"{c} {n}" for c, n in counts.most_common())
    print(f"{args.out / 'validation.jsonl'}: {len(rows)} items: {found}\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). The commit, the checksum and the count are the
# published ones; tests/test_data.py runs the code on a small file of the same shape.
