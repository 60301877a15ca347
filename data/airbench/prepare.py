# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""AIR-Bench 2024: 5,694 prompts in 314 categories, a judge prompt for each -> prompts.jsonl, judges.jsonl, meta.json

Zeng et al. 2024, https://arxiv.org/abs/2407.17436, https://huggingface.co/datasets/stanford-crfm/air-bench-2024.
Licence of the data: CC-BY-4.0.

    python data/airbench/prepare.py                            # download 43 prompt files and the judge prompts
    python data/airbench/prepare.py --src air-bench-2024/      # or read a folder of category_*.csv, judge_prompt*.csv
    python data/airbench/prepare.py --any-version --src A.csv  # or some of these files; the header tells which is which

What to know before using a number from it:
- THE JUDGE'S SCALE WAS TURNED ROUND. The paper scores 1 for refusing, 0 for assisting; the judge prompts of June 2024
  say the opposite, those of July 2024 agree with the paper. meta.json holds "polarity": "refuse=1" or "refuse=0", read
  from the outer anchors of the templates ("# 0, if .. refuses .."). Not every template says "refuse": the others
  follow the rest. A judge run must still check it with one refusal and one assistance.
- The revision is the one that HELM and inspect_evals pin. No checksum is published for it: only the counts are
  checked, and the checksum of what was read is recorded.
- One record occurs twice in 15.4142.13 and is scored twice: the second id ends in -2. Ids are made from the text, so
  that a part of the set has the ids of the whole.
- Categories are "L2.L3.L4"; L3 39+40 and 41+42 are merged as 3940 and 4142. 14 and 15 (discrimination, privacy) hold
  49 % of the prompts: the mean over prompts and the mean over categories differ. Print both.
- A region (china, eu_comprehensive, eu_mandatory, us) is a list of L3 in the data card, README.md. It is downloaded, or
  read from the folder of --src; without it "us" is not available: its list is published nowhere else.
- The four names of `l1` are in no column; they are assigned from L2 after the paper's taxonomy, as second-hand sources
  give it.
- {{QUESTION}} and {{ANSWER}} in a template are filled in one pass: the question may hold the other placeholder.
- The texts are harmful by design: this script prints counts and never a prompt.
Rows: {"id": "airbench-L2.L3.L4-8 hex digits", "prompt", "category": "L2.L3.L4", "label": "forbidden", "l1", "l2",
"l3", "l4"} and {"category", "template"}.
"""
import argparse, csv, hashlib, io, json, os, re, sys
from collections import Counter
from pathlib import Path

REVISION = "976d9fbb0f52bce704dcbef5bd7a2652e65f2a21"
URL = f"https://huggingface.co/datasets/stanford-crfm/air-bench-2024/resolve/{REVISION}/"
FILES = [f"category_{i}.csv" for i in [*range(1, 39), 3940, 4142, 43, 44, 45]] + ["judge_prompt_final.csv", "README.md"]
LICENCE = "CC-BY-4.0"
# prompts in each L2 category, then the name of its L1 category
L2 = dict(enumerate([222, 390, 369, 636, 144, 105, 45, 375, 150, 135, 75, 54, 75, 1608, 1191, 120], 1))
L3_COUNT, L4_COUNT = 43, 314
L1 = ["System & Operational Risks"] * 2 + ["Content Safety Risks"] * 5 + ["Societal Risks"] * 5 + [
    "Legal & Rights Risks"] * 4
NAMES = ["cate-idx", "l2-name", "l3-name", "l4-name"]
ANCHOR = re.compile(r"^\W*([01])(?:\.0)?\s*[,:]\s*(.+)$", re.M)  # the outer scores; 0.5 does not match


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


def refusing_score(template):
    """"refuse=1" or "refuse=0": which outer score the template gives for refusing; None where it does not tell."""
    scores = {score for score, text in ANCHOR.findall(template) if "refus" in text.lower()}
    return f"refuse={scores.pop()}" if len(scores) == 1 else None


def polarity(templates, name, asked):
    """The one polarity of all templates, and how many say so. A few may be worded oddly, not a large group."""
    votes = Counter(filter(None, map(refusing_score, templates)))
    (first, n), *rest = votes.most_common() or [(asked, 0)]
    if not first:
        die(f"{name}: judge_prompt: the anchors do not tell which score refuses: give --polarity refuse=1 or refuse=0")
    if rest and rest[0][1] > 0.02 * n:
        die(f"{name}: judge_prompt: both directions in one set: {first} {n}, {rest[0][0]} {rest[0][1]}")
    if asked and asked != first:
        die(f"{name}: judge_prompt: the anchors say {first}, not {asked}")
    return first, votes


def read_source(src):
    """Yields (name, bytes) of each CSV file: downloaded, in the folders, or named."""
    for path in src or FILES:
        if not src:
            yield URL + path, fetch(None, URL + path)
        elif not Path(path).is_dir():
            yield path, fetch(path, None)
        else:
            files = sorted([*Path(path).glob("category_*.csv"), *Path(path).glob("judge_prompt*.csv")])
            if not files:
                die(f"{path}: expected category_*.csv and judge_prompt*.csv")
            for file in files + [f for f in [Path(path) / "README.md"] if f.is_file()]:
                yield str(file), fetch(file, None)


def card_regions(raw):
    """{region: [L3, ...]} from the data card's configs, each a list of category_L3.csv."""
    configs = re.split(r"config_name:\s*", raw.decode("utf-8", "replace"))[1:]
    found = {c.split()[0]: re.findall(r"category_(\d+)\.csv", c) for c in configs}
    return {k: v for k, v in found.items() if k != "default" and v}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="PATH", nargs="+", help="a folder with the CSV files, or CSV files")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--polarity", choices=["refuse=1", "refuse=0"], help="for judge prompts whose anchors do not tell")
    ap.add_argument("--any-version", action="store_true", help="accept another count, with a warning")
    ap.error = die
    args = ap.parse_args()

    digest, rows, judges, seen, regions = hashlib.sha256(), [], {}, Counter(), {}
    name = " ".join(args.src or [URL])
    for file, raw in read_source(args.src):
        if file.endswith(".md"):  # the data card: what counts in which region
            regions = card_regions(raw)
            continue
        digest.update(raw)
        column = "judge_prompt" if b"judge_prompt" in raw.split(b"\n", 1)[0] else "prompt"
        for line, row in read_csv(raw, file, [*NAMES, column]):
            where = f"{file}:{line}"
            text, (category, l2, l3, l4) = field(row, column, where), [field(row, key, where) for key in NAMES]
            if not re.fullmatch(r"\d+\.\d+\.\d+", category) or int(category.split(".")[0]) not in L2:
                die(f"{where}: cate-idx: expected L2.L3.L4 with L2 from 1 to 16")
            if column == "prompt":
                key = f"airbench-{category}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
                seen[key] += 1
                rows.append({"id": key + (f"-{seen[key]}" if seen[key] > 1 else ""), "prompt": text,
                             "category": category, "label": "forbidden",
                             "l1": L1[int(category.split(".")[0]) - 1], "l2": l2, "l3": l3, "l4": l4})
            elif category in judges:
                die(f"{where}: cate-idx: expected each category once")
            elif text.count("{{QUESTION}}") != 1 or text.count("{{ANSWER}}") != 1:
                die(f"{where}: judge_prompt: expected {{{{QUESTION}}}} and {{{{ANSWER}}}}, each once")
            else:
                judges[category] = text
    counts = Counter(int(row["category"].split(".")[0]) for row in rows)
    l3s, l4s = len({row["category"].split(".")[1] for row in rows}), {row["category"] for row in rows}
    if (counts, l3s, len(l4s)) != (L2, L3_COUNT, L4_COUNT):
        differs(f"{name}: {len(rows)} prompts in {len(counts)} L2, {l3s} L3, {len(l4s)} L4 categories, expected "
                f"{sum(L2.values())} in {len(L2)}, {L3_COUNT}, {L4_COUNT}", args.any_version)
    if len(judges) != L4_COUNT or not l4s <= set(judges):
        differs(f"{name}: {len(judges)} judge prompts, {len(l4s - set(judges))} categories without one, expected "
                f"{L4_COUNT} and 0", args.any_version)
    if not rows and not judges:
        die(f"{name}: no rows found")
    meta = {"source": " ".join(Path(p).name for p in args.src) if args.src else URL,
            "revision": None if args.src else REVISION, "sha256": digest.hexdigest(),
            "n": {"prompts": len(rows), "judges": len(judges)}, "licence": LICENCE, "polarity": None}
    meta |= {"regions": regions} if regions else {}
    files, report = {}, []
    if rows:
        files["prompts.jsonl"] = rows
        report.append(f"{args.out / 'prompts.jsonl'}: {len(rows)} prompts, all forbidden, in {len(l4s)} categories; "
                      f"{sum(n - 1 for n in seen.values())} repeated; by L2: "
                      + ", ".join(f"{k} {n}" for k, n in sorted(counts.items())))
    if judges:
        meta["polarity"], votes = polarity(judges.values(), name, args.polarity)
        files["judges.jsonl"] = [{"category": key, "template": text} for key, text in judges.items()]
        report.append(f"{args.out / 'judges.jsonl'}: {len(judges)} judge prompts, {meta['polarity']} (said by "
                      f"{votes[meta['polarity']]}, the opposite by {votes.total() - votes[meta['polarity']]})")
    write(args.out, files | {"meta.json": [meta]})
    print("\n".join([*report, f"sha256 {meta['sha256']}"]))


if __name__ == "__main__":
    main()

# Output on part of the set: 632 of the prompts and the judge prompts of June 2024 ($D; long lines folded). Neither the
# download nor the full set could be tried here.
# $ python data/airbench/prepare.py --any-version --out /tmp/out --src $D/air_bench_2024/prompts_sample.csv \
#     $D/air_bench_2024/judge_prompts_rev58d507aa_OLD_DIRECTION.csv
# warning: $D/air_bench_2024/prompts_sample.csv $D/air_bench_2024/judge_prompts_rev58d507aa_OLD_DIRECTION.csv: 632
#   prompts in 16 L2, 43 L3, 220 L4 categories, expected 5694 in 16, 43, 314
# /tmp/out/prompts.jsonl: 632 prompts, all forbidden, in 220 categories; 0 repeated; by L2: 1 42, 2 44, 3 46, 4 43, 5
#   36, 6 34, 7 29, 8 42, 9 43, 10 37, 11 36, 12 33, 13 34, 14 46, 15 46, 16 41
# /tmp/out/judges.jsonl: 314 judge prompts, refuse=0 (said by 276, the opposite by 0)
# sha256 1658225ab550ec5492d0f6cac4c73a28791fa2e8011aea34f052e0fca815752d
