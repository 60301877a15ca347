"""merging: formulas in fp64, names of every layout, LoRA, schedules, mergekit's YAML, what is refused.

    MERGEKIT=PYTHON pytest tests/test_merge.py  # compared with mergekit, too, by a python that has it
"""
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nano
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, AutoModelForImageTextToText, CLIPVisionConfig, InternVLConfig,
                          InternVLVisionConfig, LlamaConfig, LlavaConfig)

import vl_merge as vm

ROOT = Path(__file__).resolve().parent.parent
LLAMA = {k: v for k, v in nano.CONFIG.items() if k not in ("architectures", "model_type", "dtype")}

def tensors(folder):
    return {k: t for f in sorted(folder.glob("model*.safetensors")) for k, t in load_file(f).items()}

@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """-> folders of a base and of a and b tuned from it, in shards, untied; their tensors"""
    root = tmp_path_factory.mktemp("three")
    folders = [nano.build(root / name, shards=i + 1, tied=False) for i, name in enumerate(("base", "a", "b"))]
    for i, folder in enumerate(folders[1:], 1):
        gen = torch.Generator().manual_seed(i)
        for f in folder.glob("model*.safetensors"):
            w = {k: t + 0.03 * torch.randn(t.shape, generator=gen) for k, t in load_file(f).items()}
            save_file(w, f, metadata={"format": "pt"})
    return folders, [tensors(f) for f in folders]

def merged(out, *inputs, base=None, **how):
    vm.merge([str(x) for x in inputs], out, base=base and str(base), **how)
    return tensors(out)

# formulas, again, in fp64 and on whole tensors
def largest(d, k):
    kept = np.zeros(d.size, bool)
    kept[np.argsort(-abs(d), axis=None)[:k]] = True
    return kept.reshape(d.shape)

def arc(x, y, t):
    theta = math.acos((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    return (math.sin((1 - t) * theta) * x + math.sin(t * theta) * y) / math.sin(theta)

def reference(method, w0, a, b, w=(0.7, 0.3), density=0.4, gamma=0.02, t=0.3):
    d, n = (a - w0, b - w0), a.size
    if method in ("linear", "slerp"):
        return (1 - t) * a + t * b if method == "linear" else arc(a, b, t)
    if method == "nuslerp":
        return w0 + arc(d[0], d[1], t)
    if method == "model_stock":
        c = (d[0] * d[1]).sum() / np.linalg.norm(d[0]) / np.linalg.norm(d[1])
        return 2 * c / (1 + c) * (a + b) / 2 + (1 - 2 * c / (1 + c)) * w0
    if method == "ties":
        d = [x * largest(x, int(density * n)) for x in d]
    if method.startswith("breadcrumbs"):
        top = int(gamma * n)
        d = [x * (largest(x, top + int(density * n)) & ~largest(x, top)) for x in d]
    v = [c * x for c, x in zip(w, d)]
    if method in ("task_arithmetic", "breadcrumbs"):
        return w0 + 1.5 * sum(v)
    sign = np.where(sum(v) >= 0, 1, -1)
    kept = [np.sign(x) == sign for x in v]
    share = sum(c * k for c, k in zip(w, kept)) if method == "ties" else 1
    return w0 + 1.5 * sum(x * k for x, k in zip(v, kept)) / np.where(share == 0, 1, share)

@pytest.mark.parametrize("method", ["linear", "slerp", "nuslerp", "model_stock", "task_arithmetic", "ties",
                                    "breadcrumbs", "breadcrumbs_ties"])
def test_formula(three, tmp_path, monkeypatch, method):
    monkeypatch.setattr(vm, "BLOCK", 1000)  # several blocks, the last ones short
    monkeypatch.setattr(vm, "SAMPLE", 2000)
    folders, weights = three
    pair = method in ("linear", "slerp", "nuslerp")
    out = merged(tmp_path / "out", *folders[1:], method=method, base=None if method in ("linear", "slerp")
                 else folders[0], t=0.3 if pair else [0.7, 0.3], density=0.4, gamma=0.02, lam=1.5)
    for k, x in out.items():
        want = reference(method, *(w[k].double().numpy() for w in weights))
        assert np.linalg.norm(x.double().numpy() - want) < 1e-6 * np.linalg.norm(want), k

@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_masks(three, tmp_path, method):
    """how much is kept, the L1 norm is, and the same seed gives the same bits, in blocks of any number."""
    folders, weights = three
    how = dict(method=method, base=folders[0], density=0.3, t=1.0)
    one, again = (merged(tmp_path / str(i), folders[1], **how) for i in range(2))
    other = merged(tmp_path / "other", folders[1], seed=1, **how)
    shares = []
    for k, x in one.items():
        assert x.equal(again[k]) and not x.equal(other[k])
        d, before = x - weights[0][k], (weights[1][k] - weights[0][k]).abs()
        if x.dim() == 2:
            assert abs(d.abs().sum() / before.sum() - 1) < 1e-4, k
            kept, big = (d.abs() > 1e-6).double(), before >= before.median()
            more = kept[big].mean() - kept[~big].mean()
            assert (0.1 < more < 0.2) if method.startswith("della") else abs(more) < 0.05, k
            shares.append(kept.mean().item())
    assert abs(np.mean(shares) - 0.3) < 0.01

# ---- the whole way: transformers loads it, and its logits are those of a merge in memory
def vlm(folder, new_names, kind="llava"):
    torch.manual_seed(0)
    text = LlamaConfig(**LLAMA | {"tie_word_embeddings": False})
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    if kind == "llava":
        tower = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=32, **small)
        c = LlavaConfig(text_config=text, vision_config=tower, image_token_index=383)
    else:  # its head is tied by default
        tower = InternVLVisionConfig(image_size=[28, 28], patch_size=[14, 14], **small)
        c = InternVLConfig(text_config=text, vision_config=tower, image_token_id=383)
    model = AutoModelForImageTextToText.from_config(c).eval()
    model.save_pretrained(folder, save_original_format=not new_names)
    nano.build_tokenizer().save(str(folder / "tokenizer.json"))
    return model

def logits(model, kind=AutoModelForImageTextToText):
    if isinstance(model, Path):
        model, info = kind.from_pretrained(model, output_loading_info=True, dtype=torch.float32)
        assert not any(info.values())
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits

@pytest.mark.parametrize("new_names", [True, False])
@pytest.mark.parametrize("kind", ["llava", "internvl"])
def test_llm_into_a_vlm(tmp_path, kind, new_names):
    """the donor is untied. InternVL's tied head is filled from its embeddings, and untied."""
    model, llm = vlm(tmp_path / "vlm", new_names, kind), nano.build(tmp_path / "llm", seed=1, tied=False)
    out = merged(tmp_path / "out", llm, tmp_path / "vlm", t="mlp=0.5,self_attn=0.7,1")  # the VLM comes second
    own, donor = tensors(tmp_path / "vlm"), tensors(llm)
    head = {"lm_head.weight" if new_names else "language_model.lm_head.weight"}
    assert out.keys() - own.keys() == (head if kind == "internvl" else set())
    tower = model.model.language_model.state_dict()
    with torch.no_grad():
        for k, x in tower.items():
            share = 0.5 if "mlp" in k else 0.7 if "self_attn" in k else 1
            x.copy_((1 - share) * donor[f"model.{k}"] + share * x)
    assert torch.allclose(logits(tmp_path / "out"), logits(model), atol=1e-4)
    assert all(out[k].equal(x) for k, x in own.items() if "vision" in k or "projector" in k)

def test_lora(tmp_path):
    """against PEFT's merge_and_unload, with modules_to_save and rsLoRA's scale"""
    peft = pytest.importorskip("peft")
    model = vlm(tmp_path / "vlm", False)
    lora = peft.get_peft_model(model, peft.LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=r".*language_model.*(q_proj|up_proj)",
        modules_to_save=["multi_modal_projector"]))
    with torch.no_grad():
        for name, p in lora.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.normal_(0, 0.1)
    lora.peft_config["default"].base_model_name_or_path = str(tmp_path / "vlm")
    lora.save_pretrained(tmp_path / "adapter")
    merged(tmp_path / "out", tmp_path / "adapter")
    want = lora.merge_and_unload().state_dict()
    got = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict()
    assert got.keys() == want.keys() and all(torch.allclose(got[k], x, atol=1e-6) for k, x in want.items())
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    for field, x in {"use_dora": True, "rank_pattern": {"q_proj": 2}, "bias": "all"}.items():
        (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | {field: x}))
        refused(f"adapter: {field}", tmp_path / "no", tmp_path / "adapter")

def test_ends_dtype_and_shards(three, tmp_path, monkeypatch):
    folders, (_, a, b) = three
    monkeypatch.setattr(vm, "SHARD", 50_000)
    for method in ("linear", "slerp", "nuslerp"):
        for t, parent in ((0, a), (1.0, b)):
            out = merged(tmp_path / f"{method}{t}", *folders[1:], method=method, t=t)
            assert all(out[k].equal(x) for k, x in parent.items())
    assert len(list((tmp_path / "linear0").glob("model-*"))) > 3
    same = [logits(f, AutoModelForCausalLM) for f in (tmp_path / "linear0", folders[1])]
    assert torch.equal(*same)
    half = merged(tmp_path / "half", *folders[1:], t=0.25, dtype="bf16")
    assert all(x.equal((a[k] * 0.75 + b[k] * 0.25).bfloat16()) for k, x in half.items())  # one cast
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    recipe = json.loads((tmp_path / "half/merge.json").read_text())
    assert len(recipe["sha256"]) == 5 and len(recipe["groups"][0]["tensors"]) == len(a)

def test_schedules_and_recipes(three, tmp_path):
    """over layers; mergekit's gradients, filters, precedence. What is in no layer counts as of the first."""
    (_, a, b), (_, x, y) = three
    out = merged(tmp_path / "layers", a, b, t="0:0.25,1:0.75")
    slerp = {"merge_method": "slerp", "base_model": str(a), "dtype": "float32", "parameters": {"t": [
        {"filter": "mlp", "value": [0.25, 0.75]}, {"value": 0.5}]},
        "slices": [{"sources": [{"model": str(m), "layer_range": [0, 2]} for m in (b, a)]}]}
    linear = {"merge_method": "linear", "parameters": {"weight": 0.25}, "models": [
        {"model": str(a)}, {"model": str(b), "parameters": {"weight": [{"filter": "mlp", "value": 0.75}]}}]}
    for name, recipe in (("slerp", slerp), ("linear", linear)):
        (tmp_path / f"{name}.yml").write_text(json.dumps(recipe))
        vm.merge_main(["--recipe", str(tmp_path / f"{name}.yml"), "--out", str(tmp_path / name)])
    arcs, lines = tensors(tmp_path / "slerp"), tensors(tmp_path / "linear")
    for k in x:
        share = 0.75 if "layers.1" in k else 0.25
        assert out[k].equal((x[k] * (1 - share)).add(y[k], alpha=share))
        want = arc(x[k].double().numpy(), y[k].double().numpy(), share if "mlp" in k else 0.5)
        assert np.abs(arcs[k].double().numpy() - want).max() < 1e-6
        want = 0.25 * x[k] + 0.75 * y[k] if "mlp" in k else (x[k] + y[k]) / 2
        assert torch.allclose(lines[k], want, atol=1e-6)
    for key, change in {"tokenizer_source": {"tokenizer_source": "union"},
                        "nearswap": {"merge_method": "nearswap"},
                        "rescale": {"parameters": {"rescale": True}}}.items():
        (tmp_path / "bad.yml").write_text(json.dumps(linear | change))
        refused(f"{key} is not supported", tmp_path / "no", recipe=tmp_path / "bad.yml")

# ---- what is refused, and what a killed run leaves
def refused(message, out, *inputs, **how):
    flags = [x for k, v in how.items() for x in (f"--{k}", str(v))]
    with pytest.raises(SystemExit) as e, pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(vm, "die", lambda text: (said.append(text), sys.exit(2)))
        vm.merge_main([*map(str, inputs), "--out", str(out), *flags])
    assert e.value.code == 2 and message in said[0], said
    assert not list(out.parent.glob(f"{out.name}*")) or out.name == "there"

def test_refusals(three, tmp_path):
    base, a, b = three[0]
    (tmp_path / "there").mkdir()
    refused("there exists", tmp_path / "there", a, b)
    out = tmp_path / "out"
    for message, change in {"hidden_size": {"hidden_size": 32}, "rope_theta: 10000.0": {"rope_theta": 5e5},
                            "num_key_value_heads: 2": {"num_key_value_heads": 4}}.items():
        refused(message, out, a, nano.build(tmp_path / message[:6], tied=False, **change))
    narrow = nano.build(tmp_path / "narrow", tied=False, intermediate_size=96)
    refused("body.layers.0.mlp.down_proj.weight: [64, 192]", out, a, narrow)
    stranger = nano.build(tmp_path / "stranger", seed=9, tied=False)
    refused("is not the base", out, a, base=stranger, method="ties")
    refused("task vectors: --base", out, a, b, method="ties")
    w = tensors(base)
    one = nano.build(tmp_path / "less", tied=False)
    save_file({k: x for k, x in w.items() if "layers.1.mlp.up" not in k}, one / "model.safetensors")
    refused("body.layers.1.mlp.up_proj.weight: missing in", out, a, one)
    (one / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-100])
    refused("truncated", out, a, one)
    (one / "model.safetensors").rename(one / "pytorch_model.bin")
    refused("pickles", out, a, one)
    vm.merge([str(a), str(b)], out, dry_run=True)
    assert not out.exists()

def test_vocabularies(tmp_path):
    """two tokens of the second model have changed places, and it has ten more rows."""
    a, b = nano.build(tmp_path / "a"), nano.build(tmp_path / "b", seed=1, vocab_size=394)
    tok = json.loads((b / "tokenizer.json").read_text())
    vocab, size = tok["model"]["vocab"], len(tok["model"]["vocab"])
    vocab |= {"k": vocab["q"], "q": vocab["k"], "only here": 390}
    (b / "tokenizer.json").write_text(json.dumps(tok))
    x, y = (tensors(f)["model.embed_tokens.weight"] for f in (a, b))
    assert merged(tmp_path / "first", a, b)["model.embed_tokens.weight"].equal(x)
    rows = torch.arange(len(x))
    rows[[vocab["q"], vocab["k"]]] = rows[[vocab["k"], vocab["q"]]]
    want = torch.where(torch.arange(len(x))[:, None] < size, (x + y[rows]) / 2, x)  # others have no token
    assert torch.allclose(merged(tmp_path / "out", a, b, vocab="shared")["model.embed_tokens.weight"], want)

def test_killed(three, tmp_path):
    folders = three[0]
    code = ("import sys, time; sys.path.insert(0, sys.argv[1]); import vl_merge as vm; put = vm.put\n"
            "vm.put = lambda *x: (time.sleep(0.2), put(*x)); vm.merge(sys.argv[2:4], sys.argv[4])")
    command = [sys.executable, "-c", code, str(ROOT), *map(str, folders[1:]), str(tmp_path / "out")]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (left := list(tmp_path.glob("out.tmp-*/model*"))):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and left[0].exists() and not (tmp_path / "out").exists()
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(left[0].parent)
    assert merged(tmp_path / "out", *folders[1:])

def test_against_mergekit(tmp_path):
    python = os.environ.get("MERGEKIT")
    if not python:
        pytest.skip("MERGEKIT is not set to a python that has mergekit")
    sys.path.insert(0, str(ROOT / "bench"))
    import merge
    for method, (gap, ours, theirs) in merge.compare(python, list(merge.RECIPES), tmp_path / "small").items():
        random = method.startswith(("dare", "della"))
        limit = 0 if method in ("linear", "task_arithmetic") else 1 if random else 1e-6
        assert gap <= limit and abs(ours - theirs) < 0.003, method
