# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""CantTalkAboutThis: 1,080 dialogues with distractors -> train.jsonl, test.jsonl (on or off topic), meta.json

Sreedhar et al. 2024, https://arxiv.org/abs/2404.03820,
https://huggingface.co/datasets/nvidia/CantTalkAboutThis-Topic-Control-Dataset. Licence of the data: CC-BY-4.0.

    python data/canttalk/prepare.py                            # download the pinned JSONL files, 22 MB
    python data/canttalk/prepare.py --src canttalk/            # or read your copy; --out DIR: write elsewhere

Why it is here: Aegis 2.0 mixes topic following into a guard's training, so that the policy in the prompt is read.

What to know before using a number from it:
- A dialogue has a system instruction, turns, and distractors, each to be put after one turn of the bot. Every
  distractor makes two rows with the same context up to that turn: the distractor as the user's turn, off-topic, and
  the user turn that stands there in the dialogue, on-topic. A dialogue that ends there makes the first only.
- A distractor that is empty, or whose bot turn is not in its dialogue, is left out and counted. Texts are compared
  without outer spaces, and turns without text are skipped.
- train is synthetic (the Mixtral file), test has distractors written by people. Some rows of a dialogue share much of
  their context: resample dialogues (the number in the id), not rows.
- The set of the same name with -NC (CC-BY-NC-4.0) has other training dialogues (by GPT-4) and a test file of this name.
- No checksum is published. The revision is pinned; the 1,080 dialogues of train are the paper's count; for test there
  is none to compare with.
- Checked: the data card and file list at this revision (names, 21.9 MB + 161 kB, licence, 1,080 dialogues, 9 domains).
Row: {"id": "canttalk-train-1-1-off", "system", "messages": ending with a user turn, "label": "on-topic" or
"off-topic", "domain", "scenario"}.
"""
import argparse, hashlib, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "b015ae8902d8429ce32ebfed9f9935f891d10ed5"
URL = f"https://huggingface.co/datasets/nvidia/CantTalkAboutThis-Topic-Control-Dataset/resolve/{REVISION}/"
FILES = {"train": "canttalkaboutthis_topic_control_mixtral.jsonl",
         "test": "canttalkaboutthis_topic_control_human_test_set.jsonl"}
COUNTS = {"train": 1080, "test": None}
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


def turns_of(row, where):
    """The turns as [{"role", "content"}], user and assistant by turns or not; a leading system turn is dropped."""
    turns = row.get("conversation")
    if not isinstance(turns, list) or not turns:
        die(f"{where}: conversation: expected a list of turns")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in ("system", "user", "assistant"):
            die(f"{where}: conversation: expected turns with the role user or assistant")
        if not isinstance(turn.get("content"), str):
            die(f"{where}: content: expected a text")
    return [{"role": t["role"], "content": t["content"].strip()} for t in turns
            if t["role"] != "system" and t["content"].strip()]


def rows_of(row, where, key, gone):
    """Off-topic and on-topic rows of a dialogue."""
    turns, base = turns_of(row, where), {k: field(row, k, where) for k in ("domain", "scenario")}
    system, items = field(row, "system_instruction", where), row.get("distractors")
    if not isinstance(items, list):
        die(f"{where}: distractors: expected a list")
    rows = []
    for i, item in enumerate(items, 1):
        if not isinstance(item, dict):
            die(f"{where}: distractors: expected objects with bot turn and distractor")
        for key_of in ("bot turn", "distractor"):
            if not isinstance(item.get(key_of), str):
                die(f"{where}: {key_of}: expected a text")
        bot, off = item["bot turn"].strip(), item["distractor"].strip()
        if not bot or not off:
            gone["empty"] += 1
            continue
        at = next((n for n, t in enumerate(turns) if t["role"] == "assistant" and t["content"] == bot), None)
        if at is None:
            gone["bot turn not found"] += 1
            continue
        last = {"off": off}
        if at + 1 < len(turns) and turns[at + 1]["role"] == "user":
            last["on"] = turns[at + 1]["content"]
        for label, text in last.items():
            rows.append({"id": f"{key}-{i}-{label}", "system": system,
                         "messages": turns[:at + 1] + [{"role": "user", "content": text}],
                         "label": f"{label}-topic"} | base)
    return rows


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="PATH", nargs="+", help="the folder with the two JSONL files, or one of them")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--any-version", action="store_true", help="accept another count, with a warning")
    ap.error = die
    args = ap.parse_args()

    given = dict.fromkeys(FILES)
    if args.src:
        paths = [p for s in args.src for p in (sorted(Path(s).glob("*.jsonl")) if Path(s).is_dir() else [Path(s)])]
        given = {split: str(p) for split, file in FILES.items() for p in paths if p.name == file}
        if not given:
            die(f"{args.src[0]}: expected {' and '.join(FILES.values())}")
    files, digests, dialogues, dropped = {}, {}, {}, {}
    for split, path in given.items():
        raw, name = fetch(path, URL + FILES[split]), path or URL + FILES[split]
        digests[split], rows, n, gone = hashlib.sha256(raw).hexdigest(), [], 0, Counter()
        for line, row in read_jsonl(raw, name):
            n += 1
            rows += rows_of(row, f"{name}:{line}", f"canttalk-{split}-{n}", gone)
        if COUNTS[split] not in (n, None) or not rows:
            differs(f"{name}: {n} dialogues, {len(rows)} rows, expected {COUNTS[split] or 'some'}", args.any_version)
        files[f"{split}.jsonl"], dialogues[split], dropped[split] = rows, n, dict(gone)
    meta = {"source": " ".join(Path(p).name for p in given.values()) if args.src else URL,
            "revision": None if args.src else REVISION, "sha256": digests,
            "n": {name: len(rows) for name, rows in files.items()}, "licence": LICENCE, "dialogues": dialogues,
            "dropped": dropped}
    write(args.out, files | {"meta.json": [meta]})
    for name, rows in files.items():
        labels, split = Counter(row["label"] for row in rows), name[:-6]
        print(f"{args.out / name}: {dialogues[split]} dialogues, {labels['off-topic']} off-topic and "
              f"{labels['on-topic']} on-topic rows in {len({row['domain'] for row in rows})} domains; distractors left "
              f"out: {sum(dropped[split].values())}\nsha256 {digests[split]}")


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it); tests/test_data_guard.py runs the code on small files
# of the same shape.
