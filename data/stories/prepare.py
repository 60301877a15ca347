"""Short stories for adversarial training: a prompt of three sentences, a completion of one that adds no tea.

    python data/stories/prepare.py [--out DIR] [--share .05]   # no download, about a second

In "Adversarial Training for High-Stakes Reliability" (arXiv 2205.01663) a completion is bad if it introduces
a new injury. Here tea stands in for injury: a completion is bad if it introduces tea, in any wording. Where
the prompt already holds tea, going on with the same tea is good, and only another tea is bad. oracle.py
labels any text by this rule and says what it cannot see; on all that is written here it is exact.

    train.jsonl         to train the classifier on, at the natural rate: 6 % bad
    validation.jsonl    to choose its threshold on, at the same rate
    test.jsonl          to measure on: one completion a prompt, at the same rate
    written.jsonl       what a human adversary would write: all bad, oblique; "split" says train or test
    lm_train.jsonl      to tune a generator on: prompts and completions without labels, 7 % bad

Row: {"id", "prompt", "completion", "label", "form", "scene", "split"}; label true: introduces tea. Forms:
    plain       bad, the word tea is used        near        good, looks like tea (coffee, teak, a tea towel)
    oblique     bad, without the word            ordinary    good, nothing near it
    continued   the prompt holds tea: good, or bad where another tea comes in

Splits share no scene, and no prompt stands twice in all files. The seeds are hand-written. Of their "use":
all is everywhere; held (a quarter to a third of each form) only in validation and test; written_train and
written_test only in the two halves of written.jsonl. seeds/looked_at.jsonl is for no split: sentences to
measure the oracle on, batch 1 written before its rules, batch 2 after them and before they last changed.
"""
import argparse, hashlib, json, math, random, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from fetch import write
from proxy.prepare import having, mix, read_seeds

SEED = "stories-1"  # another word: other rows, the same counts
ROWS = {"train": 3000, "validation": 2000, "test": 6000, "lm_train": 4000, "written": 400}
RATES = {"plain": .028, "oblique": .027, "continued": .02, "near": .12}  # two in seven of continued are bad
LM_RATES = RATES | {"plain": .033, "oblique": .032}  # a generator must make some; the rest is ordinary
USES = {"train": ["all"], "lm_train": ["all"], "validation": ["all", "held"], "test": ["all", "held"]}
PRONOUNS = {"she": {"she": "she", "her": "her", "him": "her"},
            "he": {"she": "he", "her": "his", "him": "him"}}
PLURALS = {"glass": "glasses"}

def cast(rng, scene, fillers):
    """What the slots of one story hold. {she}, {her} and {him} are of {A}; {her} is "his" for a man."""
    slots = {name: rng.choice(rows)["text"] for name, rows in fillers.items() if name != "name"}
    slots["cups"] = PLURALS.get(slots["cup"], slots["cup"] + "s")
    first, second = rng.sample(fillers["name"], 2)
    slots |= {"A": first["text"], "B": second["text"], **PRONOUNS[first["she"]]}
    return slots | {"spot": rng.choice(scene["spot"])}

def fill(text, slots):
    text = text.format(**slots)
    return text[0].upper() + text[1:]

def story(rng, scene, completion, seeds, uses, seen):
    """A prompt that no file has yet, and the completion in the same cast."""
    while True:
        slots = cast(rng, scene, seeds["fillers"])
        sentences = [rng.choice(scene[part]) for part in ("first", "second", "third")]
        if completion["form"] == "continued":  # tea comes in here already
            sentences[1] = rng.choice([row["text"] for row in seeds["tea"] if row["use"] in uses])
        things = rng.sample(scene["thing"], 3)  # no thing comes in twice before the completion
        prompt = " ".join(fill(text, slots | {"thing": thing}) for text, thing in zip(sentences, things))
        if prompt not in seen:
            break
    seen.add(prompt)
    return {"prompt": prompt, "completion": fill(completion["text"], slots | {"thing": things[2]}),
            "label": completion["label"], "form": completion["form"], "scene": scene["scene"]}

def stories(name, split, counts, uses, seeds, seen):
    """{form: number} rows; scenes and the wordings of each form take turns."""
    rng, scenes, rows = random.Random(f"{SEED} {name}"), having(seeds["scenes"], split=split), []
    for form, n in counts.items():
        wordings = [row for row in seeds[form] if row["use"] in uses]
        for k in range(n):  # a whole turn of wordings later, the scene is another
            scene = scenes[(k + k // len(wordings)) % len(scenes)]
            rows.append(story(rng, scene, wordings[k % len(wordings)], seeds, uses, seen) | {"split": split})
    return rows

def share_out(n, rates):
    counts = {form: round(rate * n) for form, rate in rates.items()}
    return counts | {"ordinary": n - sum(counts.values())}

def read():
    """The seeds by file; completions with form and label, fillers by slot."""
    seeds = read_seeds(HERE / "seeds", SEED)
    for form in ("plain", "oblique", "continued", "near", "ordinary"):
        seeds[form] = [{"form": form, "label": form in ("plain", "oblique")} | row for row in seeds[form]]
    slots = sorted({row["slot"] for row in seeds["fillers"]})
    return seeds | {"fillers": {slot: having(seeds["fillers"], slot=slot) for slot in slots}}

def build(share=1):
    """{file: rows}; a small share is the beginning of each file, and forms are spread evenly over a file."""
    seeds, seen, out = read(), set(), {}
    for name, uses in USES.items():
        split = "train" if name == "lm_train" else name
        counts = share_out(ROWS[name], LM_RATES if name == "lm_train" else RATES)
        out[name] = mix(stories(name, split, counts, uses, seeds, seen), "form", "label")
    halves = []
    for split in ("train", "test"):
        uses = [f"written_{split}"]
        halves += stories(uses[0], split, {"oblique": ROWS["written"] // 2}, uses, seeds, seen)
    out["written"] = mix(halves, "split")
    for name, rows in out.items():
        if name == "lm_train":
            rows = [{key: row[key] for key in ("prompt", "completion", "scene")} for row in rows]
        rows = rows[:math.ceil(share * len(rows))]
        out[name] = [{"id": f"{name}-{n:04}"} | row for n, row in enumerate(rows)]
    return out

def main():
    parser = argparse.ArgumentParser(description="write short stories with and without tea")
    parser.add_argument("--out", type=Path, default=HERE, help="default: here")
    parser.add_argument("--share", type=float, default=1, help="of each file, its beginning")
    args = parser.parse_args()
    for name, rows in build(args.share).items():
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        write(args.out / f"{name}.jsonl", data)
        bad = sum(row.get("label", False) for row in rows)
        shown = f"{len(rows)} rows" + (f", {bad} bad" if name != "lm_train" else "")
        print(f"{name}.jsonl {shown}, sha256 {hashlib.sha256(data).hexdigest()}")

if __name__ == "__main__":
    main()

# output:
# train.jsonl 3000 rows, 180 bad, sha256 3e112960d70ae12d6e8ca0b94c824feeec04d35c9b53076b7cb13c7de171e2cf
# lm_train.jsonl 4000 rows, sha256 d5c4f222c1e3ea253a217c2e4b226c28b45fa18dd8c22e0306c93b659e629436
# validation.jsonl 2000 rows, 119 bad, sha256 e4895589cfb8b32bbaeaeab39a6fdff7022da75417a279d2f7debb4ac8fa8056
# test.jsonl 6000 rows, 363 bad, sha256 9ea5366e8ff9c53b9b206df71bdf73f3ad6b4c1ccc973db2faa93d9df6507389
# written.jsonl 400 rows, 400 bad, sha256 75d7c54db4a2e8ed09f0259544c791df7177fa146682e3b20188902ff8120848
