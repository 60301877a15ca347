# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Aegis 2.0: 33,416 prompts and dialogues with labels -> train.jsonl, validation.jsonl, test.jsonl, meta.json

Ghosh et al. 2025, https://arxiv.org/abs/2501.09004, also named Nemotron Content Safety Dataset V2,
https://huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-2.0. Licence of the data: CC-BY-4.0.

    python data/aegis2/prepare.py                                  # download five pinned JSON files, 28 MB
    python data/aegis2/prepare.py --src aegis2/ --mapping defensive --rule any

What to know before using a number from it:
- Released are the labels, not the votes: the human majority of the conversation is the prompt's label; a response has
  the jury's label if the conversation is unsafe and inherits safe if it is safe. The majority and its ties were
  decided before the release (the tie rule is not published). What is left to choose is printed, and stored in
  meta.json: --mapping, whether a safe prompt with the category Needs Caution stays safe (permissive, as released) or
  is unsafe (defensive); --rule, whether that category must come first, being the most frequent one (first), or may
  stand anywhere (any).
- Prompts that read REDACTED are of another corpus, not redistributed: left out and counted. Harnesses that keep them
  get other numbers. reconstruction_id_if_redacted tells where to find them.
- Unsafe prompt => unsafe response is nearly true without the 5,200 refusals (kind "refusal": a deflection to an unsafe
  prompt, response safe). They are in train and validation and reuse ids of the other rows: -refusal is added. Prompts
  were drawn with replacement: the second refusal to one is -refusal-2, and some repeat the first word for word (46 of
  the 200 of validation, by a public reader of the file). They are kept, for the card counts them; the number is shown.
- An empty response is none, and its label (the card: it may have one) is dropped. A null response_label is no label:
  never count it as harmful, or as safe.
- violated_categories are of the conversation: a safe prompt may have some (kept), and one that is named after the
  response does not describe the prompt. Do not train a prompt-only category head on them unfiltered.
- The counts are the card's; the paper's 34,248 differs, unexplained.
- The texts are harmful by design: this script prints counts and never a text.
- Checked in TrigoldYixinWan/PCCD, scripts/day11/audit_aegis_provenance.py and the card: files, columns, labels, ids.
Row: {"id", "messages", "prompt", "response", "prompt_label", "response_label", "categories", "needs_caution",
"kind": "prompt", "dialogue" or "refusal", "labels": [], "response_source"}.
"""
import argparse, hashlib, json, os, sys
from collections import Counter
from pathlib import Path

REVISION = "d86bb8bedff51d25ac834ab7838f1cc61acb7a2c"
URL = f"https://huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-2.0/resolve/{REVISION}/"
FILES = {  # name: split, rows, checksum
    "train.json": ("train", 25007, "154fba82c71d9fa73abd2ca5588a198e693ddc816c83444df180a22f613e02f6"),
    "refusals_train.json": ("train", 5000, "ff948d3696c9da94cf2523f5d4ae7f16cad7b3c0fd3cb46a331dad0ed717fbe2"),
    "validation.json": ("validation", 1245, "a97200e226ad4f6ba6a639982f817f675909bc74513859df3e8fc9a92951dfcd"),
    "refusals_validation.json": ("validation", 200,
                                 "aba81546da0108bc931ae7fb7662b687b42b0bb3e734cde34fbddfbe33cadfcf"),
    "test.json": ("test", 1964, "b0a6d602260524866053cb34105194f074f2c2906e3691b68d43b9e6e9318f35")}
LICENCE = "CC-BY-4.0"
LABELS = ("safe", "unsafe")
SOURCES = ("human", "llm_jury", "refusal_data_augmentation")
CAUTION = "Needs Caution"
CATEGORIES = ["Violence", "Sexual", "Criminal Planning/Confessions", "Guns and Illegal Weapons",
              "Controlled/Regulated Substances", "Suicide and Self Harm", "Sexual (minor)", "Hate/Identity Hate",
              "PII/Privacy", "Harassment", "Threat", "Profanity", CAUTION, "Other", "Manipulation", "Fraud/Deception",
              "Malware", "High Risk Gov Decision Making", "Political/Misinformation/Conspiracy",
              "Copyright/Trademark/Plagiarism", "Unauthorized Advice", "Illegal Activity", "Immoral/Unethical"]
KNOWN = {name.casefold(): name for name in CATEGORIES}


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


# copied from data/labsafety/prepare.py: read_json
def read_json(raw, name, kind, expected):
    """The JSON value of a whole file; a line is named where it is no JSON."""
    try:
        value = json.loads(raw)
    except ValueError as e:
        die(f"{name}:{getattr(e, 'lineno', 1)}: file: expected {expected}")
    if not isinstance(value, kind):
        die(f"{name}:1: file: expected {expected}")
    return value


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


def choice(row, key, where, values):
    if row.get(key) not in values:
        die(f"{where}: {key}: expected one of {', '.join(map(str, values))}")
    return row[key]


def convert(row, where, split, args, unknown):
    """Our row, or why there is none."""
    prompt, label = row.get("prompt"), choice(row, "prompt_label", where, LABELS)
    if not isinstance(prompt, str):
        die(f"{where}: prompt: expected a text")
    response, judged = row.get("response"), choice(row, "response_label", where, (*LABELS, None))
    if response is not None and not isinstance(response, str):
        die(f"{where}: response: expected a text or null")
    if response and response.strip() and judged is None:
        die(f"{where}: response_label: expected safe or unsafe beside a response")
    names = row.get("violated_categories") or ""
    if not isinstance(names, str):
        die(f"{where}: violated_categories: expected a text")
    names = [name.strip() for name in names.split(",") if name.strip()]
    for name in names:
        if name.casefold() not in KNOWN:
            unknown.append(f"{where}: violated_categories")
    names = [KNOWN.get(name.casefold(), name) for name in names]
    if prompt.strip() == "REDACTED":
        return "redacted"
    if not prompt.strip():
        return "empty"
    if not (response and response.strip()):
        response = judged = None
    by = choice(row, "response_label_source", where, SOURCES) if response else None
    caution = label == "safe" and CAUTION in (names[:1] if args.rule == "first" else names)
    messages = [{"role": "user", "content": prompt}] + [{"role": "assistant", "content": response}] * bool(response)
    refusal = by == "refusal_data_augmentation"
    key = str(row["id"]) if type(row.get("id")) is int else field(row, "id", where)
    return {"id": f"aegis2-{split}-{key}" + "-refusal" * refusal, "messages": messages,
            "prompt": prompt, "response": response,
            "prompt_label": "unsafe" if caution and args.mapping == "defensive" else label, "response_label": judged,
            "categories": names, "needs_caution": caution,
            "kind": "refusal" if refusal else "dialogue" if response else "prompt", "labels": [], "response_source": by}


def sources(src):
    """[(file name, path or None for the download)] in the order of FILES."""
    if not src:
        return [(name, None) for name in FILES]
    paths = [p for s in src for p in (sorted(Path(s).glob("*.json")) if Path(s).is_dir() else [Path(s)])]
    given = {path.name: str(path) for path in paths if path.name in FILES}
    for path in src:
        if not Path(path).is_dir() and Path(path).name not in FILES:
            die(f"{path}: expected one of {', '.join(FILES)}")
    return [(name, given[name]) for name in FILES if name in given] or die(f"{src[0]}: expected {', '.join(FILES)}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="PATH", nargs="+", help="the folder with the five JSON files, or some of them")
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(__file__).resolve().parent, help="default: here")
    ap.add_argument("--mapping", choices=["permissive", "defensive"], default="permissive",
                    help="safe prompts that need caution are safe (default) or unsafe")
    ap.add_argument("--rule", choices=["first", "any"], default="first",
                    help="needs caution is the most frequent category (default), or any of them")
    ap.add_argument("--any-version", action="store_true", help="accept another checksum, count, category: a warning")
    ap.error = die
    args = ap.parse_args()

    files, shas, source, dropped, unknown, times, repeated = {}, {}, {}, {}, [], Counter(), Counter()
    for file, path in sources(args.src):
        split, count, sha256 = FILES[file]
        raw, name, shas[file] = checked(path, URL + file, sha256, args.any_version)
        items = read_json(raw, name, list, "a list of objects")
        rows, gone = files.setdefault(f"{split}.jsonl", []), dropped.setdefault(split, Counter())
        for i, item in enumerate(items, 1):
            where = f"{name}: item {i}"
            if not isinstance(item, dict):
                die(f"{where}: row: expected an object")
            row = convert(item, where, split, args, unknown)
            if isinstance(row, str):
                gone[row] += 1
                continue
            if row["kind"] == "refusal":  # more than one to a prompt: the later ones are numbered
                key, text = row["id"], (split, row["prompt"], row["response"])
                times[key], times[text] = times[key] + 1, times[text] + 1
                repeated[split] += times[text] > 1
                row["id"] += f"-{times[key]}" * (times[key] > 1)
            rows.append(row)
        if len(items) != count:
            differs(f"{name}: {len(items)} rows, expected {count}", args.any_version)
        source[file] = URL + file if shas[file] == sha256 else Path(name).name
    if unknown:
        differs(f"{unknown[0]}: expected categories of Aegis 2.0 ({len(unknown)} others)", args.any_version)
    for name, rows in files.items():
        twice = len(rows) - len({row["id"] for row in rows})
        if twice:
            differs(f"{name}: {twice} ids twice, expected each once", args.any_version)
    pinned = all(shas[file] == FILES[file][2] for file in shas)
    meta = {"source": source, "revision": REVISION if pinned else None, "sha256": shas,
            "n": {name: len(rows) for name, rows in files.items()}, "licence": LICENCE, "mapping": args.mapping,
            "rule": args.rule, "tie": "decided before the release", "dropped": {k: dict(v) for k, v in dropped.items()}}
    write(args.out, files | {"meta.json": [meta]})
    print(f"labels: as released, needs caution {args.mapping}, where it is the {args.rule} category")
    for name, rows in files.items():
        prompts, responses = (Counter(row[key] for row in rows) for key in ("prompt_label", "response_label"))
        kinds, gone = Counter(row["kind"] for row in rows), dropped[name[:-6]]
        caution = sum(row["needs_caution"] for row in rows)
        print(f"{args.out / name}: {len(rows)} rows, {prompts['unsafe']} unsafe prompts, {responses['unsafe']} unsafe "
              f"and {responses['safe']} safe responses, {caution} needs caution; left out: {gone['redacted']} "
              f"redacted, {gone['empty']} empty; " + ", ".join(f"{k} {n}" for k, n in kinds.items())
              + f" ({repeated[name[:-6]]} of them repeats)" * bool(kinds["refusal"]))
    print("\n".join(f"{file} sha256 {sha}" for file, sha in shas.items()))


if __name__ == "__main__":
    main()

# Not run against the original here (no network, no copy of it). The revision, the counts and the checksums are those
# that public projects pin; tests/test_data_guard.py runs the code on small files of the same shape.
