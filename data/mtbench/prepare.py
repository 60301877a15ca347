# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""MT-Bench: 80 conversations of two turns, 10 in each of 8 categories -> prompts.jsonl, meta.json

Zheng et al. 2023, https://arxiv.org/abs/2306.05685, https://github.com/lm-sys/FastChat, licence Apache-2.0.

    python data/mtbench/prepare.py                      # download the pinned questions and reference answers, 0.1 MB
    python data/mtbench/prepare.py --src question.jsonl --reference gpt-4.jsonl    # or read your copies

--out DIR: write elsewhere. With --src alone every `reference` is empty, and nothing is downloaded.

What to know before using a number from it:
- The second turn is asked after the model's own first answer: two generations a row, never both in one message.
- The authors' temperatures: writing, roleplay 0.7; stem, humanities 0.1; extraction, math, coding, reasoning 0.
- A judge gives 1 to 10 for each turn; the score is the mean of the 160. Judges differ: name the judge, its version and
  template. For math, reasoning and coding the judge is shown the reference answers, for the others none.
- `reference` holds GPT-4's answers from reference_answer/gpt-4.jsonl, which the authors' judge uses and some of which
  are wrong. The short notes in question.jsonl under the same name are not used by that judge and not written.
- Translations keep the names of the files: the checksum decides. 80 questions: intervals are wide.
- Checked in lm-sys/FastChat, fastchat/llm_judge/data/mt_bench/question.jsonl: keys, two turns, notes of its own.
Row: {"id": "mtbench-81", "category", "turns": [first, second], "reference": [first, second] or []}.
"""
import argparse, hashlib, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "587d5cfa1609a43d192cedb8441cac3c17db105d"
ROOT = f"https://raw.githubusercontent.com/lm-sys/FastChat/{REVISION}/fastchat/llm_judge/data/mt_bench"
URLS = {"questions": f"{ROOT}/question.jsonl", "references": f"{ROOT}/reference_answer/gpt-4.jsonl"}
SHA256 = {"questions": "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
          "references": "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f"}
LICENCE = "Apache-2.0"
CATEGORIES = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
EACH = 10


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


def two_texts(found, key, where):
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(t, str) for t in found):
        die(f"{where}: {key}: expected a list of two texts")
    return found


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="FILE", help="a local copy of question.jsonl, instead of the download")
    ap.add_argument("--reference", metavar="FILE", help="a local copy of reference_answer/gpt-4.jsonl")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum or count, with a warning")
    ap.error = die
    args = ap.parse_args()
    if args.reference and not args.src:
        die("--reference: expected --src too")

    raw, name, sha = checked(args.src, URLS["questions"], SHA256["questions"], args.any_version)
    shas, names, rows = {"questions": sha}, {"questions": name}, {}
    for line, row in read_jsonl(raw, name):
        where, key = f"{name}:{line}", row.get("question_id")
        if type(key) is not int or key in rows:
            die(f"{where}: question_id: expected an integer that did not occur before")
        category, turns = field(row, "category", where), two_texts(row.get("turns"), "turns", where)
        if not all(t.strip() for t in turns):
            die(f"{where}: turns: expected texts that are not empty")
        rows[key] = {"id": f"mtbench-{key}", "category": category, "turns": turns, "reference": []}
    counts = Counter(row["category"] for row in rows.values())
    if counts != Counter(dict.fromkeys(CATEGORIES, EACH)):
        differs(f"{name}: {len(rows)} questions in {len(counts)} categories, expected {EACH} in each of "
                f"{len(CATEGORIES)}: {', '.join(CATEGORIES)}", args.any_version)
    if args.reference or not args.src:
        key = "references"
        raw, name, shas[key] = checked(args.reference, URLS[key], SHA256[key], args.any_version)
        names[key] = name
        for line, row in read_jsonl(raw, name):
            where, key, choices = f"{name}:{line}", row.get("question_id"), row.get("choices")
            if key not in rows:
                die(f"{where}: question_id: expected one of the questions")
            if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
                die(f"{where}: choices: expected a list of objects")
            rows[key]["reference"] = two_texts(choices[0].get("turns"), "choices[0].turns", where)
    pinned = all(shas[k] == SHA256[k] for k in shas)
    answered = Counter(row["category"] for row in rows.values() if row["reference"])
    meta = {"source": {k: URLS[k] if shas[k] == SHA256[k] else Path(n).name for k, n in names.items()},
            "revision": REVISION if pinned else None, "sha256": shas, "n": len(rows),
            "n_reference": sum(answered.values()), "licence": LICENCE}
    write(args.out, {"prompts.jsonl": list(rows.values()), "meta.json": [meta]})
    found = ", ".join(f"{c} {n}" for c, n in counts.items())
    print(f"{args.out / 'prompts.jsonl'}: {len(rows)} conversations: {found}")
    print("with reference answers: " + (", ".join(f"{c} {n}" for c, n in answered.items()) or "none"))
    for key, sha in shas.items():
        print(f"{key} sha256 {sha}")


if __name__ == "__main__":
    main()

# Not run against the originals here (no network, no copy of them). The commit, the checksums and the counts are the
# published ones; tests/test_data_general.py runs the code on small files of the same shape.
