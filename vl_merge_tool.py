# python vl_merge.py merge A B --method slerp --t 0.4 --out DIR
# python vl_merge.py merge A B --method ties --base BASE --density 0.5 --t 0.7 0.3 --out DIR
# python vl_merge.py merge VLM LLM --t 0:0.2,16:0.6,31:0.3 --out DIR       # share of the LLM over the layers
# python vl_merge.py merge VLM LLM --t mlp=0.5,self_attn=0.3,0 --out DIR   # by part; 0: the rest
# python vl_merge.py merge --recipe mergekit.yml --out DIR
import argparse
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
import zlib
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer

from lora_undo import die, say, write

# ---- merging: a worker reads a block of rows of every input, merges it in fp32, casts once and writes it to
# its place in the output, which the shapes tell. While one reads or writes, another computes; no block waits
BLOCK = 2**17  # elements: in fp32 a block stays in a core's second cache from read to write
SHARD = 5e9  # bytes of an output file
SAMPLE = 2**16  # elements that bracket a quantile
SUMS = ["linear", "slerp", "nuslerp", "model_stock"]  # of whole tensors; the other methods: of W_i - W_0
ELECT = ["ties", "dare_ties", "della", "breadcrumbs_ties"]  # keep the entries whose sign has most weight
METHODS = SUMS + ELECT + ["task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"]
DEFAULTS = {"weight": 1.0, "density": 1.0, "epsilon": 0.15, "gamma": 0.01}  # may differ by model
CODES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
         "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
         "BOOL": torch.bool}
SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PARTS = {  # names on disk (new, legacy, raw internvl_chat, Qwen2-VL, plain LLM); the first that fits counts
    r"(model\.)?(vision_tower|visual|vision_model)\.(vision_model\.)?": "vision.",
    r"(model\.)?((multi_modal_projector|mlp1)\.|(?=image_newline))": "projector.",
    r"(language_model\.)?(lm_head|output)\.": "head.",
    r"model\.language_model\.|language_model\.model\.|model\.": "body."}
HEAD = "head.weight"
SAME = ["num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        "rms_norm_eps", "hidden_act", "hidden_activation", "sliding_window"]
NO_ADAPTER = ["use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "fan_in_fan_out", "target_parameters",
              "trainable_token_indices", "layer_replication", "megatron_config", "use_qalora"]

Entry = namedtuple("Entry", "file start dtype shape lora rows", defaults=((), None))  # a tensor on disk
Model = namedtuple("Model", "name folder config tied text tensors names files")
Job = namedtuple("Job", "key name out own sources base p")  # own: the first model's; p None: only copied

def key_of(name):
    """one key for a tensor in every layout, as body.layers.0.mlp.up_proj.weight"""
    for pattern, part in PARTS.items():
        found = re.match(pattern, name)
        if found:
            return part + name[found.end():]
    return name

def header(file):
    """{name: Entry} of a safetensors file"""
    try:
        with open(file, "rb") as f:
            start = 8 + int.from_bytes(f.read(8), "little")
            head, size = json.loads(f.read(min(start - 8, 2**30))), os.fstat(f.fileno()).st_size
    except (OSError, ValueError) as e:
        die(f"{file}: expected safetensors ({e})")
    head.pop("__metadata__", None)
    for name, h in head.items():
        if h["dtype"] not in CODES or start + h["data_offsets"][1] > size:
            die(f"{file}: {name}: the file is truncated, or {h['dtype']} is not supported")
        head[name] = Entry(str(file), start + h["data_offsets"][0], CODES[h["dtype"]], tuple(h["shape"]))
    return head

def open_model(name):
    """a folder, or a hub id in the local cache, of a model or a PEFT adapter; only headers are read."""
    try:
        folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name, local_files_only=True))
        if (folder / "adapter_config.json").exists():
            return open_adapter(str(name), folder)
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as e:
        die(f"{name}: no model or adapter here or in the hub's local cache ({e})")
    if "quantization_config" in config:
        die(f"{name}: quantization_config: quantised weights are not supported")
    files, index = sorted(folder.glob("model*.safetensors")), folder / "model.safetensors.index.json"
    if index.exists():
        files = [folder / f for f in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if not files:
        die(f"{name}: no model*.safetensors; .bin files are pickles, which are not read")
    found = {n: e for file in files for n, e in header(file).items()}
    names = {key_of(n): n for n in found}
    if len(names) < len(found):
        die(f"{name}: two tensors have one meaning, as {next(n for n in found if n not in names.values())}")
    tied, text = config.get("tie_word_embeddings", False), config.get("llm_config", config)
    try:  # for the defaults that config.json leaves out; of internvl_chat, custom code, only the LLM is known
        full = AutoConfig.for_model(**text)
        tied, text = full.tie_word_embeddings, full.get_text_config().to_dict()
    except (KeyError, ValueError, TypeError):
        pass
    tensors = {key: found[n] for key, n in names.items() if key != HEAD or not tied}
    return Model(str(name), folder, config, HEAD not in tensors, text, tensors, names, files)

def open_adapter(name, folder):
    """W + s B A, applied to rows as they are read."""
    c, file = json.loads((folder / "adapter_config.json").read_text()), folder / "adapter_model.safetensors"
    bad = [field for field in NO_ADAPTER if c.get(field)] + ["bias"] * (c.get("bias", "none") != "none")
    if bad or c.get("peft_type") != "LORA":
        die(f"{name}: {(bad + ['peft_type'])[0]} of this adapter is not supported")
    model, found = open_model(c["base_model_name_or_path"]), header(file)
    s = c["lora_alpha"] / (math.sqrt(c["r"]) if c.get("use_rslora") else c["r"])
    for n, A in found.items():
        key = key_of(re.sub(r"^base_model\.model\.|\.modules_to_save|\.lora_A", "", n))
        W, B = model.tensors.get(key), found.get(n.replace(".lora_A", ".lora_B"))
        if n.endswith(".lora_B.weight"):
            continue
        if W is None or B is None or W.shape != (A.shape if B is A else (B.shape[0], A.shape[1])):
            die(f"{name}: {n} does not fit {model.name}")
        model.tensors[key] = A if B is A else W._replace(lora=W.lora + ((A, B, s),))  # is: of modules_to_save
    return model._replace(name=name, files=[*model.files, file])

# rows in and out, through pread: the pages of an mmap count as memory
def height(e):
    return math.prod(e.shape[:-1])

def blocks(e):
    step = max(1, BLOCK // max(1, *e.shape[-1:], 1))
    return [(r, min(r + step, height(e))) for r in range(0, height(e), step)]

def move(how, flags, e, r0, x):
    """rows r0 on between the file and x, with os.preadv or os.pwritev."""
    view = x.view(torch.uint8).numpy()  # (rows, bytes of a row)
    spans = [(view, r0)] if e.rows is None else [(v, int(e.rows[r0 + i])) for i, v in enumerate(view)]
    fd = os.open(e.file, flags)
    try:
        for part, row in spans:
            if how(fd, [part], e.start + row * view.shape[1]) != part.nbytes:
                raise OSError(f"{e.file}: could not read or write all of it")
    finally:
        os.close(fd)
    return x

def raw(e, r0, r1):
    return move(os.preadv, os.O_RDONLY, e, r0, torch.empty(r1 - r0, *e.shape[-1:] or [1], dtype=e.dtype))

def read(e, r0, r1):
    """-> (r1 - r0, C), fp32"""
    x = raw(e, r0, r1).float()
    for A, B, s in e.lora:
        x.addmm_(read(B, r0, r1), read(A, 0, A.shape[0]), alpha=s)
    return x

def put(job, r0, x):
    y = x.to(job.out.dtype)  # the one cast
    if y.dtype == torch.float16 and x.isfinite().all() and not y.isfinite().all():
        say(f"warning: {job.name}: above 65504, infinite in fp16")
    move(os.pwritev, os.O_WRONLY, job.out, r0, y)

# the methods; W_0: base, d_i = W_i - W_0, w_i: weight
def combine(job, terms, divisor=1.0):
    """sum c_i W_i / divisor. Terms of 0 are left out: t = 0 and t = 1 give a parent's bits."""
    for r0, r1 in blocks(job.out):
        acc = None
        for e, c in [x for x in terms if x[1]] or terms[:1]:
            x = read(e, r0, r1)
            acc = x.mul_(c) if acc is None else acc.add_(x, alpha=c)  # mergekit's order and roundings
        put(job, r0, acc.div_(divisor))

def gram(job, base):
    """inner products of all W_i, with a base of all d_i."""
    G = np.zeros((len(job.sources),) * 2)
    for r0, r1 in blocks(job.out):
        w0 = read(base, r0, r1) if base else 0
        X = [(read(e, r0, r1) - w0).flatten() for e in job.sources]
        G += [[torch.dot(x, y).item() for y in X] for x in X]
    return G

def sums(job, method):
    w, n, base = job.p["weight"], len(job.sources), job.base
    if method == "linear":
        total = float(sum(map(np.float32, w))) if job.p["normalize"] else 1.0
        return combine(job, [*zip(job.sources, w)], total)
    t = w[1] / (w[0] + w[1]) if abs(w[0] + w[1]) > 1e-6 else 0.5
    if method != "model_stock" and t in (0, 1):
        return combine(job, [*zip(job.sources, (1 - t, t))])
    G = gram(job, base if method != "slerp" else None)
    norms = np.sqrt(G.diagonal()).clip(1e-6)
    cos = (G / np.outer(norms, norms)).clip(-1, 1)
    if method == "model_stock":
        c = cos[np.triu_indices(n, 1)].mean()
        t = n * c / (1 + (n - 1) * c)
        return combine(job, [(base, 1 - t)] + [(e, t / n) for e in job.sources])
    theta, a, b = math.acos(cos[0, 1]), 1 - t, t
    if (abs(cos[0, 1]) <= 0.9995 if method == "slerp" else math.sin(theta) >= 1e-8):
        a, b = math.sin(a * theta) / math.sin(theta), math.sin(b * theta) / math.sin(theta)
    combine(job, [*zip(job.sources, (a, b))] + ([(base, 1 - a - b)] if base and method == "nuslerp" else []))

def delta(job, i, r0, r1):
    return read(job.sources[i], r0, r1).sub_(read(job.base, r0, r1))

def at_least(job, i, k):
    """-> function that keeps the k largest abs(d_i), and their equals. A sample of rows brackets the k-th, a
    pass counts what is above the bracket and keeps what is inside: 3 ns an element, a sort takes 80."""
    R, C, above = height(job.out), job.out.shape[-1], 0
    rows = np.unique(np.linspace(0, R - 1, max(1, min(R, SAMPLE // C))).astype(int))
    inside = sample = np.sort(np.concatenate([delta(job, i, r, r + 1).abs_().numpy()[0] for r in rows]))
    for width in (0.01, 0.1, 2) if len(rows) < R else ():
        low, high = (int((1 - k / (R * C) + side) * len(sample)) for side in (-width, width))
        lo, hi = sample[low] if low > 0 else 0, sample[high] if high < len(sample) else math.inf
        above, inside = 0, []
        for r0, r1 in blocks(job.out):
            a = delta(job, i, r0, r1).abs_().numpy()
            above += np.count_nonzero(a > hi)
            inside.append(a[(a >= lo) & (a <= hi)])
        inside = np.concatenate(inside)
        if above < k <= above + len(inside):
            break
    j = len(inside) + above - k
    kth = np.partition(inside, j)[j] if k else np.float32(math.inf)
    return partial(torch.nn.functional.hardshrink, lambd=float(np.nextafter(kth, np.float32(0))))

def drawn(method, p, i, seeds):
    """-> function from blocks of d_i, in their order, to what is kept of them, 1 or 0"""
    gen = np.random.SFC64([*seeds, i])

    def mask(d):
        keep = p["density"][i]
        if method.startswith("della"):  # by the rank in a row
            ranks = d.abs().argsort(-1).argsort(-1).numpy()
            keep = keep + p["epsilon"][i] * (2 * ranks / max(1, d.shape[-1] - 1) - 1)
        words = gen.random_raw(-(-d.numel() // 4)).view(np.uint16)[:d.numel()].reshape(d.shape)
        return torch.from_numpy((words < np.uint16(np.round(keep * 2**16))).view(np.int8)).float()
    return mask

def sparse(job, method, i, seed):
    """-> function that makes blocks of d_i sparse, in their order, and multiplies them by w_i"""
    p, c, n, seeds = job.p, job.p["weight"][i], math.prod(job.out.shape), (seed, zlib.crc32(job.key.encode()))
    if method == "task_arithmetic" or p["density"][i] >= 1:
        return lambda d: d.mul_(c)
    k, before, after = int(p["density"][i] * n), 0.0, 0.0
    if method == "ties":
        most = at_least(job, i, k)
        return lambda d: most(d).mul_(c)
    if method.startswith("breadcrumbs"):
        top = min(int(p["gamma"][i] * n), n - k)
        most, largest = at_least(job, i, top + k), at_least(job, i, top)
        return lambda d: most(d).sub_(largest(d)).mul_(c)
    mask, again = drawn(method, p, i, seeds), drawn(method, p, i, seeds)
    for r0, r1 in blocks(job.out):
        d = delta(job, i, r0, r1).abs_()
        before += d.sum().item()
        after += torch.dot(d.flatten(), mask(d).flatten()).item()
    return lambda d: d.mul_(again(d)).mul_(c * before / after if after else c)

def vectors(job, method, seed):
    """W_0 + lambda sum of the sparse w_i d_i"""
    w, p = job.p["weight"], job.p
    thin = [sparse(job, method, i, seed) for i in range(len(w))]
    for r0, r1 in blocks(job.out):
        w0, share = read(job.base, r0, r1), torch.tensor(sum(w))
        v = [f(read(e, r0, r1).sub_(w0)) for e, f in zip(job.sources, thin)]
        acc = v[0].clone() if method in ELECT else v[0]
        for x in v[1:]:
            acc.add_(x)
        if method in ELECT:  # entries whose sign is that of the sum stay
            sign = torch.copysign(torch.ones(()), acc)
            acc.zero_()
            for x in v:
                acc.add_(x.mul_(sign).relu_())
            acc.mul_(sign)
            if p["normalize"]:  # by the weights of those
                share = sum(x.sign_().mul_(c) for x, c in zip(v, w))
        if p["normalize"]:
            acc.div_(share.masked_fill(share.abs() < 1e-8, 1))
        put(job, r0, acc.mul_(p["lam"]).add_(w0))

def run(job, method, seed):
    torch.set_num_threads(1)  # of this thread: the workers are the threads
    if job.p is None or job.out.rows is not None:  # rows of tokens that not all have stay
        whole, exact = job._replace(out=job.out._replace(rows=None, shape=job.own.shape)), not job.own.lora
        for r0, r1 in blocks(job.own):
            put(whole, r0, (raw if exact else read)(job.own, r0, r1))
    if job.p:
        sums(job, method) if method in SUMS else vectors(job, method, seed)
    return job.name

# parameters: 0.4; "0:0.2,16:0.6" over layers; "mlp=0.5,0.3" by part; mergekit's gradients and filters
def schedule(text, layers):
    """-> a number, a gradient (a list over the depth), or [{filter, value}]"""
    if not isinstance(text, str):
        return text
    try:
        items = [re.split("[:=]", item) for item in text.split(",")]
        if ":" in text:
            return [float(x) for x in np.interp(range(layers), *zip(*[(int(n), float(x)) for n, x in items]))]
        found = [{"filter": item[0] if item[1:] else "", "value": float(item[-1])} for item in items]
        return found if "=" in text else found[0]["value"]
    except (ValueError, IndexError):
        die(f"{text}: expected 0.4, 0:0.2,16:0.6 or mlp=0.5,0.3")

def value(spec, name, depth):
    if isinstance(spec, list) and isinstance(spec[0], dict):  # "" is in every name
        fits = [x["value"] for x in spec if (x.get("filter") or "").strip("*") in name]
        return value(fits[0], name, depth) if fits else die(f"{name}: no filter fits, and no value")
    return float(np.interp(depth, np.linspace(0, 1, len(spec)), spec) if isinstance(spec, list) else spec)

def parameters(o, key, name, layers):
    """of one tensor. Embeddings, last norm and head count as the first layer, as in mergekit."""
    found = re.match(r"body\.layers\.(\d+)\.", key)
    depth = int(found[1]) / max(1, layers - 1) if found else 0.0
    p = {k: [value(spec, name, depth) for spec in o[k]] for k in o["used"]}
    if o["t"] is not None:
        t = value(o["t"], name, depth)
        p["weight"] = [1 - t, t]
    return p | {"lam": value(o["lam"], name, depth), "normalize": o["normalize"]}

# what is merged with what
def check(models, base):
    """the same architecture, before a tensor is read; a base that is one: others have a cosine of about 0."""
    first = {}
    for m in models + [base] * bool(base):
        rope = m.text.get("rope_parameters") or {"rope_theta": m.text.get("rope_theta")}
        for k, x in [(k, m.text.get(k)) for k in SAME] + [*rope.items()]:
            if x is not None and first.setdefault(k, x) != x and k not in ("type", "mrope_section"):
                die(f"{k}: {first[k]} in {models[0].name}, {x} in {m.name}")
    for m in models if base else ():
        keys = [k for k, e in m.tensors.items() if k.startswith("body.layers") and e.shape[1:]
                and k in base.tensors and base.tensors[k].shape == e.shape][::7]
        pairs = [[read(x.tensors[k], 0, 8).flatten() for x in (m, base)] for k in keys]
        if pairs and sum(torch.cosine_similarity(*pair, 0).item() for pair in pairs) < 0.1 * len(pairs):
            die(f"{base.name} is not the base of {m.name}: their weights are unrelated, as in {keys[0]}")

def vocabulary(m):
    try:
        return AutoTokenizer.from_pretrained(m.folder).get_vocab()
    except (OSError, ValueError, KeyError):
        return {}

def shared_rows(models, name, embed, shared):
    """-> None: one vocabulary; else for each model its rows of the tokens that all have, by their text"""
    sizes, files = [m.tensors[embed].shape[0] for m in models], [m.folder / "tokenizer.json" for m in models]
    if len(set(sizes)) == len({f.exists() and f.read_bytes() for f in files}) == 1:
        return None
    vocabs = [vocabulary(m) for m in models]
    known = [v for v in vocabs if v]
    if len(set(sizes)) == 1 and all(v == known[0] for v in known):
        return None
    tokens = [t for t in vocabs[0] if all(v.get(t, n) < n for v, n in zip(vocabs, sizes))]
    how = "are merged there, other rows" if shared else "(--vocab shared merges those)"
    say(f"{len(tokens)} of {max(sizes)} tokens are in all vocabularies; embedding, head {how} stay {name}'s")
    return [np.array([v[t] for t in tokens], int) for v in vocabs] if shared else []

def plan(models, base, o):
    """-> the model whose names and other parts the output has, jobs without their places in the output"""
    everyone, jobs, n = models + [base] * bool(base), [], len(models)
    first = next((m for m in models if "vision_config" in m.config), models[0])
    check(models, base)
    embed = next(k for k in first.tensors if re.match(r"body\.(embed_tokens|tok_embeddings)\.", k))
    untied = [m for m in models if not m.tied]
    for m in everyone:
        if not untied:
            m.tensors.pop(HEAD, None)
        elif HEAD not in m.tensors:
            say(f"{m.name}: tied; its embeddings stand for the head that {untied[0].name} has")
            m.tensors[HEAD] = m.tensors[embed]
            m.names[HEAD] = re.match(r"(language_model\.)?", m.names[embed])[0] + "lm_head.weight"
    rows = shared_rows(everyone, first.name, embed, o["vocab"] == "shared")
    for key in sorted(set().union(*(m.tensors for m in everyone))):
        own = key.startswith(("vision.", "projector.")) and not o["vision"] or key.endswith("inv_freq")
        lacking = [m.name for m in everyone if key not in m.tensors]
        if lacking and not own:
            die(f"{key}: missing in {lacking[0]}")
        if key not in first.tensors:
            continue
        job = Job(key, first.names[key], None, first.tensors[key], [], None, None)
        if not own and not (rows == [] and key in (embed, HEAD)):
            found = [m.tensors[key] for m in everyone]
            if rows and key in (embed, HEAD):
                found = [e._replace(rows=r, shape=(len(r), e.shape[1])) for e, r in zip(found, rows)]
            for m, e in zip(everyone, found):
                if e.shape != found[0].shape:
                    die(f"{key}: {list(found[0].shape)} in {models[0].name}, {list(e.shape)} in {m.name}")
            if job.own.dtype.is_floating_point:
                p = parameters(o, key, job.name, first.text["num_hidden_layers"])
                job = job._replace(sources=found[:n], base=found[n] if base else None, p=p)
            elif any(not raw(e, 0, height(e)).equal(raw(job.own, 0, height(e))) for e in found):
                die(f"{key}: integers that differ")
        jobs.append(job)
    return first, jobs

# the output
def bytes_of(e):
    return math.prod(e.shape) * e.dtype.itemsize

def lay_out(folder, tensors):
    """{name: Entry without a place} -> {name: Entry}; makes the files, with headers, and their index"""
    shards, size, places = [[]], 0, {}
    for name, e in tensors.items():
        if size + bytes_of(e) > SHARD and shards[-1]:
            shards, size = shards + [[]], 0
        shards[-1].append(name)
        size += bytes_of(e)
    for i, names in enumerate(shards, 1):
        part = f"-{i:05}-of-{len(shards):05}" if shards[1:] else ""
        file = folder / f"model{part}.safetensors"
        head, end = {"__metadata__": {"format": "pt"}}, 0
        for name in sorted(names, key=lambda name: -tensors[name].dtype.itemsize):  # as save_file orders them
            start, end = end, end + bytes_of(tensors[name])
            code = next(c for c, dtype in CODES.items() if dtype == tensors[name].dtype)
            head[name] = {"dtype": code, "shape": tensors[name].shape, "data_offsets": [start, end]}
        text = json.dumps(head, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(file, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            f.truncate(8 + len(text) + end)
        for name in names:
            start = 8 + len(text) + head[name]["data_offsets"][0]
            places[name] = tensors[name]._replace(file=str(file), start=start, lora=())
    if shards[1:]:
        index = {"metadata": {"total_size": sum(map(bytes_of, places.values()))},
                 "weight_map": {name: Path(e.file).name for name, e in places.items()}}
        write(folder / "model.safetensors.index.json", json.dumps(index, indent=1))
    return places

def sha256(file):
    if re.fullmatch("[0-9a-f]{64}", file.resolve().name):  # the hub's cache names a file by it
        return file.resolve().name
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

def finish(tmp, first, dtype, untied, recipe):
    """the files beside the weights; the config last, as a folder without one does not load."""
    for f in first.folder.iterdir():
        if f.suffix in (".json", ".txt", ".model", ".jinja", ".py") and not f.name.endswith(".index.json"):
            shutil.copy(f, tmp)
    config = json.loads((tmp / "config.json").read_text())
    for part in [config] + [config[k] for k in ("text_config", "llm_config") if k in config]:
        part |= {"dtype": dtype, "torch_dtype": dtype} if dtype else {}
        part |= {"tie_word_embeddings": False} if untied else {}
    write(tmp / "merge.json", json.dumps(recipe, indent=1, default=str))
    write(tmp / "config.json", json.dumps(config, indent=1))
    for f in [*tmp.iterdir(), tmp]:
        fd = os.open(f, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

def merge(inputs, out, method="linear", t=0.5, base=None, weight=1.0, density=1.0, epsilon=0.15, gamma=0.01,
          lam=1.0, normalize=None, seed=0, dtype=None, vision=False, vocab="first", checksums=True,
          dry_run=False):
    """t: share of the second of two models (linear, slerp, nuslerp); else the weight of each, or a list"""
    o, out, start, n = locals(), Path(out), time.time(), len(inputs)
    pair, many = method in ("linear", "slerp", "nuslerp"), isinstance(t, list) and not isinstance(t[0], dict)
    if not pair and not base or n != 2 and "slerp" in method or n < 2 and method == "model_stock":
        die(f"{method}: needs {'two models' if pair else 'task vectors: --base'}")
    if out.exists():
        die(f"{out} exists")
    if t is not None and (n == 1 or many or not pair):
        o |= {"t": None, "weight": 1.0 if n == 1 and pair else t}
    if o["t"] is not None and n != 2:
        die(f"--t {t}: expected a weight for each of {n} models")
    models, base = [open_model(m) for m in inputs], base and open_model(base)
    everyone, layers = models + [base] * bool(base), models[0].text["num_hidden_layers"]
    o["used"] = [k for k in DEFAULTS if k == "weight" or k == "density" and method not in SUMS
                 or k == "epsilon" and "della" in method or k == "gamma" and "breadcrumbs" in method]
    for k in DEFAULTS:
        specs = o[k] if isinstance(o[k], list) and not isinstance(o[k][0], dict) else [o[k]] * n
        o[k] = [schedule(x, layers) for x in specs] if len(specs) == n else die(f"{k}: expected {n} values")
    o |= {k: schedule(o[k], layers) for k in ("t", "lam")}
    if normalize is None:
        o["normalize"] = method in ("linear", "ties", "della", "della_linear")
    first, jobs = plan(models, base, o)

    cast, groups, tensors, moved = dtype and getattr(torch, SHORT.get(dtype, dtype)), {}, {}, {}
    for j in sorted(jobs, key=lambda j: j.name):
        groups.setdefault(json.dumps(j.p), []).append(j.name)
        tensors[j.name] = j.own._replace(dtype=cast) if cast and j.own.dtype.is_floating_point else j.own
        moved[j.name] = sum(bytes_of(e) for e in [tensors[j.name], j.base, *(j.sources or [j.own])] if e)
    for p, names in groups.items():
        say(f"{len(names):5} tensors {'copied' if p == 'null' else method + ' ' + p}: {names[0]} ..")
    size, workers = sum(map(bytes_of, tensors.values())), len(os.sched_getaffinity(0)) + 1
    say(f"reads {(sum(moved.values()) - size) / 1e9:.2f} GB, writes {size / 1e9:.2f} GB, peak about "
        f"{0.45 + workers * BLOCK * 4 * (3 * n + 3) / 1e9:.2f} GB")
    out.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(out.parent).free < 1.05 * size:
        die(f"{out}: no space for {1.05 * size / 1e9:.1f} GB")
    if dry_run:
        return

    tmp, done, shown = out.with_name(f"{out.name}.tmp-{os.getpid()}"), 0, start
    threads, pool = torch.get_num_threads(), ThreadPoolExecutor(workers)
    try:
        tmp.mkdir()
        places, work = lay_out(tmp, tensors), []
        sums = {str(f): pool.submit(sha256, f) for m in everyone for f in m.files * checksums}
        for j in sorted(jobs, key=lambda j: -moved[j.name]):  # the largest first, that none is left alone
            e = j.sources[models.index(first)] if j.sources else j.own
            j = j._replace(out=places[j.name]._replace(rows=e.rows, shape=e.shape))
            work.append(pool.submit(run, j, method, seed))
        for f in as_completed(work):
            done += moved[f.result()]
            if time.time() > shown + 10:
                shown = time.time()
                say(f"{done / 1e9:.1f} GB, {done / 1e9 / (shown - start):.2f} GB/s")
        finish(tmp, first, dtype and str(cast)[6:], first.tied and HEAD in first.tensors, {
            "method": method, "inputs": [m.name for m in models], "base": base and base.name, "seed": seed,
            "sha256": {f: s.result() for f, s in sums.items()}, "dtype": dtype,
            "groups": [{"parameters": json.loads(p), "tensors": names} for p, names in groups.items()],
            "torch": torch.__version__, "transformers": transformers.__version__})
        tmp.rename(out)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    pool.shutdown()
    torch.set_num_threads(threads)
    seconds = time.time() - start
    say(f"{out}: {seconds:.2f} s, {sum(moved.values()) / 1e9 / seconds:.2f} GB/s")

def recipe(path):
    """mergekit's YAML -> arguments of merge(). A model's parameter comes before its slice's, before all's."""
    try:
        y = yaml.safe_load(Path(path).read_text())
        method, base, dtype = y.pop("merge_method"), y.pop("base_model", None), y.pop("dtype", None)
        dtype, models, slices = y.pop("out_dtype", dtype), y.pop("models", None), y.pop("slices", [{}])
        models, own = models or slices[0]["sources"], slices[0].get("parameters", {})
        everywhere, inputs = y.pop("parameters", {}), [m["model"] for m in models]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as e:
        die(f"{path}: expected mergekit's YAML ({e!r})")
    for m in models:
        layers = m.get("layer_range") and open_model(m["model"]).text["num_hidden_layers"]
        if len(slices) > 1 or layers and m["layer_range"] != [0, layers]:
            die(f"{path}: slices: only one, with a layer_range over all layers")
    levels = [[m.get("parameters", {}), own, everywhere] for m in models]
    known = {*DEFAULTS, "t", "lambda", "normalize", "int8_mask"}  # the last is about memory
    bad = [*y, *(k for level in levels for x in level for k in x if k not in known)]
    if bad or method not in METHODS:
        die(f"{path}: {bad[0] if bad else method} is not supported")

    def spec(k, default, *levels):
        """all levels as one list of filters, of which the first that fits counts"""
        found = [level[k] for level in levels if k in level] + [default]
        plain = [x if isinstance(x, list) and isinstance(x[0], dict) else [{"value": x}] for x in found]
        return sum(plain, [])
    keep = [i for i, name in enumerate(inputs) if name != base or method == "linear"]
    o = {"inputs": [inputs[i] for i in keep], "method": method, "dtype": dtype}
    if method == "slerp":  # from the base to the other
        return o | {"inputs": [base, *o["inputs"]], "t": spec("t", 0.5, own, everywhere)}
    o |= {k: [spec(k, d, *levels[i]) for i in keep] for k, d in DEFAULTS.items()}
    return o | {"t": None, "base": base if method != "linear" else None,
                "lam": spec("lambda", 1.0, own, everywhere), "normalize": everywhere.get("normalize")}

def merge_args(argv=None):
    p = argparse.ArgumentParser("vl_merge.py merge", allow_abbrev=False, description="merges weights")
    p.error, add = die, p.add_argument
    add("inputs", nargs="*", help="folders, or hub ids in the local cache: models, PEFT adapters (LoRA)")
    add("--out", required=True, help="a folder that does not exist")
    add("--recipe", help="mergekit's YAML, instead of models and the flags of a method")
    add("--method", default="linear", choices=METHODS)
    add("--t", nargs="+", default=["0.5"], help="share of the second of two models, or the weight of each: "
        "0.4 | 0:0.2,16:0.6 over layers | mlp=0.5,0.3 by part of a name")
    add("--base", help="what the models were tuned from, for task vectors")
    add("--density", default=1.0, help="share of a task vector that is kept")
    add("--epsilon", default=0.15, help="della: density +- epsilon by rank")
    add("--gamma", default=0.01, help="breadcrumbs: share of the largest that is dropped")
    add("--lam", default=1.0, help="factor of the merged task vector")
    add("--dtype", choices=[*SHORT], help="of the output; default: the first model's")
    add("--seed", type=int, default=0, help="of what dare and della drop")
    add("--vision", action="store_true", help="merge vision towers and projectors; default: the first VLM's")
    add("--vocab", default="first", choices=["first", "shared"], help="shared: merge rows of tokens all have")
    add("--no-checksums", dest="checksums", action="store_false", help="no sha256 in merge.json")
    add("--dry-run", action="store_true", help="print the plan")
    return p.parse_args(argv)

def merge_main(argv=None):
    a = vars(merge_args(argv))
    a["t"] = a["t"] if len(a["t"]) > 1 else a["t"][0]
    file = a.pop("recipe")
    if bool(file) == bool(a["inputs"]):
        die("expected models to merge, or a --recipe")
    merge(**(a | recipe(file) if file else a))

if __name__ == "__main__":
    merge_main(sys.argv[2:])
