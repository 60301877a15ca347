# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "numpy", "matplotlib", "jinja2"]
# ///
"""
The rewrite tool of adv_train.py: seconds of a menu, candidates scored a second, and TextAttack beside it.

    python bench/attack.py                                # MiniLM with a random head, SmolLM2 untuned: for timing
    python bench/attack.py --run out/adv_train/tiny-seed0 # a run's classifier and generator
    python bench/attack.py --textattack PYTHON            # PYTHON can import textattack 0.3.11

batched, one by one: the same candidates in one call of scores(), and in a call each. Turns alternate, a ratio is
taken inside each pair, each pair is another text of about --tokens tokens (story and completion).
A menu: saliency, next words from the generator, synonyms, all scored, for each word of the text in turn.
TextAttack: PWWS' search and constraints, in a process of its own, on the same texts, weights, tokens and tau,
with as many queries at most; ours is simulate() with the tool. Seconds are of whole attacks, so of what is not
the same, too: its candidates are WordNet's synonyms alone (our table: NLTK's needs a download), each word of
the completion is tried, the label is not looked at; ours has the generator's words and the labeller in it. Its
HuggingFaceModelWrapper pads to the tokenizer's longest text; "padded to the batch" is that wrapper without this.
With a random head tau lies below all scores, so that attacks spend their whole budget.
"""
import argparse
import json
import os
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
tok = PreTrainedTokenizerFast(tokenizer_file=folder + "/tokenizer.json", model_max_length=task["longest"],
                              truncation_side="left", **task["tok"])
model = AutoModelForTokenClassification.from_pretrained(folder).eval().to(task["device"])
forward = model.forward

def two_classes(**inputs):
    out, mask = forward(**inputs), inputs["attention_mask"]
    z = (out.logits[:, :, 0] * mask).sum(1) / mask.sum(1) - task["tau"]
    out.logits = torch.stack([-z / 2, z / 2], 1)  # the second is the bad one: softmax gives sigmoid(z - tau)
    return out
model.forward = two_classes

class Counted(HuggingFaceModelWrapper):
    asked = 0
    def __call__(self, texts):
        self.asked += len(texts)
        return self.run(texts)
    run = HuggingFaceModelWrapper.__call__

class Padded(Counted):
    @torch.no_grad()
    def run(self, texts):
        inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return self.model(**inputs.to(task["device"])).logits

class Synonyms(WordSwap):
    def _get_replacement_words(self, word):
        return [new for new in task["synonyms"].get(word, []) if " " not in new]

wrappers = {"their wrapper": Counted(model, tok), "padded to the batch": Padded(model, tok)}
print("attack.py: null", flush=True)
for line in sys.stdin:
    side, prompt, completion = json.loads(line)
    wrapper = wrappers[side]
    z = wrapper([(prompt, completion)])[0, 1].item() * 2 + task["tau"]
    goal = UntargetedClassification(wrapper, query_budget=task["budget"], model_batch_size=64)
    only = InputColumnModification(["prompt", "completion"], {"prompt"})
    attack = Attack(goal, [RepeatModification(), StopwordModification(), only], Synonyms(),
                    GreedyWordSwapWIR("weighted-saliency"))
    text = AttackedText(OrderedDict(prompt=prompt, completion=completion))
    wrapper.asked, start = 0, time.perf_counter()
    result = attack.attack(text, 1)
    found = type(result).__name__ == "SuccessfulAttackResult"
    print("attack.py:", json.dumps([wrapper.asked, time.perf_counter() - start, found, z]), flush=True)
"""

def models(b):
    """-> a run's arguments, generator and filter, or some on the spot"""
    if b.run:
        run = json.loads((b.run / "config.json").read_text())["run"]
        names = "generator encoder data lm_rows lm_lr rank bits dtype batch max_len device seed budget".split()
        given = [word for k in names for word in (f"--{k.replace('_', '-')}", run[k])]
        place = ["--out", b.run.resolve().parent.parent, "--name", b.run.name, "--arm", b.arm]
        a = adv.parse_args([*given, *map(str, place)])
        a.oracle = run["oracle"] == "True"
        return a, *adv.trained(a)
    a = adv.parse_args([])
    torch.manual_seed(0)
    model, tok = adv.load_model(a.generator, a.bits, a.device, adv.DTYPES[a.dtype], a.max_len)
    adv.add_lora(model, a.rank, 2 * a.rank, 0)
    reader = adv.AutoTokenizer.from_pretrained(a.encoder, truncation_side="left", model_max_length=a.max_len)
    encoder = adv.AutoModelForTokenClassification.from_pretrained(a.encoder, num_labels=1).to(a.device).eval()
    return a, (model, tok), adv.Filter(encoder, reader, -100.0)

def spread(xs, unit="x"):
    return f"{median(xs):.2f}{unit} [{min(xs):.2f}, {max(xs):.2f}]"

def clock(work, *args):
    """-> seconds, what came of it"""
    start = time.perf_counter()
    out = work(*args)
    return time.perf_counter() - start, out

def one_by_one(f, rows):
    return [adv.scores(f, [row])[0] for row in rows]

def batched(f, lm, texts, most=64):
    print(f"\n{'candidates':32}{'batched/s':>10}{'one by one/s':>14}   ratio [min, max]      scores differ by")
    for label in ("one word", "all words"):
        pairs, gap = [], 0.0
        for n, row in enumerate(texts):
            spans = adv.saliency(f, row)
            spans = spans if label == "all words" else [max(spans, key=spans_saliency)]
            found = [row | {"completion": text} for text in adv.edits(lm, row, spans)]
            found = found[::-(-len(found) // most)]
            sides = [adv.scores, one_by_one]
            done = {side: clock(side, f, found) for side in (sides, sides[::-1])[n % 2]}
            (fast, x), (slow, y) = (done[side] for side in sides)
            pairs.append((len(found) / fast, len(found) / slow, slow / fast, len(found)))
            gap = max(gap, *(abs(p - q) for p, q in zip(x, y)))
        fast, slow, ratios, sizes = zip(*pairs)
        size = f"{label}, {min(sizes)} to {max(sizes)}"
        print(f"{size:32}{median(fast):10.0f}{median(slow):14.0f}   {spread(ratios):22}{gap:.1e}", flush=True)

def spans_saliency(span):
    return span[2]

def menus(f, lm, row):
    """of each word in turn, with its parts; then one menu of all words"""
    spans, rows = adv.saliency(f, row), []
    for span in spans:
        first, _ = clock(adv.saliency, f, row)
        whole, found = clock(adv.menu, f, lm, row, [span])
        likely, _ = clock(adv.next_words, lm, row)
        scoring, _ = clock(adv.scores, f, [row | {"completion": text} for _, text, _ in found])
        rows.append((first + whole, first, likely, scoring, len(found)))
    whole, first, likely, scoring, sizes = zip(*rows)
    print(f"\na word's menu, {len(rows)} words in turn: {spread(whole, ' s')}, {median(sizes):.0f} candidates\n"
          f"  saliency {median(first):.3f} s, next words {median(likely):.3f}, scores {median(scoring):.3f}")
    whole, found = clock(adv.menu, f, lm, row, spans)
    print(f"a menu of all words: {whole + median(first):.2f} s, {len(found)} candidates", flush=True)

class Peer:
    """TextAttack in a process of its own, which attacks when it is told to"""
    def __init__(self, python, folder, task, f):
        f.model.save_pretrained(folder)
        f.tok.save_pretrained(folder)
        Path(folder, "task.json").write_text(json.dumps(task))
        self.log = open(Path(folder, "log"), "w+")
        self.process = subprocess.Popen([python, "-c", THEIRS, folder], text=True, stderr=self.log,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.ask()

    def ask(self, *request):
        if request:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        for line in self.process.stdout:  # TextAttack prints there, too
            if line.startswith("attack.py: "):
                return json.loads(line.removeprefix("attack.py: "))
        self.log.seek(0)
        sys.exit(f"TextAttack stopped: {self.log.read()[-2000:]}")

def race(python, a, lm, f, texts):
    """whole attacks, sides in turn: ours, its own wrapper, its wrapper with our padding"""
    adv.synonyms("")
    words = {w[0] for row in texts for w in adv.WORD.finditer(row["completion"])}
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    task = {"tok": {k: getattr(f.tok, k) for k in names if getattr(f.tok, k)}, "tau": f.tau, "device": a.device,
            "synonyms": {w: adv.synonyms(w) for w in words}, "threads": torch.get_num_threads(),
            "budget": a.budget, "longest": f.tok.model_max_length}
    sides, gap = {"ours": [], "their wrapper": [], "padded to the batch": []}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(python, folder, task, f)
        for n, row in enumerate(texts):
            for side in (list(sides), list(sides)[::-1])[n % 2]:
                if side == "ours":
                    seconds, (done,) = clock(adv.simulate, f, lm, {"test": []}, [row], "tool", a)
                    sides[side].append((done["queries"], seconds, done["found"] is not None))
                else:
                    *result, z = peer.ask(side, row["prompt"], row["completion"])
                    sides[side].append(result)
                    gap = max(gap, abs(z - adv.scores(f, [row])[0]))
        peer.process.stdin.close()
        peer.process.wait()
    print(f"\n{'attacks':22}{'queries/s':>10}{'s a text':>10}{'queries':>9}{'success':>9}   ours is faster, queries/s")
    ours = [queries / seconds for queries, seconds, _ in sides["ours"]]
    for side, rows in sides.items():
        queries, seconds, found = zip(*rows)
        speed = [q / s for q, s in zip(queries, seconds)]
        print(f"{side:22}{median(speed):10.0f}{median(seconds):10.2f}{median(queries):9.0f}"
              f"{sum(found):6} of {len(rows)}   {spread([x / y for x, y in zip(ours, speed)])}")
    print(f"their scores differ from ours by at most {gap:.1e}")

def main():
    p = argparse.ArgumentParser(description="the rewrite tool's menus")
    p.add_argument("--run", type=Path, help="folder of a run of adv_train.py; default: a random head")
    p.add_argument("--arm", default="baseline", help="which of its classifiers")
    p.add_argument("--textattack", help="a python that can import textattack")
    p.add_argument("--tokens", type=int, default=60, help="of a story and its completion, for the encoder")
    p.add_argument("--pairs", type=int, default=5, help="texts")
    b = p.parse_args()
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
    print(f"{a.device}, {torch.get_num_threads()} threads, load average at start {os.getloadavg()[0]:.2f}; torch "
          f"{torch.__version__}; filter fp32, generator {a.dtype}; texts within {far(texts[-1])} of {b.tokens} tokens")
    with adv.dense_weights(lm[0]):  # as attack() and simulate() have it
        adv.menu(f, lm, texts[0], adv.saliency(f, texts[0])[:1])  # warms up
        batched(f, lm, texts)
        menus(f, lm, texts[0])
    if b.textattack:
        race(b.textattack, a, lm, f, texts)
    else:
        print("\nTextAttack: not measured, no --textattack PYTHON was given")
    print(f"command: python bench/attack.py {' '.join(sys.argv[1:])}")

if __name__ == "__main__":
    main()
