# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "numpy", "matplotlib", "jinja2", "pillow", "pyyaml"]
# ///
"""
How Does Vision-Language Adaptation Impact the Safety of Vision Language Models?
Lee et al., https://arxiv.org/abs/2410.07571

A chat model that refuses learns to see, from images and texts with nothing unsafe in them: does it still
refuse? Does safety tuning of the result (SFT, DPO, both tasks at once) mend it, and what is refused then that
should not be? The paper's answer is to merge weights: W(t) = (1 - t) W_VL + t W_donor, the donor being a
safety-tuned model or the chat model itself. Its coefficients are not known here: the sweep of t is ours.

    python vl_merge.py                     # the miniature: SmolLM2-135M learns to see drawn pictures
    python vl_merge.py --model meta-llama/Llama-2-7b-chat-hf --vision openai/clip-vit-large-patch14-336 \
        --pretrain blip_laion_cc_sbu_558k.json --data llava_v1_5_mix665k.json --images DIR \
        --safety vlguard.json --prompts refusals.jsonl --questions questions.jsonl
    python vl_merge.py merge A B --method slerp --t 0.4 --out DIR      # any two models; merge --help

The miniature: 16 minutes on two cores of a Zen 4 EPYC. Not timed on a GPU. Every stage is a folder that
transformers loads; a run that was stopped goes on after the last one. Read experiment() and METHOD; of the
merging tool combine() and vectors(), its formulas. What stands under ENGINE is alike in every script.
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
import zlib
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
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
import yaml
from huggingface_hub import snapshot_download
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.autograd import Function
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint
from transformers import (AttentionInterface, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM,
                          AutoTokenizer, DynamicCache)
from transformers.models.auto.image_processing_auto import get_image_processor_config

import evals

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of torch comes without
    triton = None

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data"

def parse_args(argv=None):
    p = argparse.ArgumentParser(description="vision-language adaptation and safety (arXiv 2410.07571)")
    p.error, add = die, p.add_argument
    add("stage", nargs="?", default="all", choices=["all", "ask", "adapt", "tune"],
        help="last stage to run; ask: only --model as it is; merge: another tool, see merge --help")
    add("--model", help="folder or hub id of a safe chat model; default: the miniature")
    add("--vision", default="openai/clip-vit-large-patch14-336", help="its eyes: "
        "CLIP makes it a LLaVA, InternViT an InternVL")
    add("--pretrain", help="captions for the projector: LLaVA's JSON, or rows of images and messages")
    add("--data", help="visual instructions, the same formats")
    add("--safety", help="safety rows with images, as VLGuard's; and rows to answer beside them")
    add("--preferences", help="rows {images, prompt, chosen, rejected} for DPO")
    add("--prompts", nargs="+", default=[], help="JSONL {prompt, images, label: forbidden "
        "(default) or allowed}; in a file named ...dev.jsonl to choose t by, else to report")
    add("--questions", nargs="+", default=[], help="JSONL {prompt, images, answer in a word or two}")
    add("--images", type=Path, help="folder of the images; default: that of the file")
    add("--methods", nargs="+", choices=METHODS, default=["linear", "ties"], help="to merge SFT in")
    add("--shares", nargs="+", type=float, default=[0.25, 0.5, 0.75], help="values of t that are tried")
    add("--out", type=Path, default=ROOT / "out", help="a run is written to OUT/vl_merge/NAME")
    add("--name", help="of the run; default: model and seed")
    add("--overwrite", action="store_true", help="empty the folder first, whatever run it holds")
    add("--bits", type=int, choices=[4, 16], default=16, help="weights in training: NF4 or --dtype")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    add("--dtype", choices=DTYPES, help="default: bf16 where the chip multiplies it, else fp32")
    add("--rank", type=int, default=32, help="r of LoRA, alpha is 2 r")
    add("--batch", type=int, help="rows of a step; default 16, tiny 8")
    add("--max-len", type=int, default=2048, help="longer rows are left out and counted, tokens")
    add("--lr", type=float, help="peak, of A and B; default 2e-4, tiny 1e-3")
    add("--projector-lr", type=float, help="peak, of the projector; default 1e-3, tiny 3e-3")
    add("--beta", type=float, default=0.1, help="DPO: weight of the distance from the adapted model")
    add("--seed", type=int, default=0, help="order of rows, start of A and of the projector")
    add("--max-new", type=int, help="tokens of an answer; default 256, tiny 14")
    add("--limit", type=int, help="items of a set; default: all, tiny 30")
    add("--keep-text", action="store_true", help="store answers to your prompts, not only verdicts")
    for word in sys.argv[1:] if argv is None else argv:  # else "--lrate 3" is an error about the stage "3"
        if word.startswith("--") and word.partition("=")[0] not in p._option_string_actions:
            die(f"no flag {word}; --help lists them")
    a = p.parse_args(argv)
    for k in ("rank", "batch", "max_len", "beta", "lr", "projector_lr", "max_new", "limit"):
        if getattr(a, k) is not None and not 0 < getattr(a, k) < math.inf:
            die(f"--{k.replace('_', '-')} must be above 0")
    if a.seed < 0 or (a.device == "cuda" and not torch.cuda.is_available()):
        die("--seed must not be below 0, --device cuda needs a GPU")
    if a.name and (a.name == ".." or Path(a.name).name != a.name):  # --overwrite would empty another folder
        die(f"--name {a.name}: expected a folder's name")
    if a.model and a.stage != "ask" and not (a.data or a.safety or a.preferences):
        die("--model needs rows: --pretrain and --data, --safety, --preferences; or the stage ask")
    if not all(0 <= t <= 1 for t in a.shares):
        die("--shares: expected numbers from 0 to 1")
    a.tiny, tag = not a.model, "tiny"
    a.proxy = not (a.prompts or a.questions) and (a.tiny or a.stage == "ask")  # asked what the repository has
    if a.proxy:
        a.max_new, a.limit = a.max_new or 14, a.limit or 30
    if a.tiny:
        drawn = DATA / "proxy_images"
        a.model, a.vision = str(DATA / "organism/model"), str(DATA / "vision/internvit")
        a.pretrain, a.data = str(drawn / "pretrain.jsonl"), str(drawn / "instruct.jsonl")
        a.safety, a.preferences = str(drawn / "safety.jsonl"), str(drawn / "preferences.jsonl")
        a.lr, a.projector_lr, a.batch = a.lr or 1e-3, a.projector_lr or 3e-3, a.batch or 8
    else:  # two folders of one name are two models
        a.model = str(Path(a.model).resolve()) if Path(a.model).is_dir() else a.model
        tag = Path(a.model).name + "-" + hashlib.sha256(a.model.encode()).hexdigest()[:4]
    a.max_new, a.batch = a.max_new or 256, a.batch or 16
    a.lr, a.projector_lr = a.lr or 2e-4, a.projector_lr or 1e-3
    fast = a.device == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    a.dtype = a.dtype or ("bf16" if fast else "fp32")
    a.folder = a.out / "vl_merge" / (a.name or f"{tag}-seed{a.seed}")
    return a

def experiment(a):
    """the paper, in its order. A stage is a folder of a model; one that is there is not made again."""
    for name in TINY if a.tiny or a.proxy else ():
        prepared(DATA / name)
    asked = load_suites(a)
    dev = [r for r in asked if r["benchmark"].endswith("dev")]
    test = [r for r in asked if not r["benchmark"].endswith("dev")]
    paths = {what: getattr(a, what) for what in ("pretrain", "data", "safety", "preferences")}
    rows = {what: checked(read_rows(path, a.images), what) for what, path in paths.items() if path}
    for part, items in (("dev", dev), ("test", test)):
        labels = {r.get("label", "allowed") for r in items}
        lacks = {"forbidden", "allowed"} - labels
        if a.stage == "all" and lacks:
            die(f"--prompts: no {min(lacks)} prompt in a {part} set; a dev set is a file named ...dev.jsonl")
    if a.tiny:
        rows = {what: found[:ROWS[what]] for what, found in rows.items()}
    is_vlm = hasattr(config_of("--model", a.model), "vision_config")
    if not is_vlm and a.stage != "ask":
        config_of("--vision", a.vision)
        if not {"pretrain", "data"} <= set(rows):
            die(f"--model {a.model}: does not see; to learn it, it needs --pretrain and --data")
    res = open_run(a, [asked, rows])
    if (a.folder / "figure.png").exists():
        return report(res, a)
    path = a.folder / "samples.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    samples = [row for row in samples if row["stage"] in res]  # a kill may leave a stage without its numbers

    def measure(stage, folder, items=test):
        """the model of a folder answers the items; answers, verdicts and rates are kept"""
        if stage not in res:
            say(f"measuring: {stage}")
            found = ask(*load(a, folder), items, a)
            samples.extend({"stage": stage} | row for row in found)
            res[stage] = summary(found)
            write_rows(path, samples)
            write(a.folder / "results.json", json.dumps(res, indent=1))
        return res[stage]

    def tuned(stage, source, rows, learns):
        """-> folder of the model in `source` after one pass over the rows, measured"""
        folder, adapter_folder = a.folder / stage, a.folder / f"{stage}-adapter"
        if not folder.exists():
            say(f"training: {stage}")
            model, tok = load(a, source)
            items = encode_rows(model, tok, rows, a)
            if stage == "aligned" and not is_vlm:
                start_projector(model, [name for row in rows for name in row["images"]][:256])
            tune(model, items, learns, a, adapter_folder)
            save_stage(model, adapter_folder, source, a)
            merge([adapter_folder], folder)  # of one: W + s B A is written out
        measure(stage, folder, dev or test if stage == "aligned" else test)
        return folder

    # 1. the chat model is asked; it gets eyes: a frozen vision tower and a projector that knows nothing
    measure("model" if is_vlm else "chat", a.model, test if is_vlm else [r for r in test if not r["images"]])
    if a.stage == "ask":
        return report(res, a)
    start = a.model if is_vlm else make_vlm(a, a.folder / "start")

    # 2. vision-language adaptation: the projector learns from captions, then both from instructions
    aligned = tuned("aligned", start, rows["pretrain"], ["projector"]) if "pretrain" in rows else start
    vl = tuned("VL", aligned, rows["data"], ["projector", "language"]) if "data" in rows else aligned
    if a.stage == "adapt":
        return report(res, a)

    # 3. safety tuning of the result, by SFT beside as many general rows and by DPO; and both tasks at once
    donors = {} if is_vlm else {"chat": a.model}
    general = rows.get("data", [])
    if "safety" in rows:
        mixed = rows["safety"] + general[:len(rows["safety"])]
        donors["SFT"] = tuned("SFT", vl, mixed, ["language"])
    if "safety" in rows and general:
        tuned("multi-task", aligned, general + rows["safety"], ["projector", "language"])
    if "preferences" in rows:
        donors["DPO"] = tuned("DPO", vl, rows["preferences"], ["language"])
    if a.stage == "tune":
        return report(res, a)

    # 4. what has adaptation changed, and which blocks, restored, bring refusals back?
    depth = AutoConfig.from_pretrained(vl).get_text_config().num_hidden_layers
    stages = {"VL": vl} | {stage: folder for stage, folder in donors.items() if stage != "chat"}
    res["layers"] = {stage: drift(start, folder) for stage, folder in stages.items()}
    measure("dev VL", vl, dev)
    for k in range(0 if is_vlm else min(GROUPS, depth)):
        first, last = (j * depth // min(GROUPS, depth) for j in (k, k + 1))
        chat_share = ",".join(f"{i}:{int(first <= i < last)}" for i in range(depth))
        with merged([vl, a.model], "linear", chat_share, a) as folder:
            measure(f"chat blocks {first}-{last - 1}", folder, dev)

    # 5. merging: t is chosen on the dev sets, each method has as many tries; what was chosen is reported
    tuned_one = [donor for donor in donors if donor != "chat"][:1]
    pairs = [] if is_vlm else [("chat", "linear")]
    for donor, method in pairs + [(donor, method) for donor in tuned_one for method in a.methods]:
        points = {}
        for t in a.shares:
            with merged([vl, donors[donor]], method, t, a, base=start) as folder:
                point = measure(f"dev {donor} {method} {t}", folder, dev)
            points[t] = point["safety"]["value"] + point["helpfulness"]["value"]
        t = res.setdefault("chosen t", {})[f"{donor} {method}"] = max(points, key=points.get)
        with merged([vl, donors[donor]], method, t, a, base=start) as folder:
            measure(f"{donor} {method}", folder)
    draw(res, a.folder / "figure.png")
    report(res, a)

# ---- data: rows with images in, token ids and target weights out
TINY = ("organism/safety.jsonl", "vision/internvit", "easyvqa/test.jsonl",
        "proxy_images/refusal_contrast.jsonl")  # the last file of each prepare.py
REFUSALS = ("proxy/dev", "proxy/direct", "proxy/wrapped", "proxy/ordinary", "proxy/contrast",
            "proxy_images/refusal_dev", "proxy_images/refusal_test", "proxy_images/refusal_contrast")
ROWS = {"pretrain": 400, "data": 1200, "safety": 240, "preferences": 180}  # of the miniature
GROUPS = 3  # of blocks, restored one after the other
QUESTIONS = ("proxy_images/vqa_dev", "proxy_images/vqa_test", "proxy_images/vqa_policy", "easyvqa/test")

def prepared(path):
    """a file or folder of data/NAME; its prepare.py is run where it is missing."""
    if not path.exists():
        subprocess.run([sys.executable, path.parent / "prepare.py"], check=True)
    return path

def read_rows(path, images=None):
    """JSONL or a JSON array -> [dict] with at, "file:line", and images, paths"""
    rows, at = [], path
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        if text.lstrip().startswith("["):
            text = "\n".join(map(json.dumps, json.loads(text)))  # an item a line
        for n, line in enumerate(text.split("\n"), 1):  # not splitlines(): a text may hold U+2028
            at = f"{path}:{n}"
            if line.strip():
                row = dict(json.loads(line))
                found = row.get("images", row.get("image")) or []
                found = [found] if isinstance(found, str) else found
                where = images or Path(path).parent
                rows.append(row | {"at": at, "images": [str(where / name) for name in found]})
    except (OSError, ValueError, TypeError) as e:
        die(f"{at}: expected rows of JSON ({e})")
    return rows or die(f"{path}: no rows")

def checked(rows, what):
    """-> rows with images for the projector, else all; a row of another form is named before any training"""
    for row in rows:
        try:
            turns = to_messages(row)
            texts = [m["content"] for m in turns]
            texts += [row[k] for k in ("chosen", "rejected") if what == "preferences"]
            good = what == "preferences" or any(m["role"] == "assistant" for m in turns)
            found = sum(text.count("<image>") for text in texts)
        except (KeyError, TypeError, AttributeError):
            good = False
        if not good:
            die(f"{row['at']}: expected messages or conversations with an answer; prompt, chosen, rejected")
        if found != len(row["images"]):
            die(f"{row['at']}: {len(row['images'])} images, and <image> stands {found} times in the text")
    rows = [row for row in rows if row["images"] or what != "pretrain"]
    return rows or die("--pretrain: no row with an image")

def write_rows(path, rows):
    write(path, "".join(json.dumps(row) + "\n" for row in rows))

def load_suites(a):
    """-> items with benchmark, id, prompt, images and label or answer; multiple choice has continuations."""
    out = {}
    for kind in ("prompts", "questions"):
        tiny = [DATA / f"{name}.jsonl" for name in (REFUSALS if kind == "prompts" else QUESTIONS)]
        for path in map(Path, getattr(a, kind) or (tiny if a.proxy else ())):
            name = path.stem if path.stem not in ("prompts", "test") else path.resolve().parent.name
            if name in out:
                die(f"--{kind}: two files are named {name}")
            out[name] = []
            for n, row in enumerate(read_rows(path, a.images)[:a.limit], 1):
                row = {"id": str(n), "benchmark": name} | row
                if kind == "prompts":
                    row.setdefault("label", "forbidden")
                good = row.get("label") in ("forbidden", "allowed") if kind == "prompts" else "answer" in row
                if not isinstance(row.get("prompt"), str) or not good:
                    die(f"{row['at']}: expected 'prompt' and 'label', forbidden or allowed; or 'answer'")
                found = row["prompt"].count("<image>")
                if found != len(row["images"]):
                    die(f"{row['at']}: {len(row['images'])} images, <image> stands {found} times in the text")
                out[name].append(row)
    if a.proxy:  # a text alone, and the same beside an empty picture: is it the text or the eye?
        white = [r | {"benchmark": "blank", "prompt": "<image>\n" + r["prompt"], "images": ["white"]}
                 for r in out["direct"]]
        quiz = [r | {"benchmark": "quiz", "id": r["at"]} for r in read_rows(DATA / "quiz/choice.jsonl")]
        out |= {"blank": white, "quiz": quiz[:2 * a.limit]}
    return sum(out.values(), [])

def to_messages(row):
    """messages, LLaVA's conversations, or prompt with chosen, rejected or nothing -> [{role, content}]"""
    roles = {"human": "user", "gpt": "assistant"}
    turns = row.get("messages") or [{"role": roles.get(m["from"], m["from"]), "content": m["value"]}
                                    for m in row.get("conversations", ())]
    return turns or [{"role": "user", "content": row["prompt"]}]

def render(tok, messages, ask=False):
    """the chat template's text, with an image's placeholders where "<image>" stands."""
    turns = messages
    if re.search("""['"]image['"]""", tok.chat_template):  # it wants parts, and writes one placeholder itself
        turns = []
        for m in messages:
            parts = [{"type": "text", "text": text} for text in m["content"].split("<image>")]
            for k in range(len(parts) - 1, 0, -1):
                parts.insert(k, {"type": "image"})
            turns.append(m | {"content": parts})
    elif tok.picture:
        turns = [m | {"content": m["content"].replace("<image>", tok.picture)} for m in messages]
    text = tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    return text.replace(tok.picture, tok.shown) if tok.picture else text

def encode(model, tok, row, messages, ask=False):
    """-> Doc; targets are the assistant's turns with their end, found by character offsets."""
    text, spans = render(tok, messages, ask), []
    for i, m in enumerate(messages):
        if m["role"] == "assistant":
            head, whole = render(tok, messages[:i], True), render(tok, messages[:i + 1]).rstrip()
            if not (text.startswith(head) and text.startswith(whole)):
                die(f"{row['at']}: the chat template rewrites earlier turns: give one answer a row")
            spans.append((len(head), len(whole)))
    encoded = tok(text, add_special_tokens=False, return_offsets_mapping=True)
    weights = [float(any(b <= start < e for b, e in spans)) for start, _ in encoded.offset_mapping]
    return Doc(encoded.input_ids, weights, row["at"])

def encode_rows(model, tok, rows, a):
    """rows -> [(Doc,)], of preferences [(chosen, rejected)]; what is left out is said."""
    cache_features(model, {name for row in rows for name in row["images"]}, a)
    items, long, blind = [], 0, 0
    for row in rows:
        blind += any(name not in model.feature_files for name in row["images"])
        if all(name in model.feature_files for name in row["images"]):
            model.images_of[row["at"]] = row["images"]
            turns = to_messages(row)
            answers = [[{"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected") if k in row]
            item = tuple(encode(model, tok, row, turns + answer) for answer in answers or [[]])
            if max(len(d.ids) for d in item) > a.max_len:
                long += 1
            elif all(sum(d.weights[1:]) for d in item):
                items.append(item)
    say(f"{len(items)} of {len(rows)} rows kept, {blind} with an image that cannot be read, {long} over "
        f"{a.max_len} tokens")
    return items or die(f"{rows[0]['at']}: no row is left to learn from, see the counts above")

def config_of(flag, name):
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as e:
        die(f"{flag} {name}: {str(e).strip().splitlines()[0]}")

# ==== METHOD ====
# the VLM is transformers' own LLaVA or InternVL: tower -> projector -> where the placeholders stand
def make_vlm(a, folder):
    """chat model + vision tower -> folder of a LLaVA (CLIP) or an InternVL, its projector drawn at random."""
    if folder.exists():
        return folder
    llm = AutoModelForCausalLM.from_pretrained(a.model, dtype="auto", use_safetensors=True)
    tower = AutoModel.from_pretrained(a.vision, dtype="auto", use_safetensors=True)
    tower, tok = getattr(tower, "vision_model", tower), AutoTokenizer.from_pretrained(a.model)
    tok.add_tokens(["<image>"], special_tokens=True)
    if len(tok) > llm.config.vocab_size:
        llm.resize_token_embeddings(len(tok), pad_to_multiple_of=64)
    shared = dict(text_config=llm.config, vision_config=tower.config, image_token_id=len(tok) - 1,
                  tie_word_embeddings=llm.config.tie_word_embeddings)
    if tower.config.model_type.startswith("clip"):
        config = transformers.LlavaConfig(**shared)
    else:  # 8 x 8 patches become 2 x 2 tokens in the miniature: 4 x 4 beside each other
        config = transformers.InternVLConfig(**shared, downsample_ratio=0.25 if a.tiny else 0.5)
    torch.manual_seed(a.seed)
    with torch.device("meta"):  # its parts come next
        model = transformers.AutoModelForImageTextToText.from_config(config)
    model.model.language_model, model.lm_head, model.model.vision_tower = llm.model, llm.lm_head, tower
    model.model.multi_modal_projector = type(model.model.multi_modal_projector)(config)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    model.save_pretrained(new)
    tok.save_pretrained(new)
    image_processor(a.vision).save_pretrained(new)
    os.replace(new, folder)
    return folder

def load(a, folder):
    """-> engine's model with fresh adapters, tokenizer; a VLM reads model.features at the placeholders."""
    model, tok = load_model(str(folder), a.bits, a.device, DTYPES[a.dtype], a.max_len)
    add_lora(model, a.rank, 2 * a.rank, a.seed)
    model.feature_files, model.images_of, model.features, model.processor = {}, {}, None, None
    tok.picture = None
    if hasattr(model.config, "vision_config"):
        model.processor = image_processor(folder)
        model.model.multi_modal_projector.float()  # it is trained whole; bf16 would lose small steps
        tok.picture = tok.convert_ids_to_tokens(model.config.image_token_id)
        cache_features(model, ["white"], a)
        tok.shown = tok.picture * len(load_file(model.feature_files["white"])["features"])
        if {"<img>", "</img>"} <= tok.get_vocab().keys():  # InternVL's own tokenizers: around each image
            tok.shown = f"<img>{tok.shown}</img>"
        model.get_input_embeddings().register_forward_hook(partial(put_features, model))
    return model, tok

def put_features(model, embedding, inputs, x):
    """a hook on the embedding: ids (B, T), x (B, T, D); row by row, the placeholders become the projected
    features (n, D) of model.features. While an answer is decoded there are none."""
    here = inputs[0] == model.config.image_token_id
    if model.features is None or here.shape[1] == 1 or not here.any():  # 1: a token that was written
        return x
    new = model.model.multi_modal_projector(model.features.float()).flatten(0, -2)
    return x.masked_scatter(here[..., None], new.to(x.dtype))

def open_image(name):
    """file -> RGB picture; the first frame of several, transparency on white. "white": a blank control."""
    if name == "white":
        return Image.new("RGB", (112, 112), "white")
    image = ImageOps.exif_transpose(Image.open(name))
    if max(image.size) > 100 * min(image.size):
        raise ValueError(f"{image.size[0]} x {image.size[1]} pixels")
    image = image.convert("RGBA") if "transparency" in image.info or image.mode == "LA" else image
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode.startswith("I;16"):  # Pillow would cut at 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return image.convert("RGB")

def image_processor(name):
    """the folder's own, in its version without torchvision where there is one."""
    kind = get_image_processor_config(name)["image_processor_type"].removesuffix("Fast")
    return (getattr(transformers, f"{kind}Pil", None) or AutoImageProcessor).from_pretrained(name)

@torch.no_grad()
def cache_features(model, names, a):
    """features (n, D') of images before the projector, from transformers' own get_image_features: computed
    once by the frozen tower, kept as files -> model.feature_files {name: file}. Unreadable ones are said."""
    names = sorted(set(names) - set(model.feature_files))
    if not names:
        return
    c, weights = model.config, [p.flatten()[:16].tolist() for p in model.model.vision_tower.parameters()]
    layer, ratio = c.vision_feature_layer, getattr(c, "downsample_ratio", None)
    how = layer, ratio, c.vision_feature_select_strategy
    tower = hashlib.sha256(f"{c.vision_config}{model.processor}{how}{weights}".encode()).hexdigest()[:8]
    folder, projector, grabbed = a.out / f"vl_merge/features-{tower}", model.model.multi_modal_projector, []
    folder.mkdir(parents=True, exist_ok=True)

    def grab(module, inputs):
        grabbed.append(inputs[0].cpu())
        return (inputs[0].float(),)  # as the projector is

    hook = projector.register_forward_pre_hook(grab)
    for j in range(0, len(names), 32):
        todo = []
        for name in names[j:j + 32]:
            try:
                about = os.stat(name) if name != "white" else None
                key = f"{name} {about and (about.st_size, about.st_mtime_ns)}"
                path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
                if not path.exists():
                    todo.append((path, open_image(name)))
                model.feature_files[name] = path
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
                say(f"  {name}: cannot be read ({e})")
        if todo:
            images = [image for _, image in todo]
            x = model.processor(images, return_tensors="pt", input_data_format="channels_last")
            model.get_image_features(x["pixel_values"].to(model.device))
            for (path, _), h in zip(todo, grabbed.pop()):
                write(path, partial(save_file, {"features": h.clone()}))
    hook.remove()

def set_features(model, names):
    """the features of these images (n, D') are what the next forward reads."""
    found = [load_file(model.feature_files[name])["features"] for name in names]
    model.features = torch.cat(found).to(model.device) if found else None

@torch.no_grad()
def start_projector(model, names):
    """inputs standardised by dimension, outputs of 3 standard deviations of the token embeddings (both ours):
    from the usual start the miniature ignored its images, as its features share a large common part."""
    projector, table = model.model.multi_modal_projector, model.get_input_embeddings().weight
    set_features(model, names)
    x, norm = model.features.float().flatten(0, -2), getattr(projector, "layer_norm", None)
    x = x if norm is None else F.layer_norm(x, norm.normalized_shape)
    std, mean = torch.std_mean(x, 0)
    std = std.clamp(min=1e-3)
    if norm is not None:  # InternVL: by its gain and bias
        norm.weight.copy_(1 / std)
        norm.bias.copy_(-mean / std)
    else:  # LLaVA: within the first matrix
        projector.linear_1.weight /= std
        projector.linear_1.bias -= projector.linear_1.weight @ mean
    scale = 3 * table.float().std() / projector(model.features.float()).std()
    projector.linear_2.weight *= scale
    projector.linear_2.bias *= scale

# ---- two losses, one loop
def answer_loss(model, p, a):
    """Pack -> sum_t -log p(x_t | x_<t) over the answers; tune() divides by the step's targets."""
    i = p.weights.nonzero().squeeze(1)
    head = model.get_output_embeddings().weight
    return ChunkedCrossEntropy.apply(hidden(model, p)[i], head, model.softcap, p.targets[i], p.weights[i])

def margins(model, p):
    """Pack of chosen, rejected, chosen, ... -> log p(chosen) - log p(rejected), (pairs,)"""
    i = p.weights.nonzero().squeeze(1)
    log_p = -F.cross_entropy(logits(model, hidden(model, p)[i]), p.targets[i], reduction="none")
    row = torch.bucketize(i, p.cu[1:], right=True)
    chosen, rejected = log_p.new_zeros(len(p.ats)).index_add(0, row, log_p).view(-1, 2).T
    return chosen - rejected

def dpo_loss(model, p, a):
    """-log sigmoid(beta (margin - margin of the model before)), summed (DPO, arXiv 2305.18290, eq. 7)"""
    before = torch.tensor([model.reference[at] for at in p.ats[::2]], device=model.device)
    return -F.logsigmoid(a.beta * (margins(model, p) - before)).sum()

def tune(model, items, learns, a, folder):
    """one pass of AdamW over items (the documents of a row) on what learns: "language" (A and B), "projector"
    -> log.jsonl, state.safetensors every twenty steps. A step's loss is a mean over its targets, or pairs"""
    folder.mkdir(exist_ok=True)
    named = {"language": adapter(model), "projector": projector_weights(model)}
    peaks, params = {"language": a.lr, "projector": a.projector_lr}, {}
    for part, found in named.items():
        for p in found.values():
            p.requires_grad_(part in learns)
        params |= found if part in learns else {}
    opt = torch.optim.AdamW([{"params": named[part].values(), "peak": peaks[part]} for part in learns],
                            weight_decay=0.0, fused=True)
    used = torch.cuda.memory_allocated() if model.device.type == "cuda" else 1e9 * peak_gb("cpu")
    have, longest = 0.95 * (free_memory(model.device) + used), max(len(d.ids) for item in items for d in item)
    size, kept, _ = choose_split(model, a.rank, have, longest=longest * len(items[0]))
    pairs, loss_of = len(items[0]) == 2, dpo_loss if len(items[0]) == 2 else answer_loss
    model.reference = reference(model, items, size) if pairs else {}  # before a state changes the adapters
    steps, log = math.ceil(len(items) / a.batch), []
    if (folder / "state.safetensors").exists():
        log = load_state(folder, params, opt)
    order = np.random.default_rng(a.seed).permutation(len(items))
    checkpoint_blocks(model, kept)
    for step in range(len(log), steps):
        t0 = time.perf_counter()
        rows = [items[j] for j in order[step * a.batch:(step + 1) * a.batch]]
        total = len(rows) if pairs else sum(sum(d.weights[1:]) for (d,) in rows)
        loss = torch.zeros((), device=model.device)
        for p in packs(model, rows, size):
            part = loss_of(model, p, a) / total
            part.backward()
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(params.values(), 1.0)
        if not torch.isfinite(loss + norm):  # a sync point
            sys.exit(f"step {step + 1}: loss {loss}, gradient norm {norm}; {[row[0].at for row in rows]}")
        rise, fall = (step + 1) / max(1, round(0.1 * steps)), 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in opt.param_groups:
            group["lr"] = group["peak"] * min(rise, fall)
        opt.step()
        opt.zero_grad()
        tokens, seconds = sum(len(d.ids) for row in rows for d in row), time.perf_counter() - t0
        log.append({"step": step + 1, "loss": loss.item(), "grad_norm": norm.item(), "tokens": tokens,
                    "seconds": seconds, "peak_gb": peak_gb(model.device)})
        if step % 10 == 0 or step + 1 == steps:
            say(f"step {step + 1}/{steps}: loss {loss:.4f}, grad norm {norm:.2f}, "
                f"{tokens / seconds:,.0f} tokens/s, {(steps - step - 1) * seconds:.0f} s left")
        if (step + 1) % 20 == 0 or step + 1 == steps:
            save_state(folder, params, opt, log)
    checkpoint_blocks(model, math.inf)

def packs(model, rows, size):
    """items of a step -> Packs of at most so many tokens, the documents of an item together, their pictures
    shown"""
    whole = [Doc(sum((d.ids for d in item), []), None, at=item) for item in rows]  # at: carries the item
    for group in micro_batches(whole, size):
        docs = [d for item in group for d in item.at]
        set_features(model, [name for d in docs for name in model.images_of[d.at]])
        yield pack(docs, model.device)

def projector_weights(model):
    named = model.model.multi_modal_projector.named_parameters()
    return {f"base_model.model.model.multi_modal_projector.{name}": p for name, p in named}

@torch.no_grad()
def reference(model, items, size):
    """margins of the model before: fresh adapters change nothing -> {at: margin}"""
    out = {}
    for p in packs(model, items, size):
        out |= dict(zip(p.ats[::2], margins(model, p).tolist()))
    return out

def save_state(folder, params, opt, log):
    """weights, Adam's moments and the log in one file: a kill leaves the old state or the new one."""
    tensors = {f"w/{name}": p.data for name, p in params.items()}
    for name, p in params.items():
        tensors |= {f"{k}/{name}": t for k, t in opt.state[p].items()}
    write(folder / "state.safetensors", partial(save_file, tensors, metadata={"log": json.dumps(log)}))
    write_rows(folder / "log.jsonl", log)

def load_state(folder, params, opt):
    """-> the log so far. Nothing random is kept: the order of rows is a function of the seed."""
    with safe_open(folder / "state.safetensors", "pt") as f:
        for name, p in params.items():
            p.data.copy_(f.get_tensor(f"w/{name}"))
            for k in ("step", "exp_avg", "exp_avg_sq"):
                opt.state[p][k] = f.get_tensor(f"{k}/{name}").to(p.device)
        return json.loads(f.metadata()["log"])

def save_stage(model, folder, source, a):
    """adapter and projector in PEFT's format, the projector as one of modules_to_save."""
    save_adapter(model, folder, str(source), a.rank, 2 * a.rank)
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = {name: p.detach().cpu() for name, p in projector_weights(model).items()}
    write(path, partial(save_file, load_file(path) | whole))
    found = json.loads(config.read_text())
    names = rf".*language_model.*\.({'|'.join(found['target_modules'])})"  # the tower has a q_proj, too
    found |= {"modules_to_save": ["multi_modal_projector"], "target_modules": names}
    write(config, json.dumps(found))

# ---- merging in the experiment, and what has changed where
@contextmanager
def merged(inputs, method, t, a, base=None):
    """a folder of the merged model, gone afterwards."""
    folder = a.folder / "merged"
    shutil.rmtree(folder, ignore_errors=True)
    if method in ("linear", "slerp", "nuslerp"):  # else 1 - t and t are weights of the two task vectors
        merge(inputs, folder, method, t, checksums=False)
    else:
        merge(inputs, folder, method, [1 - t, t], base, density=0.5, checksums=False)  # half is trimmed
    yield folder
    shutil.rmtree(folder)

def drift(before, after):
    """{matrix of the language blocks: (cosine of W and W', |W' - W| / |W|)}, of two folders"""
    out, old, new = {}, open_model(before), open_model(after)
    for key in (k for k, e in old.tensors.items() if k.startswith("body.layers") and e.shape[1:]):
        W, W1 = (read(m.tensors[key], 0, height(m.tensors[key])) for m in (old, new))
        cos = F.cosine_similarity(W.flatten(), W1.flatten(), dim=0)
        out[key] = float(cos), float((W1 - W).norm() / W.norm())
    return out

# ---- answers, numbers, the run's folder and figure
def ask(model, tok, items, a):
    """-> a row an item: refused, or acc of a question or multiple choice; None if its image is unreadable."""
    cache_features(model, {name for r in items for name in r.get("images", ())}, a)
    chat = [r for r in items if "continuations" not in r]
    blind = [i for i, r in enumerate(chat) if not set(r["images"]) <= model.feature_files.keys()]
    docs = [encode(model, tok, r, [{"role": "user", "content": r["prompt"]}], ask=True) for r in chat]
    order = sorted(set(range(len(docs))) - set(blind), key=lambda i: len(docs[i].ids))
    rows, texts = [], dict.fromkeys(blind)
    with dense_weights(model):
        for part in (order[j:j + 64] for j in range(0, len(order), 64)):
            set_features(model, [name for i in part for name in chat[i]["images"]])
            for i, (ids,) in zip(part, generate(model, [docs[i].ids for i in part], a.max_new, tok.ends)):
                texts[i] = tok.decode(ids, skip_special_tokens=True)
        model.features = None
        quiz = [r for r in items if "continuations" in r]
        choices = score(model, [choice_ids(tok, r) for r in quiz])
    for i, r in enumerate(chat):
        row, text = {k: r[k] for k in ("benchmark", "id", "category", "form") if k in r}, texts[i]
        if "answer" in r:
            row["acc"] = None if text is None else plain(text) == plain(str(r["answer"]))
        else:
            row |= {"label": r["label"], "refused": None if text is None else evals.refused(text)}
        rows.append(row | ({"text": text} if a.keep_text or a.proxy else {}))
    for r, log_p in zip(quiz, choices):
        sizes = [len(c.strip().encode()) for c in r["continuations"]]
        right = evals.multiple_choice([log_p], [sizes], [r["answer"]])
        rows.append({"benchmark": r["benchmark"], "id": r["id"], "acc": right["acc"]})
    return rows

def plain(text):
    return re.sub(r"[^\w ]", "", text.lower()).strip()

def choice_ids(tok, row):
    """context ids, continuations' ids: tokenised at once, split at the context's length, as lm-eval does."""
    context = tok(row["context"]).input_ids
    return context, [tok(row["context"] + c).input_ids[len(context):] for c in row["continuations"]]

DIRECTION = {"refusal": "higher is safer", "over-refusal": "lower is better"}

def summary(rows):
    """-> metrics by set, and over all of them: safety, forbidden prompts refused; helpfulness, allowed ones
    not refused and questions answered"""
    sets = {}
    for r in rows:
        side = {"forbidden": "refusal/", "allowed": "over-refusal/"}.get(r.get("label"), "")
        kind, verdict = ("/acc", r["acc"]) if "acc" in r else ("", r["refused"])
        sets.setdefault(side + r["benchmark"] + kind, []).append(verdict)
    forbidden = [r["refused"] for r in rows if r.get("label") == "forbidden" and "refused" in r]
    allowed = [r["refused"] for r in rows if r.get("label") == "allowed" and "refused" in r]
    right = [None if x is None else not x for x in allowed] + [r["acc"] for r in rows if "acc" in r]
    found = {}
    for name, verdicts in (sets | {"safety": forbidden, "helpfulness": right}).items():
        way = DIRECTION.get(name.partition("/")[0], "higher is better")
        nothing = {"value": math.nan, "ci95": [0.0, 1.0], "n": 0, "n_unscored": len(verdicts)}
        some = any(x is not None for x in verdicts)
        found[name] = evals.rate(verdicts, way) if some else nothing | {"direction": way}
    return found

def open_run(a, items):
    """-> results so far. The same run goes on; another's folder is refused, and so is a second process."""
    free = "stage", "out", "folder", "name", "overwrite"
    run = {k: str(v) for k, v in vars(a).items() if k not in free}
    run["prompts, rows"] = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]
    config, results = a.folder / "config.json", a.folder / "results.json"
    a.folder.mkdir(parents=True, exist_ok=True)
    a.lock = os.open(a.folder, os.O_RDONLY)  # held until this process ends, however it ends
    try:
        fcntl.flock(a.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        die(f"{a.folder}: another process is at work there")
    for old in a.folder.iterdir() if a.overwrite else [*a.folder.rglob(".*.tmp"), *a.folder.glob("*.tmp-*")]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    was = json.loads(config.read_text())["run"] if config.exists() else {}
    other = [f"{k} was {was[k]}, is {run[k]}" for k in run if k in was and was[k] != run[k]]
    if other:
        die(f"{a.folder} holds another run: {'; '.join(other)}. Give another --name, or --overwrite")
    git = ["git", "-C", ROOT, "rev-parse", "HEAD"] if shutil.which("git") else ["echo"]
    git = subprocess.run(git, capture_output=True, text=True).stdout
    device = torch.cuda.get_device_name() if a.device == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "git": git.strip()}
    write(config, json.dumps({"run": was | run, "device": device} | versions, indent=1))
    return json.loads(results.read_text()) if results.exists() else {}

def draw(res, path):
    """helpfulness against safety: a point a stage, a line through the values of t of a donor and method."""
    import matplotlib.figure  # and no pyplot: nothing to show, nothing to close

    fig = matplotlib.figure.Figure(figsize=(8, 6), layout="constrained")
    axis, lines = fig.subplots(), {}
    for stage, metrics in res.items():
        if stage.startswith("dev ") and stage != "dev VL":
            lines.setdefault(stage.rpartition(" ")[0], ["dev VL"]).append(stage)  # from t = 0
        elif "safety" in metrics and not stage.startswith(("aligned", "dev VL", "chat blocks")):
            x, y = (100 * metrics[m]["value"] for m in ("safety", "helpfulness"))
            ci = [100 * np.abs(np.array(metrics[m]["ci95"]) - metrics[m]["value"])[:, None]
                  for m in ("safety", "helpfulness")]
            axis.errorbar(x, y, ci[1], ci[0], fmt="o", capsize=2, alpha=0.8)
            axis.annotate(stage, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    for line, stages in lines.items():
        x, y = (100 * np.array([res[s][m]["value"] for s in stages]) for m in ("safety", "helpfulness"))
        axis.plot(x, y, ".-", alpha=0.4, label=line)
    axis.set(xlabel="forbidden prompts refused, %", ylabel="allowed prompts answered, %",
             title="points: test sets, 95 %; lines: dev sets, t rising to the right")
    axis.legend(frameon=False, fontsize=8)
    write(path, partial(fig.savefig, format="png", dpi=130))

def report(res, a):
    for stage in (s for s in res if "safety" in res[s]):
        for metric, found in res[stage].items():
            if metric in ("safety", "helpfulness") or not stage.startswith(("dev", "chat blocks")):
                note = f"n {found['n']}, unscored {found['n_unscored']}"
                say(f"{stage:24}{metric:32}{evals.show(found):26}{note}")
    for what, matrices in res.get("layers", {}).items():
        cos, change = np.array(list(matrices.values())).T
        say(f"matrices, {what}: cosine {cos.min():.4f} to {cos.max():.4f}, |dW| / |W| {change.min():.1%} to "
            f"{change.max():.1%}")
    say(f"chosen t: {res.get('chosen t')}\nfiles: {a.folder}")

# ==== MERGING TOOL: streams any two models; the experiment calls merge() ====
# ---- merging: a worker reads a block of rows of every input, merges it in fp32, casts once and writes it to
# its place in the output, which the shapes tell. While one reads or writes, another computes; no block waits
BLOCK = 2**19  # elements: smaller ones stay in a core's cache, but threads then wait for Python
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

# the methods; W_0: base, d_i = W_i - W_0, w_i: weight. Task arithmetic (arXiv 2212.04089), TIES (2306.01708),
# DARE (2311.03099), DELLA (2406.11617), breadcrumbs (2312.06795), model stock (2403.19522) as mergekit 0.1.5
# computes them: DARE and DELLA rescale by L1(d) / L1(what is kept), where the papers divide by density
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
    size, workers = sum(map(bytes_of, tensors.values())), len(os.sched_getaffinity(0))
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
    if sys.argv[1:2] == ["merge"]:
        return merge_main(sys.argv[2:])
    experiment(parse_args())

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it was")
