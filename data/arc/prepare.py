# /// script
# requires-python = ">=3.10"
# dependencies = ["pyarrow"]
# ///
"""ARC: 2,376 easy and 1,172 challenge test questions -> easy.jsonl, challenge.jsonl, meta.json

Clark et al. 2018, https://arxiv.org/abs/1803.05457, https://huggingface.co/datasets/allenai/ai2_arc, CC-BY-SA-4.0.

    uv run data/arc/prepare.py                          # download the two pinned parquet files, 0.3 MB and 0.2 MB
    python data/arc/prepare.py                          # the same where pyarrow is installed: only parquet needs it
    python data/arc/prepare.py --src ARC-Easy/test-00000-of-00001.parquet ARC-Challenge/test-00000-of-00001.parquet
    python data/arc/prepare.py --any-version --src ARC-Easy-Test.jsonl      # or AI2's own JSONL
    python data/arc/prepare.py --any-version --src arc_easy.jsonl arc_challenge.jsonl   # or llm-foundry's copy

The words easy and challenge in a path tell its set. A set that is not given is not written. --out DIR: elsewhere.

What to know before using a number from it:
- Prompt of EleutherAI's lm-evaluation-harness: "Question: {question}\\nAnswer:", each choice as a continuation after
  one space; it reports acc and acc_norm (divided by the length of the choice). Leaderboards quote 25-shot acc_norm.
- Not all questions have four choices: some have three or five. Chance is not exactly 25 %.
- Some questions label the choices 1 to 4 instead of A to D: here `answer` is always the 0-based position.
- llm-foundry's JSONL gives every question four choices, in a few the same text twice, has no ids, and starts with
  "Question: " (taken off here). Only the parquet files have a pinned checksum.
- Checked in EleutherAI/lm-evaluation-harness, lm_eval/tasks/arc/arc_easy.yaml: columns; pin, rows: public manifests.
Row: {"id", "question", "choices": texts, "answer": 0-based, "category": "easy" or "challenge"}; the id is
upstream's, or "arc-easy-1" with the 1-based line where there is none.
"""
import argparse, hashlib, io, json, os, re, sys
from collections import Counter
from pathlib import Path

REVISION = "210d026faf9955653af8916fad021475a3f00453"
ROOT = f"https://huggingface.co/datasets/allenai/ai2_arc/resolve/{REVISION}"
URLS = {"easy": f"{ROOT}/ARC-Easy/test-00000-of-00001.parquet",
        "challenge": f"{ROOT}/ARC-Challenge/test-00000-of-00001.parquet"}
SHA256 = {"easy": "4160597d618ae851c7eb04e281574f3f654776216ac6b6641588d64527b47177",
          "challenge": "62f03257e737aed263f55c6abf87c7bb0028a44a6bdd2a26eb1279eb42c1d1e9"}
LICENCE = "CC-BY-SA-4.0"
COUNTS = {"easy": 2376, "challenge": 1172}


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


def read_parquet(raw, name):
    """Yields (row number from 1, row)."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        die(f"{name}: reading parquet needs the package pyarrow: uv run {sys.argv[0]}, or pip install pyarrow")
    try:
        rows = parquet.read_table(io.BytesIO(raw)).to_pylist()
    except (ValueError, OSError) as e:  # pyarrow's own errors are subclasses
        die(f"{name}: not a parquet file ({str(e).splitlines()[0]})")
    yield from enumerate(rows, 1)


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


def question_of(row, where):
    """(id or None, question, choices, 0-based answer) of a row in any of the three layouts."""
    key, question, choices = row.get("id"), row, row.get("choices")
    if "query" in row:  # llm-foundry
        question, answer = {"question": field(row, "query", where).removeprefix("Question: ")}, row.get("gold")
    else:  # the hub: question, choices {text, label}; AI2: question {stem, choices [{text, label}]}
        field(row, "id", where)
        if isinstance(row.get("question"), dict):
            question = {"question": row["question"].get("stem")}
            choices = row["question"].get("choices")
            if isinstance(choices, list) and all(isinstance(c, dict) for c in choices):
                choices = {k: [c.get(k) for c in choices] for k in ("text", "label")}
        if not isinstance(choices, dict) or not isinstance(choices.get("label"), list):
            die(f"{where}: choices: expected texts with labels")
        if choices["label"].count(row.get("answerKey")) != 1:
            die(f"{where}: answerKey: expected one of the labels of the choices")
        choices, answer = choices.get("text"), choices["label"].index(row["answerKey"])
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        die(f"{where}: choices: expected at least two texts that are not empty")
    if type(answer) is not int or not 0 <= answer < len(choices):
        die(f"{where}: gold: expected the 0-based position of a choice")
    return key, field(question, "question", where), choices, answer


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="FILE", nargs="+", help="local parquet or JSONL files, instead of the download")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()

    given = {} if args.src else dict.fromkeys(URLS)
    for src in args.src or []:
        words = re.findall("easy|challenge", str(Path(src).resolve()).lower())
        if not words or words[-1] in given:  # the last one: the file name counts more than its folders
            die(f"{src}: expected one file for each set, with easy or challenge in its path")
        given[words[-1]] = src
    files, source, shas = {}, {}, {}
    for name_of_set, src in given.items():
        raw, name, sha = checked(src, URLS[name_of_set], SHA256[name_of_set], args.any_version)
        read, rows = read_jsonl if name.endswith(".jsonl") else read_parquet, []
        for line, row in read(raw, name):
            key, question, choices, answer = question_of(row, f"{name}:{line}")
            rows.append({"id": key or f"arc-{name_of_set}-{line}", "question": question, "choices": choices,
                         "answer": answer, "category": name_of_set})
        if len(rows) != COUNTS[name_of_set]:
            differs(f"{name}: {len(rows)} questions, expected {COUNTS[name_of_set]}", args.any_version)
        files[f"{name_of_set}.jsonl"], shas[name_of_set] = rows, sha
        source[name_of_set] = URLS[name_of_set] if sha == SHA256[name_of_set] else Path(name).name
    pinned = all(shas[k] == SHA256[k] for k in shas)
    meta = {"source": source, "revision": REVISION if pinned else None, "sha256": shas,
            "n": {name: len(rows) for name, rows in files.items()}, "licence": LICENCE}
    write(args.out, files | {"meta.json": [meta]})
    for name, rows in files.items():
        sizes = Counter(len(row["choices"]) for row in rows)
        found = ", ".join(f"{n} with {c} choices" for c, n in sorted(sizes.items()))
        print(f"{args.out / name}: {len(rows)} questions: {found}")
    for name_of_set, sha in shas.items():
        print(f"{name_of_set} sha256 {sha}")


if __name__ == "__main__":
    main()

# Output on part of the set: every second line of llm-foundry's copy ($D). The pinned files could not be tried here (no
# network); tests/test_data_general.py runs small files in all three layouts.
# $ python data/arc/prepare.py --any-version --src $D/arc_easy_even.jsonl $D/arc_challenge_even.jsonl --out /tmp/out
# (four warnings: two checksums, 1188 questions, expected 2376, and 586 questions, expected 1172)
# /tmp/out/easy.jsonl: 1188 questions: 1188 with 4 choices
# /tmp/out/challenge.jsonl: 586 questions: 586 with 4 choices
# easy sha256 f7fdd2f367a526e784e8dbfd84eda03375202163fc51befa043a81e1dd3f49b7
# challenge sha256 2bb45569532d32247953e8fcd795a6688ca41a468085858202aeee3515b3e415
