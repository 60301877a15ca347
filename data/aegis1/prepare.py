# /// script
# requires-python = ">=3.10"
# dependencies = ["pyarrow"]
# ///
"""Aegis 1.0: 10,798 + 1,199 conversations, labelled by up to five annotators -> train.jsonl, test.jsonl, meta.json

Ghosh et al. 2024, https://arxiv.org/abs/2404.05993,
https://huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-1.0. Licence of the data: CC-BY-4.0.

    python data/aegis1/prepare.py                                 # download the two pinned parquet files
    python data/aegis1/prepare.py --src aegis1/ --mapping defensive --rule majority --tie unsafe

What to know before using a number from it:
- THE LABEL IS A CHOICE OF YOURS. The set holds annotations, not labels. Three flags turn them into one, are printed
  and stored in meta.json, and belong beside every number:
    --mapping  what "Needs Caution" is: permissive safe, defensive unsafe, drop no vote
    --rule     majority: more unsafe than safe votes; any: one unsafe vote is enough; safety-eval: unsafe unless two
               of the first three annotators say Safe and nothing else, as that harness does (its set is the rows of
               kind user_message of test: 359, 233 unsafe as others report; needs caution is not Safe there, so it
               takes --mapping defensive only)
    --tie      as many unsafe as safe votes: unsafe, or drop the row
- A vote is a cell of labels_0 to labels_4. It may hold several categories, comma-separated; one that is neither Safe
  nor Needs Caution makes it unsafe. Empty cells and "None" are no votes; rows without a vote are left out.
- The label is of the whole text: a prompt, or prompt and response in one string (kind = text_type). It stands here as
  one user turn, as the released guards read it.
- needs_caution: safe by the permissive mapping, unsafe by the defensive one, under the same rule and tie. It lets a
  script map again; it expects the labels of the permissive mapping, the default.
- The split is not disjoint: test rows whose text stands in train are counted (a public reader of the files found 131
  of 1,199); --disjoint leaves them out. Upstream's ids repeat (336 in train, 3 in test), so ours are row numbers.
- The texts are harmful by design: this script prints counts and never a text.
- Checked in Advait-Pathak9222/BurningShadows, controlplane/corpora/aegis.py: names, checksums, cells, categories.
Row: {"id": "aegis1-test-1", "messages", "prompt", "response": null, "prompt_label", "response_label": null,
"categories": of the unsafe votes, the most frequent first, "unlisted": those of no policy (Other), "needs_caution",
"kind", "labels": the votes}.
"""
import argparse, csv, hashlib, io, json, os, re, sys, urllib.parse
from collections import Counter
from pathlib import Path

REVISION = "bd96d862068e47630197de64eb91f8d1481ff3e0"
URL = f"https://huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-1.0/resolve/{REVISION}/"
FILE = "Content Moderation Extracted Annotations 02.08.24_{}_release_0418_v1.parquet"
SHA256 = {"train": "1bed0b8da79321501346cc5f55c8e360a926e75e695fafb4ebaee65e086b6748",
          "test": "90cebe34ee64c7a0f533fe5534bc03f862f89981969c00376a45c9d9f4ca2159"}
COUNTS = {"train": 10798, "test": 1199}
LICENCE = "CC-BY-4.0"
CELLS = [f"labels_{i}" for i in range(5)]
SAFE, CAUTION = "Safe", "Needs Caution"
POLICY = ["Violence", "Sexual", "Criminal Planning/Confessions", "Guns and Illegal Weapons",
          "Controlled/Regulated Substances", "Suicide and Self Harm", "Sexual (minor)", "Hate /identity hate",
          "PII/Privacy", "Harassment", "Threat", "Profanity", CAUTION]  # O1 to O13, spelt as in the policy
# unsafe, but in no policy: Other, and the nine sparse names of the paper (these are told second-hand)
UNLISTED = ["Other", "Illegal Activity", "Immoral/Unethical", "Unauthorized Advice", "Fraud/Deception",
            "Political/Misinformation/Conspiracy", "Copyright/Trademark/Plagiarism", "Economic Harm",
            "High Risk Government Decision Making", "Malware/Security"]
KNOWN = {name.casefold(): name for name in [SAFE, *POLICY, *UNLISTED]} | {"hate/identity hate": POLICY[7]}


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


# copied from data/arc/prepare.py: read_parquet
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


def votes_of(row, where, unknown):
    """The categories of each annotator who gave some: lists of names, in the order of the cells."""
    votes = []
    for key in CELLS:
        cell = row.get(key)
        if cell is None or cell in ("", "None") or cell != cell:  # a missing cell; NaN in exports
            continue
        if not isinstance(cell, str):
            die(f"{where}: {key}: expected a text or nothing")
        names = [name.strip() for name in cell.split(",") if name.strip()]
        for name in names:
            if name.casefold() not in KNOWN:
                unknown.append(f"{where}: {key}")
        votes.append([KNOWN.get(name.casefold(), name) for name in names])
    return votes


def decide(votes, mapping, rule, tie):
    """"safe", "unsafe", or None for a row to leave out."""
    if rule == "safety-eval":
        return "unsafe" if sum(vote == [SAFE] for vote in votes[:3]) <= 1 else "safe"
    unsafe = sum(any(name not in (SAFE, CAUTION) for name in vote) for vote in votes)
    caution = sum(CAUTION in vote and all(name in (SAFE, CAUTION) for name in vote) for vote in votes)
    safe = len(votes) - unsafe - caution
    unsafe, safe = unsafe + caution * (mapping == "defensive"), safe + caution * (mapping == "permissive")
    if not unsafe + safe:
        return None  # only needs-caution votes, dropped
    if rule == "any":
        return "unsafe" if unsafe else "safe"
    return "unsafe" if unsafe > safe else "safe" if unsafe < safe else "unsafe" if tie == "unsafe" else None


def sources(src):
    """{split: path or None for the download}; in a folder, and among files, the name tells the split."""
    if not src:
        return dict.fromkeys(COUNTS)
    paths = [p for s in src for p in (sorted(f for f in Path(s).iterdir() if f.suffix in (".parquet", ".jsonl", ".csv"))
                                      if Path(s).is_dir() else [Path(s)])]
    given = {}
    for path in paths:
        words = re.findall("train|test", path.name.lower())
        if len(set(words)) != 1 or words[0] in given:
            die(f"{path}: expected one file for each split, with train or test in its name")
        given[words[0]] = str(path)
    return given or die(f"{src[0]}: expected .parquet, .jsonl or .csv files")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="PATH", nargs="+", help="a folder, or parquet, JSONL or CSV files of the splits")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--mapping", choices=["permissive", "defensive", "drop"], default="permissive",
                    help="needs caution is safe (default), unsafe, or no vote")
    ap.add_argument("--rule", choices=["majority", "any", "safety-eval"], default="majority", help="default: majority")
    ap.add_argument("--tie", choices=["unsafe", "drop"], default="unsafe", help="default: unsafe")
    ap.add_argument("--disjoint", action="store_true", help="leave out test rows whose text stands in train")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum, count, category: a warning")
    ap.error = die
    args = ap.parse_args()
    if args.rule == "safety-eval" and args.mapping != "defensive":
        die("--rule safety-eval: needs caution is unsafe there: give --mapping defensive")

    given, texts, files, shas, source, dropped, report = sources(args.src), {}, {}, {}, {}, {}, []
    if args.disjoint and set(given) != set(COUNTS):
        die("--disjoint: expected both splits")
    for split in [s for s in COUNTS if s in given]:
        url = URL + urllib.parse.quote(FILE.format(split))
        raw, name, shas[split] = checked(given[split], url, SHA256[split], args.any_version)
        rows, unknown, texts[split], gone, n = [], [], set(), Counter(), 0
        kind = Path(name).suffix
        reader = (read_csv(raw, name, ["text", "text_type", *CELLS]) if kind == ".csv" else
                  read_jsonl(raw, name) if kind == ".jsonl" else read_parquet(raw, name))
        for line, row in reader:
            where, n = f"{name}:{line}", n + 1
            for key in ("text", "text_type"):
                if not isinstance(row.get(key), str):
                    die(f"{where}: {key}: expected a text")
            if not any(key in row for key in CELLS):
                die(f"{where}: labels_0: expected the annotators' labels")
            votes, text = votes_of(row, where, unknown), row["text"].strip()
            texts[split].add(text)
            three = args.rule == "safety-eval"  # by position: an empty cell is not Safe there
            cells = [[row.get(k)] if row.get(k) == SAFE else [] for k in CELLS] if three else votes
            label = decide(cells, args.mapping, args.rule, args.tie) if text and votes else None
            if not text or label is None or args.disjoint and split == "test" and text in texts["train"]:
                gone["empty" if not text else "no vote" if not votes else "tie or only dropped votes" if label is None
                     else "text in train"] += 1
                continue
            both = [decide(votes, m, "majority" if three else args.rule, args.tie) for m in ("permissive", "defensive")]
            names = Counter(name for vote in votes for name in vote if name != SAFE
                            and (name != CAUTION or args.mapping == "defensive"))
            unsafe = label == "unsafe"
            rows.append({"id": f"aegis1-{split}-{n}", "messages": [{"role": "user", "content": text}],
                         "prompt": text, "response": None, "prompt_label": label, "response_label": None,
                         "categories": [name for name, _ in names.most_common() if name in POLICY] if unsafe else [],
                         "unlisted": [name for name, _ in names.most_common() if name not in POLICY] if unsafe else [],
                         "needs_caution": both == ["safe", "unsafe"], "kind": row["text_type"],
                         "labels": [", ".join(vote) for vote in votes]})
        if unknown:
            differs(f"{unknown[0]}: expected a category of Aegis 1.0 ({len(unknown)} such cells)", args.any_version)
        if n != COUNTS[split]:
            differs(f"{name}: {n} rows, expected {COUNTS[split]}", args.any_version)
        files[f"{split}.jsonl"], dropped[split] = rows, dict(gone)
        source[split] = url if shas[split] == SHA256[split] else Path(name).name
        if split == "test" and "train" in texts:
            report.append(f"{sum(row['prompt'] in texts['train'] for row in rows)} test rows have a text of train")
    pinned = all(shas[split] == SHA256[split] for split in shas)
    meta = {"source": source, "revision": REVISION if pinned else None, "sha256": shas,
            "n": {name: len(rows) for name, rows in files.items()}, "licence": LICENCE, "mapping": args.mapping,
            "rule": args.rule, "tie": args.tie, "disjoint": args.disjoint, "dropped": dropped}
    write(args.out, files | {"meta.json": [meta]})
    print(f"labels: mapping {args.mapping}, rule {args.rule}, tie {args.tie}")
    for name, rows in files.items():
        unsafe = sum(row["prompt_label"] == "unsafe" for row in rows)
        print(f"{args.out / name}: {len(rows)} rows, {unsafe} unsafe ({unsafe / max(1, len(rows)):.1%}), "
              f"{sum(row['needs_caution'] for row in rows)} needs caution; left out: "
              + (", ".join(f"{k} {v}" for k, v in dropped[name[:-6]].items()) or "none") + "; kinds: "
              + ", ".join(f"{k} {v} ({sum(r['prompt_label'] == 'unsafe' for r in rows if r['kind'] == k)} unsafe)"
                          for k, v in Counter(row["kind"] for row in rows).most_common()))
    print("\n".join(report + [f"{split} sha256 {sha}" for split, sha in shas.items()]))


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). The revision and the checksums are those that two
# public projects independently pin; tests/test_data_guard.py runs the code on small files of the same shape.
