# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "safetensors", "numpy", "lm-eval"]
# ///
"""
Multiple choice by log-likelihood: holistic.py against EleutherAI's lm-evaluation-harness, both in one run, on
the same items, model and templates.

    python bench/multiple_choice.py                               # SmolLM2-135M in fp32, on what is prepared
    python bench/multiple_choice.py --peer-python VENV/bin/python  # lm-eval in an environment of its own
    python bench/multiple_choice.py --model DIR --items 200 --peer-batch 1 8 32

hellaswag_style is not HellaSwag: 40 items written for this script, in its shape and lengths, so that the
speed on such items is known where the benchmark is not at hand. Their wrong endings are absurd on purpose; an
accuracy on them says nothing. The harness is asked through its own HFLM.loglikelihood, with the batch size
that is fastest for it among --peer-batch on the first items of each set. Its templates (the YAML files of its
tasks) render the same questions and must give the very strings that holistic.py asks, else exit 1. Per item
the chosen answers (acc: sum of log p; acc_norm: over characters) must be identical, except where the
harness's own two best differ by less than 1e-4 nats: those are counted and printed. Each side is a process
that stays loaded; only the one that computes runs, the other is stopped (SIGSTOP). Time is from strings to
log-likelihoods, tokenisation included, loading excluded; the ratio of CPU times beside it does not mind other
processes.
"""
import argparse
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
TIE = 1e-4  # nats: below this the rounding of sums decides, on either side
SETS = ["quiz", "mmlu", "arc_easy", "arc_challenge", "hellaswag", "hellaswag_style"]
STYLE = Path(__file__).resolve().parent / "hellaswag_style.jsonl"
ARC, HELLASWAG = "arc/arc_easy.yaml", "hellaswag/hellaswag.yaml"
TASKS = {"mmlu": "mmlu/default/_default_template_yaml", "arc_easy": ARC, "arc_challenge": ARC,
         "hellaswag": HELLASWAG, "hellaswag_style": HELLASWAG}
LETTERED = re.compile(r"(?s)(.*)\nA\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)\nAnswer:")

def die(message, code=2):
    print(f"multiple_choice: {message}", file=sys.stderr)
    sys.exit(code)

# ---- worker: one side, loaded once, one JSON line for each line on stdin
def ours(a):
    """-> function: [(shots, context, [choice])] -> [[log p]]; batches and prefixes are a real run's."""
    sys.path.insert(0, str(ROOT))
    import holistic as H
    model = H.Local(a.model, None, H.parse_args(["--model", a.model, "--dtype", "fp32", "--device", "cpu"]))
    model.open()

    def ask(rows, batch):
        return model.choose(rows)
    return ask, f"holistic.py, torch {H.torch.__version__}"

def peer(a):
    import importlib.metadata
    import logging
    logging.disable(logging.WARNING)
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    models = {}

    def ask(rows, batch):
        if not models:
            models["lm"] = HFLM(pretrained=a.model, dtype="float32", device="cpu", batch_size=batch)
        lm = models["lm"]
        lm.batch_size_per_gpu = batch
        asks = [Instance("loglikelihood", {}, (shots + context, f" {choice}"), k)
                for shots, context, choices in rows for k, choice in enumerate(choices)]
        got = iter(lm.loglikelihood(asks, disable_tqdm=True))
        return [[next(got)[0] for _ in choices] for _, _, choices in rows]
    return ask, f"lm-eval {importlib.metadata.version('lm_eval')}, torch {torch.__version__}"

def render(contexts, name):
    """what the harness's own template of this task makes of the question that stands in each context."""
    import jinja2
    import lm_eval
    import yaml
    text = (Path(lm_eval.__file__).parent / "tasks" / TASKS[name]).read_text()
    doc = yaml.safe_load(re.sub(r"!function \S+", "''", text))
    template = jinja2.Environment(keep_trailing_newline=True).from_string(doc["doc_to_text"])
    out = []
    for context in contexts:
        fields = {"query": context, "question": context.removeprefix("Question: ").removesuffix("\nAnswer:")}
        if name == "mmlu":
            question, *choices = LETTERED.fullmatch(context).groups()
            fields = {"question": question, "choices": choices}
        out.append(template.render(fields))
    return out

def worker(a):
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # a stopped worker must not outlive its parent
    ask, what = {"ours": ours, "peer": peer}[a.worker](a)
    print(json.dumps(what), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "render" in job:
            print(json.dumps(render(job["contexts"], job["render"])), flush=True)
            continue
        t, c = time.perf_counter(), time.process_time()
        out = ask(job["rows"], job["batch"])
        seconds, cpu = time.perf_counter() - t, time.process_time() - c
        print(json.dumps({"seconds": seconds, "cpu": cpu, "logp": out}), flush=True)

class Side:
    def __init__(self, name, python, a):
        command = [python, str(Path(__file__).resolve()), "--worker", name, "--model", a.model]
        env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        stderr = None if a.verbose else subprocess.DEVNULL
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                                  text=True, start_new_session=True, env=env)
        line = self.p.stdout.readline()
        if not line:
            die(f"{name}: {python} cannot start it; --verbose shows why; --peer-python names its python")
        self.what = json.loads(line)
        os.kill(self.p.pid, signal.SIGSTOP)

    def ask(self, job):
        os.kill(self.p.pid, signal.SIGCONT)
        self.p.stdin.write(json.dumps(job) + "\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        if not line:
            die("a worker died (--verbose shows why)", 1)
        os.kill(self.p.pid, signal.SIGSTOP)
        return json.loads(line)

    def end(self):
        self.p.kill()
        self.p.wait()

def first_max(v):
    return max(range(len(v)), key=lambda i: v[i])

def gap(v):
    best = sorted(v)[-2:]
    return best[1] - best[0]

def choose(a):
    """-> {set: [(id, shots, context, choices)]}, of MMLU the first items: a run has 246 of a subject, whose
    shots are computed once."""
    sys.path.insert(0, str(ROOT))
    import holistic as H
    suites, sets = {}, {}
    for path in sorted(a.data.glob("*/items*.jsonl")):
        (head, _), *rows = H.read_rows(path)
        if head["suite"] in a.sets:
            H.add_suite(suites, path, head, rows, a.items if head["suite"] != "mmlu" else None, 0)
    if "hellaswag_style" in a.sets:
        rows = enumerate(H.read_rows(STYLE))
        rows = [({"id": str(n), "context": row["question"]} | row, at) for n, (row, at) in rows]
        head = {"suite": "hellaswag_style", "kind": "choice", "domain": "knowledge", "about": "its shape"}
        H.add_suite(suites, STYLE, head, rows, a.items, 0)
    for name in a.sets:
        if name not in suites:
            print(f"{name}: not prepared in {a.data}")
            continue
        shots = suites[name].head["shots"]
        sets[name] = [(item["id"], shots.get(item.get("shots"), ""), item["context"], item["choices"])
                      for item in suites[name].items[:a.items]]
    return sets

def main():
    how = argparse.ArgumentDefaultsHelpFormatter
    p = argparse.ArgumentParser(description="holistic.py against lm-eval", formatter_class=how)
    p.error, add = die, p.add_argument
    add("--model", default=str(ROOT / "data/smollm2/model"), help="Hugging Face folder")
    add("--data", type=Path, default=ROOT / "data", help="folder with NAME/items*.jsonl")
    add("--sets", nargs="+", default=SETS, choices=SETS, help="which of them, where prepared")
    add("--items", type=int, default=40, help="items a set, stratified by category; of MMLU the first")
    add("--peer-python", default=sys.executable, help="interpreter that has lm-eval")
    add("--peer-batch", nargs="+", type=int, default=[1, 8, 32], help="lm-eval's; the fastest is used")
    add("--pairs", type=int, default=3, help="timed pairs ours, peer")
    add("--verbose", action="store_true", help="show the workers' stderr")
    add("--worker", choices=["ours", "peer"], help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker:
        return worker(a)
    if not (Path(a.model) / "config.json").is_file():
        die(f"--model {a.model}: no config.json there")
    if a.items < 1 or a.pairs < 1 or min(a.peer_batch) < 1:
        die("--items, --pairs and --peer-batch must be at least 1")
    sets = choose(a) or die(f"nothing is prepared under {a.data}")
    us, them = Side("ours", sys.executable, a), Side("peer", a.peer_python, a)
    try:
        bad = run(a, sets, us, them)
    finally:
        us.end(), them.end()
    sys.exit(1 if bad else 0)

def run(a, sets, us, them):
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"ours: {us.what}\npeer: {them.what}; fp32, CPU, {threads} thread(s), {a.model}")
    bad, lines, total = 0, [], {k: [0.0] * a.pairs for k in ("ours", "peer", "cpu ours", "cpu peer")}
    for name, items in sets.items():
        rows = [item[1:] for item in items]
        if name != "quiz":  # the quiz has ARC's template and no task in the harness
            theirs = them.ask({"render": name, "contexts": [context for _, context, _ in rows]})
            wrong = [item[0] for item, text in zip(items, theirs) if item[2] != text]
            if wrong:
                print(f"{name}: {len(wrong)} contexts differ from the harness's template, {wrong[0]} first")
                bad += 1
        warm = rows[:max(4, len(rows) // 8)]
        us.ask({"rows": warm, "batch": 0})
        tried = {b: min(them.ask({"rows": warm, "batch": b})["cpu"] for _ in range(2)) for b in a.peer_batch}
        batch = min(tried, key=tried.get)
        ratios, cpu = [], []
        for k in range(a.pairs):
            o, t = us.ask({"rows": rows, "batch": 0}), them.ask({"rows": rows, "batch": batch})
            ratios.append(t["seconds"] / o["seconds"])
            cpu.append(t["cpu"] / o["cpu"])
            for side, found in (("ours", o), ("peer", t)):
                total[side][k] += found["seconds"]
                total[f"cpu {side}"][k] += found["cpu"]
        far = max(abs(x - y) for u, v in zip(o["logp"], t["logp"]) for x, y in zip(u, v))
        differ, ties = compare(items, o["logp"], t["logp"])
        bad += bool(differ)
        lines.append(f"{name:15s} {len(rows):5d} {speed(rows, o):>12s} {speed(rows, t):>12s} {batch:6d}  "
                     f"{median(ratios):5.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]  {median(cpu):5.2f}x  "
                     f"{len(rows) - len(set(differ)):5d} of {len(rows)} identical"
                     f"{f', {ties} ties' if ties else ''}, log p within {far:.1e}")
        print(lines[-1] + (f"  DIFFERENT: {', '.join(differ[:5])}" if differ else ""), flush=True)
    ratios = [t / o for o, t in zip(total["ours"], total["peer"])]
    print(f"\n{'set':15s} {'items':>5s} {'ours':>12s} {'lm-eval':>12s} {'batch':>6s}  "
          f"ratio, median [min, max] of {a.pairs}  CPU time  choices")
    print("\n".join(lines))
    cpu = median(t / o for o, t in zip(total["cpu ours"], total["cpu peer"]))
    print(f"all: {median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}], CPU time {cpu:.2f}x; choices "
          f"{'DIFFER' if bad else 'identical'}")
    print(f"command: python bench/multiple_choice.py {' '.join(sys.argv[1:])}".rstrip())
    return bad

def compare(items, mine, theirs):
    """-> ids of items on which acc or acc_norm choose differently, number of ties"""
    differ, ties = [], 0
    for (key, _, _, choices), u, v in zip(items, mine, theirs):
        n = [max(1, len(c.strip())) for c in choices]
        for x, y in ((u, v), ([p / m for p, m in zip(u, n)], [p / m for p, m in zip(v, n)])):
            if first_max(x) != first_max(y):
                ties += gap(y) < TIE
                differ += [key] * (gap(y) >= TIE)
    return differ, ties

def speed(rows, reply):
    return f"{len(rows) / reply['seconds']:.2f}/s"

if __name__ == "__main__":
    main()
