# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "numpy", "matplotlib", "jinja2"]
# ///
"""
The rewrite tool of adv_train.py: seconds of a menu, candidates scored a second, and TextAttack beside it.

    python bench/attack.py                                 # MiniLM with a random head, SmolLM2 untuned
    python bench/attack.py --run out/adv_train/tiny-seed0  # a run's generator and classifier
    python bench/attack.py --textattack PYTHON             # PYTHON can import textattack 0.3.11

The same candidates are scored in one call of scores(), and in a call each. Turns alternate, each pair is of
another text, and a ratio is taken inside it. Candidates share no work, as an encoder reads both ways: on a
CPU, whose cores one text nearly fills, a batch gains no more than what launches and idle threads had cost.

TextAttack runs PWWS' search and constraints in a process of its own, on the same texts, weights, threads, tau
and budget of queries; ours is the simulated adversary with the tool. Seconds are of whole attacks. Not the
same: its candidates are our WordNet synonyms alone (NLTK's WordNet is a download), ours has the generator's
words as well and asks the labeller; it tries all words of the completion, ours the three most salient ones.
Its wrapper pads each text to the longest that the tokenizer allows; a second row has it pad to its batch, 64.
PYTHON needs NLTK's stopwords to import textattack. With a random head tau lies below all: no attack succeeds.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import adv_train as adv  # first: its import sets the allocator
import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

THEIRS = """
import json, sys, time
from collections import OrderedDict
import torch
from textattack import Attack
from textattack.constraints.pre_transformation import InputColumnModification, RepeatModification
from textattack.constraints.pre_transformation import StopwordModification
from textattack.goal_functions import UntargetedClassification
from textattack.models.wrappers import HuggingFaceModelWrapper
from textattack.search_methods import GreedyWordSwapWIR
from textattack.shared import AttackedText
from textattack.transformations import WordSwap
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

folder, task = sys.argv[1], json.load(open(sys.argv[1] + "/task.json"))
torch.set_num_threads(task["threads"])
tok = PreTrainedTokenizerFast(tokenizer_file=folder + "/tokenizer.json", **task["tok"])
model = AutoModelForTokenClassification.from_pretrained(folder).eval().to(task["device"])
forward = model.forward

def two_classes(**inputs):
    out, mask = forward(**inputs), inputs["attention_mask"]
    z = (out.logits[:, :, 0] * mask).sum(1) / mask.sum(1) - task["tau"]
    out.logits = torch.stack([-z / 2, z / 2], 1)  # softmax gives sigmoid(z - tau) for the second, bad
    return out
model.forward = two_classes

class Counted(HuggingFaceModelWrapper):
    texts = 0  # scored; its num_queries counts what its cache answers, too
    run = HuggingFaceModelWrapper.__call__
    def __call__(self, texts):
        self.texts += len(texts)
        return self.run(texts)

class Padded(Counted):
    @torch.no_grad()
    def run(self, texts):
        inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return self.model(**inputs.to(task["device"])).logits

class Synonyms(WordSwap):
    def _get_replacement_words(self, word):
        return [new for new in task["synonyms"].get(word, []) if " " not in new]

wrappers = {"their wrapper": Counted(model, tok), "padded to the batch": Padded(model, tok)}
print("bench: []", flush=True)
for line in sys.stdin:
    side, prompt, completion = json.loads(line)
    wrapper = wrappers[side]
    z = wrapper([(prompt, completion)])[0, 1].item() * 2 + task["tau"]
    goal = UntargetedClassification(wrapper, query_budget=task["budget"], model_batch_size=64)
    only = InputColumnModification(["prompt", "completion"], {"prompt"})
    attack = Attack(goal, [RepeatModification(), StopwordModification(), only], Synonyms(),
                    GreedyWordSwapWIR("weighted-saliency"))
    wrapper.texts, start = 0, time.perf_counter()
    result = attack.attack(AttackedText(OrderedDict(prompt=prompt, completion=completion)), 1)
    seconds, found = time.perf_counter() - start, type(result).__name__ == "SuccessfulAttackResult"
    print("bench:", json.dumps([wrapper.texts, seconds, found, z]), flush=True)
"""

def models(b):
    """-> arguments, generator, filter: a run's, or some on the spot"""
    if b.run:
        if not (b.run / "config.json").exists():
            sys.exit(f"--run {b.run}: no config.json; run python adv_train.py first")
        run = json.loads((b.run / "config.json").read_text())["run"]
        names = "generator encoder data lm_rows lm_lr rank bits dtype batch max_len budget device".split()
        given = [word for k in names for word in (f"--{k.replace('_', '-')}", run[k])]
        place = ["--out", b.run.resolve().parent.parent, "--name", b.run.name, "--arm", b.arm]
        a = adv.parse_args([*given, *map(str, place)])
        a.oracle = run["oracle"] == "True"
        return a, *adv.trained(a)
    a = adv.parse_args([])
    model, tok = adv.load_model(a.generator, a.bits, a.device, adv.DTYPES[a.dtype], a.max_len)
    adv.add_lora(model, a.rank, 2 * a.rank, 0)
    torch.manual_seed(0)
    encoder = adv.AutoModelForTokenClassification.from_pretrained(a.encoder, num_labels=1).to(a.device).eval()
    reader = adv.AutoTokenizer.from_pretrained(a.encoder, truncation_side="left", model_max_length=a.max_len)
    return a, (model, tok), adv.Filter(encoder, reader, -100.0)

def spread(xs, unit):
    return f"{median(xs):.2f}{unit} [{min(xs):.2f}, {max(xs):.2f}]"

def clock(work, *args):
    """-> seconds, what came of it; nothing is known from before"""
    adv.next_words.cache_clear()
    start = time.perf_counter()
    out = work(*args)
    return time.perf_counter() - start, out

def in_turn(sides, n):
    """each second time from behind, as the first one may find the machine in another state"""
    return list(sides)[::-1 if n % 2 else 1]

def most_salient(spans):
    return sorted(spans, key=lambda span: -span[2])[:1]

def one_by_one(f, rows):
    return [adv.scores(f, [row])[0] for row in rows]

def batched(f, lm, texts, most=64):
    print(f"\n{'candidates of':25}{'batched/s':>10}{'one by one/s':>14}   {'ratio':22}scores differ by")
    for label, of in (("a word", most_salient), ("all words", list)):
        pairs, gap = [], 0.0
        for n, row in enumerate(texts):
            found = [row | {"completion": text} for text in adv.edits(lm, row, of(adv.saliency(f, row)))]
            found = found[::-(-len(found) // most)]
            done = {side: clock(side, f, found) for side in in_turn((adv.scores, one_by_one), n)}
            (fast, x), (slow, y) = done[adv.scores], done[one_by_one]
            pairs.append((len(found) / fast, len(found) / slow, slow / fast, len(found)))
            gap = max(gap, *(abs(p - q) for p, q in zip(x, y)))
        fast, slow, ratios, sizes = zip(*pairs)
        size = f"{label}, {min(sizes)} to {max(sizes)}"
        speed = f"{median(fast):10.0f}{median(slow):14.0f}"
        print(f"{size:25}{speed}   {spread(ratios, 'x'):22}{gap:.1e}", flush=True)

def menus(f, lm, row):
    """of each word in turn, with its parts; then one menu of all words"""
    spans, rows = adv.saliency(f, row), []
    for span in spans:
        first, _ = clock(adv.saliency, f, row)
        whole, found = clock(adv.menu, f, lm, row, [span])
        likely, _ = clock(adv.next_words, lm, row["prompt"], row["completion"])
        scoring, _ = clock(adv.scores, f, [row | {"completion": text} for _, text, _ in found])
        rows.append((first + whole, first, likely, scoring, len(found)))
    whole, first, likely, scoring, sizes = zip(*rows)
    print(f"\na word's menu, {len(rows)} words in turn: {spread(whole, ' s')}, {median(sizes):.0f} candidates"
          f"\n  saliency {median(first):.2f} s, next words {median(likely):.2f}, "
          f"scores {median(scoring):.2f}")
    whole, found = clock(adv.menu, f, lm, row, spans)
    print(f"a menu of all words: {whole + median(first):.2f} s, {len(found)} candidates", flush=True)

class Peer:
    """TextAttack in a process of its own, which attacks when it is told to"""
    def __init__(self, python, folder, task, f):
        f.model.save_pretrained(folder)
        f.tok.save_pretrained(folder)
        Path(folder, "task.json").write_text(json.dumps(task))
        self.log, pipe = open(Path(folder, "log"), "w+"), subprocess.PIPE
        command = [python, "-c", THEIRS, folder]
        self.process = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=self.log)
        self.answer()

    def attack(self, *task):
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self):
        for line in self.process.stdout:  # TextAttack prints there, too
            if line.startswith("bench: "):
                return json.loads(line.removeprefix("bench: "))
        self.log.seek(0)
        sys.exit(f"TextAttack stopped: {self.log.read()[-2000:]}")

def race(python, a, lm, f, texts):
    """whole attacks: ours, its own wrapper, its wrapper with our padding"""
    special = {k: v for k, v in f.tok.special_tokens_map.items() if isinstance(v, str)}
    special |= {"model_max_length": f.tok.model_max_length, "truncation_side": "left"}
    words = {w[0] for row in texts for w in adv.WORD.finditer(row["completion"])}
    task = {"tok": special, "device": a.device, "tau": f.tau, "threads": torch.get_num_threads(),
            "synonyms": {w: adv.synonyms(w) for w in words}, "budget": a.budget}
    sides, gap = {"ours": [], "their wrapper": [], "padded to the batch": []}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(python, folder, task, f)
        for n, row in enumerate(texts):
            for side in in_turn(sides, n):
                if side == "ours":
                    seconds, (done,) = clock(adv.attacks, f, lm, {"test": []}, [row], "tool", a)
                    sides[side].append((done["queries"], seconds, done["found"] is not None))
                else:
                    *done, z = peer.attack(side, row["prompt"], row["completion"])
                    sides[side].append(done)
                    gap = max(gap, abs(z - adv.scores(f, [row])[0]))
        peer.process.stdin.close()
        peer.process.wait()
    print(f"\n{'attacks':22}{'queries/s':>10}{'s a text':>10}{'queries':>9}{'found':>10}   ours to theirs")
    ours = [queries / seconds for queries, seconds, _ in sides["ours"]]
    for side, rows in sides.items():
        queries, seconds, found = zip(*rows)
        speed = [q / s for q, s in zip(queries, seconds)]
        ratio = spread([x / y for x, y in zip(ours, speed)], "x") if side != "ours" else ""
        print(f"{side:22}{median(speed):10.0f}{median(seconds):10.2f}{median(queries):9.0f}"
              f"{f'{sum(found)} of {len(rows)}':>10}   {ratio}")
    print(f"a text's score there and here: largest difference {gap:.1e}")

def main():
    p = argparse.ArgumentParser(description="the rewrite tool's menus")
    p.add_argument("--run", type=Path, help="folder of a run of adv_train.py; default: a random head")
    p.add_argument("--arm", default="baseline", help="which of its classifiers")
    p.add_argument("--textattack", metavar="PYTHON", help="a python that can import textattack")
    p.add_argument("--tokens", type=int, default=60, help="of a story and its completion, for the encoder")
    p.add_argument("--pairs", type=int, default=5, help="texts")
    b = p.parse_args()
    if b.textattack and not shutil.which(b.textattack):
        sys.exit(f"--textattack {b.textattack}: no such program")
    set_verbosity_error()
    disable_progress_bar()
    a, lm, f = models(b)
    rows = [row for row in adv.read_rows(a.data / "test.jsonl") if row["label"]]
    rows = [row for row, x in zip(rows, adv.scores(f, rows)) if x >= f.tau]

    def far(row):
        return abs(len(f.tok(row["prompt"], row["completion"]).input_ids) - b.tokens)
    texts = sorted(rows, key=far)[:b.pairs]
    if not texts:
        sys.exit("no bad text of the test rows is rejected: there is nothing to attack")
    print(f"{a.device}, {torch.get_num_threads()} threads, load average at start {os.getloadavg()[0]:.2f}; "
          f"torch {torch.__version__}; filter fp32, generator {a.dtype}; {len(texts)} texts of {b.tokens} "
          f"tokens (within {far(texts[-1])})")
    with adv.dense_weights(lm[0]):  # as attack() and simulate() have it
        adv.menu(f, lm, texts[0], most_salient(adv.saliency(f, texts[0])))  # warms up
        batched(f, lm, texts)
        menus(f, lm, texts[0])
        if b.textattack:
            race(b.textattack, a, lm, f, texts)
    if not b.textattack:
        print("\nTextAttack: not measured, no --textattack PYTHON was given")
    print(f"command: python bench/attack.py {' '.join(sys.argv[1:])}".rstrip())

if __name__ == "__main__":
    main()
