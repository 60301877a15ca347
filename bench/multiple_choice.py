# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "safetensors", "numpy", "tqdm", "matplotlib", "huggingface_hub", "lm-eval"]
# ///
"""
Multiple choice by log-likelihood: holistic.py against EleutherAI's lm-evaluation-harness, both in one run, same items, model and templates.

    python bench/multiple_choice.py                                  # SmolLM2-135M in fp32; the quiz, hellaswag_style and what is prepared of MMLU, ARC, HellaSwag
    python bench/multiple_choice.py --peer-python VENV/bin/python    # lm-eval lives in an environment of its own
    python bench/multiple_choice.py --model DIR --items 200 --peer-batch 1 8 32

hellaswag_style is not HellaSwag: 40 items written for this script, in its shape and lengths, so that the speed on such items is known where
the benchmark is not at hand. Their wrong endings are absurd on purpose; an accuracy on them says nothing.
The harness is asked through its own HFLM.loglikelihood, with the batch size that is fastest for it among --peer-batch on the first items of
each set. Its templates (the YAML files of its tasks) render the same rows and must give the very strings that holistic.py asks, else exit 1.
Per item the chosen answers (acc: sum of log p; acc_norm: over characters) must be identical, except where the harness's own two best
differ by less than 1e-4 nats: those are counted and printed. Each side is a process that stays loaded; only the one that computes runs, the other is stopped (SIGSTOP).
Time is from strings to log-likelihoods, tokenisation included, model loading excluded; the CPU-time ratio beside it does not mind other processes.
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
TIE = 1e-4        # nats: below this the rounding of sums decides, on either side
SETS = ["quiz", "mmlu", "arc_easy", "arc_challenge", "hellaswag", "hellaswag_style"]
STYLE = Path(__file__).resolve().parent / "hellaswag_style.jsonl"   # rows as data/hellaswag/prepare.py writes them


def die(message, code=2):
    print(f"multiple_choice: {message}", file=sys.stderr)
    sys.exit(code)


# ---- worker: one side, loaded once, one JSON line for each line on stdin ----
def ours(a):
    """-> function: [(context, options)] -> [[log p]]; the order, batches and preambles are those of a real run."""
    sys.path.insert(0, str(ROOT))
    sys.argv = ["holistic.py"]
    import holistic as H
    flags = H.parse_args(["--model", a.model, "--dtype", "fp32", "--device", "cpu"])
    model = H.Local(a.model, flags)

    def ask(rows, batch):
        requests = [H.Request("", None, preamble, 0, 0.0, 0, (), model.encode_choices(c, o)) for c, o, preamble in rows]
        out = {i: r.logp for g in model.plan(requests) for i, r in zip(g, model.answer([requests[k] for k in g]))}
        return [out[i] for i in range(len(rows))]
    return ask, f"holistic.py, torch {H.torch.__version__}"


def peer(a):
    import importlib.metadata
    import logging
    logging.disable(logging.WARNING)
    import lm_eval
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    models = {}

    def ask(rows, batch):
        if not models:
            models["lm"] = HFLM(pretrained=a.model, dtype="float32", device="cpu", batch_size=batch)
        lm = models["lm"]
        lm.batch_size_per_gpu = batch
        asks = [Instance("loglikelihood", {}, (c, o), k) for c, options, _ in rows for k, o in enumerate(options)]
        got = iter(lm.loglikelihood(asks, disable_tqdm=True))
        return [[next(got)[0] for _ in options] for _, options, _ in rows]
    return ask, f"lm-eval {importlib.metadata.version('lm_eval')}, torch {torch.__version__}"


def render(rows, name):
    """the harness's own template of this task on one of our rows -> context without shots, and its choices."""
    import jinja2
    import lm_eval
    import yaml
    file = {"mmlu": "mmlu/default/_default_template_yaml", "arc_easy": "arc/arc_easy.yaml", "arc_challenge": "arc/arc_easy.yaml", "hellaswag": "hellaswag/hellaswag.yaml",
            "hellaswag_style": "hellaswag/hellaswag.yaml"}[name]
    text = (Path(lm_eval.__file__).parent / "tasks" / file).read_text()
    doc = yaml.safe_load(re.sub(r"!function \S+", "''", text))
    env = jinja2.Environment(keep_trailing_newline=True)
    return [env.from_string(doc["doc_to_text"]).render(r | {"query": r["question"]}) for r in rows]


def worker(a):
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)   # a stopped worker must not outlive its parent
    ask, what = {"ours": ours, "peer": peer}[a.worker](a)
    print(json.dumps(what), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "render" in job:
            print(json.dumps(render(job["rows"], job["render"])), flush=True)
            continue
        t, c = time.perf_counter(), time.process_time()
        out = ask(job["rows"], job["batch"])
        print(json.dumps({"seconds": time.perf_counter() - t, "cpu": time.process_time() - c, "logp": out}), flush=True)


class Side:
    def __init__(self, name, python, a):
        command = [python, str(Path(__file__).resolve()), "--worker", name, "--model", a.model]
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if not a.verbose else None, text=True, start_new_session=True,
                                  env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        line = self.p.stdout.readline()
        if not line:
            die(f"{name}: {python} cannot start it" + (" (lm-eval installed? --peer-python names its interpreter; --verbose shows why)" if name == "peer" else " (--verbose shows why)"))
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
    """-> {set: (its suite of holistic.py, items)}. A file that is not under --data is given by its whole path."""
    sys.path.insert(0, str(ROOT))
    import holistic as H
    flags, sets = H.parse_args(["--data", str(a.data)]), {}
    like = next(s for s in H.SUITES if s.name == "hellaswag")
    for suite in [*H.SUITES, type(like)(name="hellaswag_style", file=str(STYLE), domains=like.domains, goal=like.goal, context=like.context)]:
        if suite.name in a.sets:
            if H.why_not(suite, flags):
                print(f"{suite.name}: {H.why_not(suite, flags)}")
                continue
            items = suite.items(flags)   # MMLU in its own order: a whole run has 246 questions a subject, whose examples are computed once
            sets[suite.name] = suite, items[:a.items] if suite.name == "mmlu" else H.stratified(items, a.items, 0)
    return sets


def main():
    p = argparse.ArgumentParser(description="multiple choice: holistic.py against lm-eval", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.error = die
    p.add_argument("--model", default=str(ROOT / "data/smollm2/model"), help="Hugging Face folder")
    p.add_argument("--data", type=Path, default=ROOT / "data", help="folder with quiz/, mmlu/, arc/, hellaswag/; hellaswag_style lies in bench/")
    p.add_argument("--sets", nargs="+", default=SETS, choices=SETS, help="which of them, where prepared")
    p.add_argument("--items", type=int, default=40, help="items a set, stratified by category; of MMLU the first")
    p.add_argument("--peer-python", default=sys.executable, help="interpreter that has lm-eval")
    p.add_argument("--peer-batch", nargs="+", type=int, default=[1, 8, 32], help="batch sizes tried for lm-eval; the fastest is used")
    p.add_argument("--pairs", type=int, default=3, help="timed pairs ours, peer")
    p.add_argument("--verbose", action="store_true", help="show the workers' stderr")
    p.add_argument("--worker", choices=["ours", "peer"], help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker:
        return worker(a)
    if not (Path(a.model) / "config.json").is_file():
        die(f"--model {a.model}: no config.json there")
    if a.items < 1 or a.pairs < 1 or min(a.peer_batch) < 1:
        die("--items, --pairs and --peer-batch must be at least 1")
    sets = choose(a)
    if not sets:
        die(f"nothing is prepared under {a.data}")
    us, them = Side("ours", sys.executable, a), Side("peer", a.peer_python, a)
    try:
        bad = run(a, sets, us, them)
    finally:
        us.end(), them.end()
    sys.exit(1 if bad else 0)


def run(a, sets, us, them):
    print(f"ours: {us.what}\npeer: {them.what}; fp32, CPU, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s), {a.model}")
    bad, lines, total = 0, [], {k: [0.0] * a.pairs for k in ("ours", "peer", "cpu ours", "cpu peer")}
    for name, (suite, items) in sets.items():
        rows = [(suite.context(r), suite.options(r), r.get("preamble", "")) for r in items]
        if name != "quiz":   # the quiz has ARC's template and no task in the harness
            plain = [{k: r[k] for k in ("question", "choices")} for r in items]
            theirs = them.ask({"render": name, "rows": plain})
            wrong = [r["id"] for r, (c, _, pre), t in zip(items, rows, theirs) if c != pre + t]
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
            total["ours"][k] += o["seconds"]
            total["peer"][k] += t["seconds"]
            ratios.append(t["seconds"] / o["seconds"])
            cpu.append(t["cpu"] / o["cpu"])
            total["cpu ours"][k] += o["cpu"]
            total["cpu peer"][k] += t["cpu"]
        far = max(abs(x - y) for u, v in zip(o["logp"], t["logp"]) for x, y in zip(u, v))
        differ, ties = [], 0
        for r, u, v, (_, options, _) in zip(items, o["logp"], t["logp"], rows):
            n = [max(1, len(c.strip())) for c in options]
            for x, y in ((u, v), ([p / m for p, m in zip(u, n)], [p / m for p, m in zip(v, n)])):   # acc, acc_norm
                if first_max(x) != first_max(y):
                    ties += gap(y) < TIE
                    differ += [r["id"]] * (gap(y) >= TIE)
        bad += bool(differ)
        lines.append(f"{name:15s} {len(rows):5d} {rate(len(rows), o):>12s} {rate(len(rows), t):>12s} {batch:6d}  {median(ratios):5.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]  {median(cpu):5.2f}x"
                     f"  {len(rows) - len(set(differ)):5d} of {len(rows)} identical{f', {ties} ties' if ties else ''}, log p within {far:.1e}")
        print(lines[-1] if not differ else f"{lines[-1]}  DIFFERENT: {', '.join(differ[:5])}", flush=True)
    ratios = [t / o for o, t in zip(total["ours"], total["peer"])]
    print(f"\n{'set':15s} {'items':>5s} {'ours':>12s} {'lm-eval':>12s} {'batch':>6s}  ratio, median [min, max] of {a.pairs}  CPU time  choices")
    print("\n".join(lines))
    cpu = median(t / o for o, t in zip(total["cpu ours"], total["cpu peer"]))
    print(f"all: {median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}], CPU time {cpu:.2f}x; choices {'DIFFER' if bad else 'identical'}")
    print(f"command: python bench/multiple_choice.py {' '.join(sys.argv[1:])}".rstrip())
    return bad


def rate(n, reply):
    return f"{n / reply['seconds']:.2f}/s"


if __name__ == "__main__":
    main()
