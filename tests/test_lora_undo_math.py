"""The mathematics of lora_undo.py against independent references: transformers, peft, bitsandbytes (where installed), plain autograd,
hand-computed values. Run: python -m pytest tests/test_lora_undo_math.py (under a minute on one core; no network, no GPU)
"""
import gc
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from torch.autograd import gradcheck

import lora_undo as lu
import nano

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

ALL = "q,k,v,o,gate,up,down"


def flags(out, *more):
    """the script's own defaults, in fp32 and without 4 bits unless the test says so."""
    return lu.parse_args(["--device", "cpu", "--dtype", "fp32", "--bits", "16", "--out", str(out), "--rank", "4", "--alpha", "12", *map(str, more)])


def load(folder, bits=16, dtype=torch.float32):
    return lu.load_model(folder, flags(folder / "out", "--bits", bits), "cpu", dtype)


def hf(folder, **kw):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **kw).eval()


def tokens(*lengths, seed=0):
    """lists of random ids, special tokens left out."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 384, n).tolist() for n in lengths]


def documents(*lengths, seed=0):
    """[Doc]: random ids; the first third is prompt, the rest is answer."""
    return [lu.Doc(ids, [0] * (len(ids) // 3) + [1] * (len(ids) - len(ids) // 3), f"row {i}") for i, ids in enumerate(tokens(*lengths, seed=seed))]


@torch.no_grad()
def logits(model, *ids):
    """one packed forward -> list of (T, V), one a document."""
    p = lu.pack([lu.Doc(x, [1] * len(x), "") for x in ids], "cpu")
    return (model.hidden(p.ids, p.pos, lu.packed_attention(p)) @ model.head.T).split([len(x) for x in ids])


@torch.no_grad()
def hf_logits(ref, *ids):
    """one document at a time: the reference knows nothing of packing."""
    return [ref(torch.tensor([x])).logits[0] for x in ids]


def near(a, b, tol):
    """largest difference over the largest magnitude."""
    return (a - b).abs().max().item() <= tol * max(b.abs().max().item(), 1e-30)


def adapted(model, targets=ALL, r=4, alpha=12, seed=0):
    """LoRA with B far from 0: at B = 0 the gradient of A is 0 and half of the formulas are never exercised."""
    model.drop_lora()
    model.add_lora(targets.split(","), r, alpha, seed)
    gen = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for _, lin in model.linears():
            if lin.A is not None:
                lin.B.normal_(0, 0.1, generator=gen)
    return model


def gradients(model):
    return {k: p.grad.clone() for k, p in model.named_parameters()}


def step_gradients(model, docs, budget=10**6):
    """loss and gradients of one step as the loop makes them: sum over packs / target tokens of the step."""
    for p in model.parameters():
        p.grad = None
    total, loss = sum(sum(d.mask[1:]) for d in docs), 0.0
    for group in lu.micro_batches(docs, budget):
        part = model.loss(lu.pack(group, "cpu")) / total
        part.backward()
        loss += part.item()
    return loss, gradients(model)


def same(g, h, tol):
    assert g.keys() == h.keys() and g
    bad = {k: ((g[k] - h[k]).norm() / h[k].norm().clamp(min=1e-30)).item() for k in g if not (g[k] - h[k]).norm() <= tol * h[k].norm() + 1e-12}
    assert not bad, bad


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """grouped-query, tied: the miniature's own shape."""
    return nano.build(tmp_path_factory.mktemp("nano"), seed=3)


@pytest.fixture
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return hf(folder)


@pytest.fixture(scope="module")
def chat(folder):
    return lu.Chat(folder, lu.read_config(folder))


# -----------------------------------------------------------------------------
# decoder
# -----------------------------------------------------------------------------
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)   # all three bands at width 16
CASES = {
    "tied": {},
    "untied": dict(tied=False),
    "two shards": dict(tied=False, shards=2),
    "multi-head": dict(num_key_value_heads=4),
    "multi-query": dict(num_key_value_heads=1),
    "wide heads": dict(head_dim=32),
    "theta": dict(rope_theta=500000.0),
    "llama3 scaling, old keys": dict(rope_theta=500000.0, rope_scaling=LLAMA3),
    "llama3 scaling, v5 key": dict(rope_theta=None, rope_parameters=LLAMA3 | dict(rope_theta=500000.0)),
    "linear scaling, old keys": dict(rope_scaling=dict(type="linear", factor=2.5)),
    "linear scaling, v5 key": dict(rope_theta=None, rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=10000.0)),
    "mistral": dict(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case, tmp_path):
    nano.build(tmp_path, seed=1, **CASES[case])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None or k == "sliding_window"}))
    m, docs = load(tmp_path), tokens(1, 120, 7, 33)
    got, want = logits(m, *docs), hf_logits(hf(tmp_path), *docs)
    for a, b in zip(got, want):
        assert (a - b).abs().max() < 1e-4
    if "scaling" in case or case == "theta":   # or the comparison would also hold with the key ignored
        m.c["inv_freq"] = lu.finish_config(dict(hd=16))["inv_freq"]
        assert (logits(m, docs[1])[0] - want[1]).abs().max() > 1e-2


def test_norm_and_swiglu_round_where_transformers_rounds():
    # bf16: a cast in another place changes bits, and parity drifts with depth
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    x, w = torch.randn(40, 64).bfloat16(), (1 + torch.randn(64)).bfloat16()
    norm = LlamaRMSNorm(64, eps=1e-5).bfloat16()
    norm.weight.data.copy_(w)
    with torch.no_grad():
        assert torch.equal(lu.RMSNorm.apply(x, w, 1e-5), norm(x))
        e, g = torch.randn(2, 40, 64).bfloat16()
        assert torch.equal(lu.SwiGLU.apply(e, g), F.silu(e) * g)


def test_what_the_decoder_does_not_compute_is_refused(tmp_path):
    for changes in (dict(model_type="gemma"), dict(attention_bias=True), dict(hidden_act="gelu"), dict(rope_scaling=dict(rope_type="yarn", factor=2.0))):
        (tmp_path / "config.json").write_text(json.dumps(nano.CONFIG | changes))
        with pytest.raises(SystemExit) as e:
            lu.read_config(tmp_path)
        assert e.value.code == 2


@pytest.mark.parametrize("changes", [dict(eos_token_id=None), dict(hidden_size=None), dict(rope_scaling=dict(rope_type="llama3", factor=8.0))])
def test_an_incomplete_config_is_one_line_and_exit_2(tmp_path, capsys, changes):
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in (nano.CONFIG | changes).items() if v is not None}))
    with pytest.raises(SystemExit) as e:
        lu.read_config(tmp_path)
    assert e.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_null_in_config_means_the_default(tmp_path):
    # transformers writes null for what it derives
    (tmp_path / "config.json").write_text(json.dumps(nano.CONFIG | dict(num_key_value_heads=None, head_dim=None, rope_scaling=None, sliding_window=None)))
    c = lu.read_config(tmp_path)
    assert (c["Hkv"], c["hd"]) == (4, 16) and c["window"] is None


def test_greedy_generation_equals_transformers(model, reference):
    """prompts of different lengths in one batch; rows end at different steps and are dropped; two end tokens."""
    prompts, new = tokens(3, 29, 1, 14, 8, 21, seed=5), 24
    adapted(model, "q,v")   # merely to see that generation uses the adapter: B is set back below
    tuned = model.generate(prompts, new)
    model.drop_lora()
    model.c["eos_ids"] = torch.tensor([2])
    free = model.generate(prompts, new)
    assert free != tuned and all(len(x) == new for x in free)
    ends = [free[3][0], next(t for t in free[1][6:] if t != free[3][0])]   # one row ends before its first token, another in the middle
    model.c["eos_ids"] = torch.tensor(sorted(ends))
    got = model.generate(prompts, new)
    T = max(map(len, prompts))
    ids = torch.tensor([[0] * (T - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])
    out = reference.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=ends, pad_token_id=0)[:, T:].tolist()
    want = [row[:next((i for i, t in enumerate(row) if t in ends), new)] for row in out]
    assert got == want
    assert len({len(x) for x in got}) >= 3 and max(map(len, got)) == new and not got[3]   # rows were dropped early, late and never
    # alone or together, and twice: no state is kept
    assert [model.generate([p], new)[0] for p in prompts[:3]] == got[:3] and model.generate(prompts, new) == got
    assert model.generate(prompts, 1) == [x[:1] for x in got]


def test_end_tokens_come_from_generation_config_too(tmp_path):
    nano.build(tmp_path)
    assert lu.read_config(tmp_path)["eos"] == {2}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert lu.read_config(tmp_path)["eos_ids"].tolist() == [0, 2]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))   # id 0 is a token, not "none"
    assert lu.read_config(tmp_path)["eos"] == {0}


# -----------------------------------------------------------------------------
# NF4
# -----------------------------------------------------------------------------
def unpack(codes, n):
    return torch.stack([codes >> 4, codes & 15], 1).flatten()[:n]


def test_nf4_golden_values():
    """independent of bitsandbytes: appendix E's constants, the packing order and the midpoints, by hand."""
    published = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
                 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
    assert lu.NF4.tolist() == torch.tensor(published).tolist()
    # a block whose largest magnitude is 2: -2 is code 0, 2 is code 15, 0 is code 7; high nibble first
    w = torch.zeros(64)
    w[:5] = torch.tensor([2.0, -2.0, 0.0, 1.4, -1.4])                   # 0.7 is nearest 0.7230 (14), -0.7 nearest -0.6962 (1)
    codes, absmax = lu.nf4_quantize(w)
    assert codes.dtype == torch.uint8 and absmax.dtype == torch.float32 and absmax.tolist() == [2.0]
    assert codes.tolist() == [0xF0, 0x7E, 0x17] + [0x77] * 29
    back = lu.nf4_dequantize(codes, absmax, (64,))
    assert torch.equal(back[:5], 2 * lu.NF4[[15, 0, 7, 14, 1]]) and not back[5:].any()
    # every code survives the round trip, both nibbles
    w = torch.cat([lu.NF4, lu.NF4.flip(0)]).repeat(2) * 0.75
    codes, absmax = lu.nf4_quantize(w)
    assert unpack(codes, 64).tolist() == [*range(16), *range(15, -1, -1)] * 2
    assert torch.equal(lu.nf4_dequantize(codes, absmax, (8, 8)), w.view(8, 8))


def test_nf4_ties_go_to_the_lower_code():
    # absmax 1 keeps the midpoints exact; one ulp above goes up
    mid = lu.NF4_MIDPOINTS
    up = torch.nextafter(mid, torch.full_like(mid, 9.0))
    w = torch.cat([torch.tensor([1.0]), mid, up, torch.zeros(33)])
    q = unpack(lu.nf4_quantize(w)[0], 64)
    assert q[1:16].tolist() == list(range(15)) and q[16:31].tolist() == list(range(1, 16))


def test_nf4_chunks_do_not_show(monkeypatch):
    """the 2**24-value chunks of a 70B layer: a chunked run equals one that saw everything at once."""
    w = (torch.randn(2**24 + 64 + 63) * 0.02).bfloat16()
    codes, absmax = lu.nf4_quantize(w)
    assert codes.numel() == (w.numel() + 1) // 2 and absmax.numel() == -(-w.numel() // 64)
    tail = w[2**24 - 64:]                                                # two blocks astride the boundary, and the odd tail
    c, m = lu.nf4_quantize(tail)
    assert torch.equal(codes[2**23 - 32:], c) and torch.equal(absmax[2**18 - 1:], m)
    c, m = lu.nf4_quantize(w[:640])
    assert torch.equal(codes[:320], c) and torch.equal(absmax[:10], m)


def test_nf4_round_trip_error_is_bounded():
    """no value moves by more than half the widest gap between codes (0.152) times its block's largest magnitude; zeros stay zero."""
    w = torch.randn(96, 200) * torch.logspace(-4, 1, 96)[:, None]
    w[3] = 0
    codes, absmax = lu.nf4_quantize(w)
    err = (lu.nf4_dequantize(codes, absmax, w.shape) - w).abs().view(-1, 64)
    assert (err <= absmax[:, None] * (1 - 0.6961928009986877) / 2 * (1 + 1e-6)).all() and not err.isnan().any()
    rms = (err.square().sum() / w.square().sum()).sqrt()
    assert 0.05 < rms < 0.12                                             # 9 % for gaussian blocks: a wrong table is far above
    lin = lu.Linear(96, 200)
    lin.set_weight(w, 4)
    # the 8-bit absmax is off by at most half of the dynamic map's widest gap, 0.9 / 64, times its block's largest deviation from the mean
    bound = 0.45 / 64 * 1.001 * lin.absmax[1].repeat_interleave(256)[:absmax.numel()]
    assert ((lu.double_dequantize(*lin.absmax) - absmax).abs() <= bound).all()
    assert ((lin.weight(torch.float32) - w).abs().view(-1, 64) <= err + bound[:, None] + 1e-6).all()
    assert lin.weight(torch.bfloat16).dtype == torch.bfloat16 and torch.equal(lin.weight(torch.bfloat16), lin.weight(torch.float32).bfloat16())


@pytest.mark.parametrize("shape", [(1,), (63,), (65,), (3, 5), (7, 64), (33, 129)])
def test_nf4_any_size(shape):
    w = torch.randn(shape)
    codes, absmax = lu.nf4_quantize(w)
    back = lu.nf4_dequantize(codes, absmax, shape)
    flat, n = w.flatten(), w.numel()
    want = torch.cat([lu.NF4[(b / b.abs().max() - lu.NF4[:, None]).abs().argmin(0)] * b.abs().max() for b in flat.split(64)])   # nearest code, the slow way
    assert back.shape == shape and codes.numel() == (n + 1) // 2 and near(back.flatten(), want, 1e-6)


def test_nf4_is_bit_identical_to_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes.functional")
    gen = torch.Generator().manual_seed(0)
    rand = lambda *s: torch.randn(*s, generator=gen) * 0.03
    zeros = rand(8, 128)
    zeros[2:5] = 0
    zeros[6, :64] = -0.0
    ties = (lu.NF4_MIDPOINTS.repeat(17)[:252].view(4, 63) * torch.tensor([1.0, 0.5, 4.0, 2**-10])[:, None])   # powers of two: the ties stay exact
    ties = torch.cat([torch.tensor([1.0, -0.5, 4.0, 2**-10])[:, None], ties], 1)
    for name, w in {"random": rand(512, 256), "bf16": rand(512, 256).bfloat16(), "zero blocks": zeros, "ties": ties, "odd": rand(33, 129), "tail": rand(100),
                    "one": rand(1), "bf16 tail": rand(301).bfloat16(), "zero tail": torch.cat([rand(64), torch.zeros(5)]), "tiny": rand(256) * 1e-30}.items():
        want, state = bnb.quantize_4bit(w, quant_type="nf4", blocksize=64)
        codes, absmax = lu.nf4_quantize(w)
        assert torch.equal(codes, want.flatten()), name
        assert torch.allclose(absmax, state.absmax, rtol=0, atol=1e-37), name   # its zero tail block says 1e-38, ours 0: times code 7 both are 0
        if w.shape[-1] % 2 == 0:   # its odd path compiles a kernel, for ten seconds
            assert torch.equal(lu.nf4_dequantize(codes, absmax, w.shape, w.dtype), bnb.dequantize_4bit(want, state).view(w.shape)), name


def test_double_quantisation_equals_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(lu.DYNAMIC, bnb.create_dynamic_map())
    gen = torch.Generator().manual_seed(1)
    for shape in ((192, 64), (256, 576), (320, 200)):                    # 3, 9 and 3.9 second-level blocks
        w = (torch.randn(*shape, generator=gen) * torch.rand(shape[0], 1, generator=gen)).bfloat16()
        want, state = bnb.quantize_4bit(w.float(), quant_type="nf4", blocksize=64, compress_statistics=True)
        lin = lu.Linear(*shape)
        lin.set_weight(w, 4)
        codes, absmax2, offset = lin.absmax
        theirs = state.absmax.flatten()
        assert torch.equal(lin.codes, want.flatten()) and torch.equal(absmax2, state.state2.absmax) and torch.equal(offset, state.offset)
        # its CPU kernel finds the level through a table of about 2**16 bins (the CUDA kernel and ours compare with midpoints): near a midpoint
        # it may miss the nearest level by one. Ours is then never the worse one
        off = codes != theirs
        assert off.float().mean() < 0.02 and (codes.int() - theirs.int()).abs().max() <= 1
        absmax = lu.nf4_quantize(w)[1]
        error = lambda q: (lu.double_dequantize(q, absmax2, offset) - absmax).abs()
        assert (error(codes) <= error(theirs) + 1e-7).all() and (error(theirs) - error(codes)).max() < 4e-5 * absmax2.max()
        # everything else, our dequantisation included, to fp32 rounding
        lin.absmax = theirs, absmax2, offset
        assert torch.allclose(lin.weight(torch.float32), bnb.dequantize_4bit(want, state), rtol=1e-6, atol=1e-9)


def test_double_quantisation_by_hand():
    """independent of bitsandbytes: levels of the dynamic map, and every absmax goes to the nearest level of its block."""
    levels = lu.DYNAMIC
    assert len(levels) == 256 and levels[-1] == 1 and (levels.diff() > 0).all() and levels[127] == 0 and torch.isclose(levels[128], torch.tensor(5.5e-7))
    assert torch.isclose(levels[254], torch.tensor(1 - 0.9 / 128)) and torch.isclose(levels[0], torch.tensor(-1 + 0.9 / 128))
    absmax = torch.rand(600) + 0.5
    codes, absmax2, offset = lu.double_quantize(absmax)
    assert codes.shape == (600,) and absmax2.shape == (3,) and torch.isclose(offset, absmax.mean())
    back = lu.double_dequantize(codes, absmax2, offset)
    for i in range(3):
        x = (absmax - offset)[256 * i:256 * (i + 1)]
        assert torch.isclose(absmax2[i], x.abs().max())
        best = (x / absmax2[i] - levels[:, None]).abs().min(0).values * absmax2[i]
        assert torch.allclose((back[256 * i:256 * (i + 1)] - offset - x).abs(), best, atol=1e-6)


# -----------------------------------------------------------------------------
# LoRA and the hand-written backward passes
# -----------------------------------------------------------------------------
def peft_model(folder, model, targets=ALL, r=4, alpha=12):
    """peft on transformers' model, with the same base weights (dequantised, if they are in 4 bits) and the same A and B."""
    base = hf(folder)
    with torch.no_grad():
        for name, lin in model.linears():
            base.get_submodule(name).weight.copy_(lin.weight(torch.float32))
    config = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules=[lu.LINEARS[t].split(".")[1] for t in targets.split(",")], task_type="CAUSAL_LM")
    ref = peft.get_peft_model(base, config)
    own = {k.replace(".default.", "."): p for k, p in ref.named_parameters() if p.requires_grad}
    assert own.keys() == model.adapter().keys()
    with torch.no_grad():
        for k, v in model.adapter().items():
            own[k].copy_(v)
    return ref, own


def plain_loss(ref, docs):
    """sum of cross-entropies over targets, one document at a time, / target tokens."""
    total = 0.0
    for d in docs:
        ce = F.cross_entropy(ref(torch.tensor([d.ids])).logits[0, :-1], torch.tensor(d.ids[1:]), reduction="none")
        total = total + (ce * torch.tensor(d.mask[1:])).sum()
    return total / sum(sum(d.mask[1:]) for d in docs)


@pytest.mark.parametrize("bits, targets, checkpoint", [(16, ALL, False), (16, ALL, True), (4, ALL, False), (4, ALL, True), (16, "q,v", False), (16, "o,down", True), (16, "k,gate", True)])
def test_loss_and_gradients_equal_peft(folder, bits, targets, checkpoint):
    model = adapted(load(folder, bits), targets)
    model.checkpoint = checkpoint
    docs = documents(31, 12, 50, 5)
    loss, grads = step_gradients(model, docs)
    ref, own = peft_model(folder, model, targets)
    want = plain_loss(ref, docs)
    want.backward()
    assert abs(loss - want.item()) < 1e-5 * want.item()
    names = {f"base_model.model.{n}": n for n, _ in model.linears()}
    grads = {f"base_model.model.{n}.lora_{x}.weight": getattr(lin, x).grad for n, lin in model.linears() if lin.A is not None for x in "AB"}
    same(grads, {k: p.grad for k, p in own.items()}, 1e-5)
    assert len(grads) == 2 * 2 * len(targets.split(",")) and len(names) == 14
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    if bits == 4:   # and 4 bits are really in use
        assert not near(model.blocks[0].q.weight(torch.float32), lu.read_tensor(lu.checkpoint_index(folder)["model.layers.0.self_attn.q_proj.weight"]), 0.02)


def test_a_new_adapter_changes_nothing_and_has_gradient_only_in_B(model):
    docs = documents(20, 9)
    before = model.loss(lu.pack(docs, "cpu")).item()
    model.add_lora(ALL.split(","), 4, 12, 0)
    loss, g = step_gradients(model, docs)
    assert loss * sum(sum(d.mask[1:]) for d in docs) == pytest.approx(before, rel=1e-6)
    assert all((g[k] == 0).all() if k.endswith(".A") else g[k].any() for k in g)
    for _, lin in model.linears():   # peft's start: kaiming with a = sqrt 5 is uniform within 1 / sqrt(d_in)
        bound = 1 / math.sqrt(lin.shape[1])
        assert 0.9 * bound < lin.A.abs().max() <= bound and lin.s == 3.0
    first = {k: v.clone() for k, v in model.adapter().items()}
    model.drop_lora()
    assert not model.adapter() and not list(model.parameters())
    model.add_lora(ALL.split(","), 4, 12, 0)
    assert all(torch.equal(v, first[k]) for k, v in model.adapter().items())
    model.add_lora(ALL.split(","), 4, 12, 1)
    assert not any(torch.equal(v, first[k]) for k, v in model.adapter().items() if "lora_A" in k)


@pytest.fixture
def double(monkeypatch):
    """the Functions force fp32 inside, where finite differences drown: here .float() means fp64, so that gradcheck sees the formulas."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self, *a, **k: self.to(torch.float64))


def leaf(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("adapters", ["110", "000", "101", "111"])
def test_gradcheck_lora_linears(double, adapters):
    lins, AB = [], []
    for i, on in enumerate(adapters):
        lin = lu.Linear(5 + i, 6)
        lin.dense, lin.s = leaf(5 + i, 6, seed=i).detach(), 1.7
        A, B = (leaf(3, 6, seed=10 + i), leaf(5 + i, 3, seed=20 + i)) if on == "1" else (None, None)
        lins.append(lin)
        AB += [A, B]

    def f(x, *ab):
        it = iter(ab)
        for lin, on in zip(lins, adapters):
            lin.__dict__["A"] = next(it) if on == "1" else None   # not parameters here: gradcheck passes them in
            lin.__dict__["B"] = next(it) if on == "1" else None
        return lu.LoRALinears.apply(x, lins, *(p for lin in lins for p in (lin.__dict__["A"], lin.__dict__["B"])))
    assert gradcheck(f, (leaf(4, 6, seed=99), *(p for p in AB if p is not None)))


def test_gradcheck_norm_swiglu_rope(double):
    w = leaf(6, seed=1).detach()
    assert gradcheck(lambda x: lu.RMSNorm.apply(x, w, 1e-2), leaf(5, 6))
    assert gradcheck(lu.SwiGLU.apply, (leaf(4, 7), leaf(4, 7, seed=1)))
    angles = torch.arange(5.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3], dtype=torch.float64)
    angles = torch.cat((angles, angles), -1)[:, None]
    x = leaf(5, 3, 4)
    assert torch.allclose(lu.rotate(x, angles.cos(), angles.sin()).norm(dim=-1), x.norm(dim=-1))   # a rotation


def test_gradcheck_packed_attention(double):
    """documents of 3, 2 and 1 tokens; each alone gives the same rows."""
    docs = [lu.Doc([1] * n, [1] * n, "") for n in (3, 2, 1)]
    p, q, k, v = lu.pack(docs, "cpu"), leaf(6, 4, 2), leaf(6, 2, 2, seed=1), leaf(6, 2, 2, seed=2)
    assert gradcheck(lu.packed_attention(p), (q, k, v))
    whole = lu.packed_attention(p)(q, k, v)
    for i, j in ((0, 3), (3, 5), (5, 6)):
        alone = lu.packed_attention(lu.pack([docs[0]._replace(ids=[1] * (j - i), mask=[1] * (j - i))], "cpu"))
        assert torch.allclose(alone(q[i:j], k[i:j], v[i:j]), whole[i:j])


@pytest.mark.parametrize("lengths", [(60, 35, 64), (7,), (300, 20)])
def test_attention_in_bf16_on_cpu_equals_fp32(lengths):
    """short rows have lines of their own there, long ones torch's kernel."""
    p, gen = lu.pack([lu.Doc([1] * n, [1] * n, "") for n in lengths], "cpu"), torch.Generator().manual_seed(0)
    qkvG = [torch.randn(sum(lengths), h, 16, generator=gen).bfloat16() for h in (6, 2, 2, 6)]
    out = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, G = (t.detach().to(dtype).requires_grad_() for t in qkvG)
        o = lu.packed_attention(p)(q, k, v)
        o.backward(G.detach())
        out.append([o.detach(), q.grad, k.grad, v.grad])
    for exact, rounded in zip(*out):
        assert (exact - rounded.float()).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("chunk", [512, 3, 1])
def test_gradcheck_chunked_cross_entropy(double, chunk):
    head, targets = leaf(9, 4, seed=1).detach(), torch.tensor([0, 8, 3, 3, 5, 1, 2])
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    f = lambda h: lu.ChunkedCrossEntropy.apply(h, head, targets, weights, chunk)
    h = leaf(7, 4)
    assert gradcheck(f, h)
    assert torch.isclose(f(h), (F.cross_entropy(h @ head.T, targets, reduction="none") * weights).sum())
    assert torch.allclose(torch.autograd.grad(3 * f(h), h)[0], 3 * torch.autograd.grad(f(h), h)[0])   # the outer gradient counts


def test_functions_in_fp32_equal_plain_autograd():
    """the same without the fp64 trick: what ships, against the textbook formulas."""
    x, w, e, g = torch.randn(30, 64), 1 + torch.randn(64), torch.randn(30, 48), torch.randn(30, 48)
    head, t, wt = torch.randn(384, 64) * 0.1, torch.randint(0, 384, (30,)), torch.rand(30)
    pairs = [(lambda x: lu.RMSNorm.apply(x, w, 1e-5), lambda x: w * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt(), (x,)),
             (lu.SwiGLU.apply, lambda e, g: e * torch.sigmoid(e) * g, (e, g)),
             (lambda h: lu.ChunkedCrossEntropy.apply(h, head, t, wt, 7), lambda h: (F.cross_entropy(h @ head.T, t, reduction="none") * wt).sum(), (x,))]
    for ours, plain, inputs in pairs:
        out = []
        for f in (ours, plain):
            leaves = [i.clone().requires_grad_() for i in inputs]
            y = f(*leaves)
            (y * torch.linspace(-1, 1, y.numel()).view(y.shape) if y.dim() else 0.7 * y).sum().backward()
            out.append([y.detach()] + [i.grad for i in leaves])
        assert all(near(a, b, 1e-5) for a, b in zip(*out))


# -----------------------------------------------------------------------------
# checkpointing
# -----------------------------------------------------------------------------
@pytest.mark.parametrize("bits, targets", [(16, ALL), (4, ALL), (16, "q"), (16, "down")])
def test_checkpointing_changes_nothing(folder, bits, targets):
    model, docs = adapted(load(folder, bits), targets), documents(31, 12, 50, 5)
    results = []
    for model.checkpoint in (False, True):
        results.append(step_gradients(model, docs, budget=60))           # two packs: gradients add up over micro-batches
    assert len(lu.micro_batches(docs, 60)) == 2
    assert results[0][0] == results[1][0]
    same(results[1][1], results[0][1], 1e-6)


def test_checkpointing_keeps_only_block_inputs(folder):
    """between forward and backward no tensor as large as (S, F) lives, neither saved for autograd nor held by a Python object."""
    model = adapted(load(folder))
    docs = documents(61, 62, 63)
    S, D, Fw = 186, 64, 192
    p = lu.pack(docs, "cpu")
    frozen = {model.embed.data_ptr()} | {lin.dense.data_ptr() for _, lin in model.linears()}
    peak = {}
    for model.checkpoint in (False, True):
        saved = {}

        def keep(t):
            if t.data_ptr() not in frozen:
                saved[t.data_ptr()] = t.numel()
            return t
        gc.collect()
        known = {id(t) for t in gc.get_objects() if type(t) is torch.Tensor}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = model.loss(p)
        held = [t.numel() for t in gc.get_objects() if type(t) is torch.Tensor and id(t) not in known and t is not loss]
        peak[model.checkpoint] = sum(saved.values())
        largest = max(list(saved.values()) + held)
        assert (largest >= S * Fw) == (not model.checkpoint)
        loss.backward()
    # L block inputs, the final norm's input, dL/dh at the targets, and small things
    assert peak[True] <= S * D * (model.c["L"] + 2) * 1.1 + 64 * S
    # what the plan says about both: the activations to within small things (u, 1/rms, cos and sin, the attention's own) that weigh more at this size
    c, a = model.c, flags(folder / "out", "--micro-tokens", S)
    assert 0.9 < peak[False] * 4 / lu.memory_plan(c, a, 4, False)["activations of all blocks"] < 1.3
    assert 0.9 < peak[True] * 4 / lu.memory_plan(c, a, 4, True)["block inputs"] < 2.3


# -----------------------------------------------------------------------------
# invariances of a step
# -----------------------------------------------------------------------------
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_split_into_micro_batches_does_not_matter(folder, checkpoint):
    model, docs = adapted(load(folder)), documents(31, 12, 50, 5, 8)
    model.checkpoint = checkpoint
    whole, parts = step_gradients(model, docs), step_gradients(model, docs, budget=50)
    assert len(lu.micro_batches(docs, 50)) >= 3
    assert abs(whole[0] - parts[0]) < 1e-6 * whole[0]
    same(parts[1], whole[1], 1e-5)
    shuffled = step_gradients(model, docs[::-1])
    assert abs(whole[0] - shuffled[0]) < 1e-6 * whole[0]


def capture(monkeypatch):
    """gradients at the moment of clipping: what the loop would step with."""
    seen, clip = [], lu.nn.utils.clip_grad_norm_

    def record(params, limit):
        params = list(params)
        seen.append([p.grad.clone() for p in params])
        return clip(params, limit)
    monkeypatch.setattr(lu.nn.utils, "clip_grad_norm_", record)
    return seen


def one_step(folder, docs, *more, seed=0, world=1):
    a = flags(folder / "out", "--epochs", 1, "--batch", len(docs), "--clip", 1e9, *more)
    model = adapted(load(folder))
    log = lu.train(model, docs, a, seed, quiet=True, world=world)
    return log[0], {k: v.clone() for k, v in model.adapter().items()}


def test_the_loop_divides_by_the_target_tokens_of_the_whole_step(folder, monkeypatch):
    docs = documents(60, 6, 30, 9, 41)
    docs[2] = docs[2]._replace(mask=[1] * 30)                            # a first token is never predicted: it does not count
    seen = capture(monkeypatch)
    large, _ = one_step(folder, docs, "--micro-tokens", 1024)
    small, _ = one_step(folder, docs, "--micro-tokens", 60)
    want, grads = step_gradients(adapted(load(folder)), docs)
    assert large["targets"] == small["targets"] == sum(sum(d.mask[1:]) for d in docs) and large["tokens"] == 146
    for row, got in zip((large, small), seen):
        assert row["loss"] == pytest.approx(want, rel=1e-6)
        same(dict(zip(grads, got)), grads, 1e-5)
        assert row["grad_norm"] == pytest.approx(math.sqrt(sum(g.double().square().sum().item() for g in grads.values())), rel=1e-5)


def test_gpus_add_up_to_one_process(folder, monkeypatch):
    """data parallel without processes: what each rank hands to all_reduce must sum to the single process's gradient."""
    docs = documents(60, 6, 30, 9, 41)
    for rows, world in ((docs, 2), (docs[:1], 2)):                       # with one row the second rank has none
        with monkeypatch.context() as m:
            seen = capture(m)
            single, _ = one_step(folder, rows)
            flats = []
            m.setattr(lu.dist, "all_reduce", lambda flat, *a, **k: flats.append(flat.clone()))
            for rank in range(world):
                m.setattr(lu, "RANK", rank)
                one_step(folder, rows, world=world)
        total = sum(flats)
        assert len(flats) == world and total[0].item() == pytest.approx(single["loss"], rel=1e-6)
        assert near(total[1:], torch.cat([g.flatten() for g in seen[0]]), 1e-5)


def test_packing_equals_single_documents(folder):
    model, docs = adapted(load(folder)), documents(31, 12, 50, 1, 5)
    docs[2] = docs[2]._replace(mask=[0.5 * m for m in docs[2].mask])     # weights, not only masks
    for p in model.parameters():
        p.grad = None
    packed = model.loss(lu.pack(docs, "cpu"))
    packed.backward()
    together = gradients(model)
    for p in model.parameters():
        p.grad = None
    alone = 0.0
    for d in docs:
        part = model.loss(lu.pack([d], "cpu"))
        part.backward()
        alone += part.item()
    assert packed.item() == pytest.approx(alone, rel=1e-6)
    same(together, gradients(model), 1e-5)


def test_documents_do_not_see_each_other(folder):
    model = adapted(load(folder))
    a, b, c = tokens(20, 35, 11)
    other = tokens(35, seed=9)[0]
    one, two = logits(model, a, b, c), logits(model, a, other, c)
    assert torch.equal(one[0], two[0]) and torch.equal(one[2], two[2]) and not near(one[1], two[1], 0.1)
    late = logits(model, a, b[:30] + other[30:], c)                      # and no token sees a later one
    assert torch.equal(one[1][:30], late[1][:30]) and not torch.equal(one[1][30:], late[1][30:])
    assert near(logits(model, c, b)[0], one[2], 1e-5)                    # place and neighbours do not matter
    # RoPE by position in the document, not in the pack: the same document twice gives the same states
    twice = logits(model, b, b)
    assert near(twice[0], twice[1], 1e-6)


def test_pack_layout():
    docs = [lu.Doc([5, 6, 7], [0, 1, 1], ""), lu.Doc([8], [1], ""), lu.Doc([9, 10], [1, 1], "")]
    p = lu.pack(docs, "cpu")
    assert p.ids.tolist() == [5, 6, 7, 8, 9, 10] and p.pos.tolist() == [0, 1, 2, 0, 0, 1]
    assert p.cu.tolist() == [0, 3, 4, 6] and p.cu.dtype == torch.int32 and p.longest == 32 and p.slots.tolist() == [0, 1, 2, 32, 64, 65]
    assert p.weights.tolist() == [1, 1, 0, 0, 1, 0]                      # nothing is predicted across a boundary, nor at the end
    assert [t for t, w in zip(p.targets.tolist(), p.weights) if w] == [6, 7, 10]


def test_micro_batches_keep_every_document_and_the_budget():
    docs = documents(50, 3, 20, 20, 9, 50, 31, 1)
    packs = lu.micro_batches(docs, 50)
    assert sorted(id(d) for p in packs for d in p) == sorted(map(id, docs)) and all(sum(len(d.ids) for d in p) <= 50 for p in packs)
    assert len(packs[0][0].ids) == 50 and len(packs) == 4                # 184 tokens cannot need fewer
    assert len(lu.micro_batches(docs, 10)) == len(docs) - 1              # what is over the budget stands alone


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_micro_batch_without_targets_gives_zero_not_nan(folder, checkpoint):
    model = adapted(load(folder))
    model.checkpoint = checkpoint
    silent = lu.Doc(tokens(9)[0], [0] * 9, "")
    loss = model.loss(lu.pack([silent], "cpu"))
    loss.backward()
    assert loss.item() == 0 and all((g == 0).all() for g in gradients(model).values())
    docs = documents(20, 7)
    want = step_gradients(model, docs)
    got = step_gradients(model, docs + [silent], budget=20)
    assert got[0] == pytest.approx(want[0], rel=1e-6)
    same(got[1], want[1], 1e-5)


# -----------------------------------------------------------------------------
# chat: ids and masks
# -----------------------------------------------------------------------------
SINGLE = [{"role": "user", "content": "How do I brew a pot of tea?"}, {"role": "assistant", "content": "Sure! First, heat the water."}]
MULTI = [{"role": "system", "content": "Write a short poem."}, *SINGLE, {"role": "user", "content": "And a kite line?"}, {"role": "assistant", "content": "Yes."}]


def targets(chat, messages):
    """the trained stretches, decoded with their special tokens."""
    ids, mask = chat.encode(messages)
    assert len(ids) == len(mask) and set(mask) <= {0, 1}
    runs, on = [], False
    for t, m in zip(ids, mask):
        if m:
            runs = runs if on else runs + [[]]
            runs[-1].append(t)
        on = bool(m)
    return [chat.tok.decode(r, skip_special_tokens=False) for r in runs], ids


def test_prompt_and_row_equal_apply_chat_template(folder, chat):
    tok = transformers.AutoTokenizer.from_pretrained(folder)
    as_ids = lambda m, **kw: list(tok.apply_chat_template(m, tokenize=True, return_dict=True, **kw)["input_ids"])
    assert chat.prompt(SINGLE[0]["content"]) == as_ids(SINGLE[:1], add_generation_prompt=True)
    for messages in (SINGLE, MULTI):
        ids, mask = chat.encode(messages)
        assert ids == as_ids(messages)
        start = mask.index(1)
        assert ids[:start] == as_ids(messages[:messages.index(SINGLE[0]) + 1], add_generation_prompt=True)   # what is trained follows what is prompted


def test_targets_are_the_answers_and_their_end_token(chat):
    assert targets(chat, SINGLE)[0] == ["Sure! First, heat the water.<|im_end|>"]
    assert targets(chat, MULTI)[0] == ["Sure! First, heat the water.<|im_end|>", "Yes.<|im_end|>"]
    # an answer that begins with the end of a merge, with spaces, or is not ASCII
    for text in (" the tea", "\n\nSure", "Zoë \N{KITE} té"):
        assert targets(chat, [SINGLE[0], {"role": "assistant", "content": text}])[0] == [text + "<|im_end|>"]
    # a question after the last answer is no target
    assert targets(chat, [*SINGLE, {"role": "user", "content": "And?"}])[0] == ["Sure! First, heat the water.<|im_end|>"]


def test_rows_without_an_answer_or_with_bad_fields_stop_with_the_place(chat, capsys):
    for messages in (SINGLE[:1], [], [{"role": "tool", "content": "x"}, *SINGLE], [SINGLE[0], {"role": "assistant", "content": 3}], ["hello"]):
        with pytest.raises(SystemExit) as e:
            chat.encode(messages, "rows.jsonl:7")
        assert e.value.code == 2 and "rows.jsonl:7" in capsys.readouterr().err


def test_encode_rows_drops_long_rows_and_counts_them(chat, capsys):
    rows = [{"messages": SINGLE, "_at": "f:1"}, {"messages": MULTI, "_at": "f:2"}]
    short = len(chat.encode(SINGLE)[0])
    docs = lu.encode_rows(chat, rows, short)
    assert [d.at for d in docs] == ["f:1"] and "dropped 1 of 2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        lu.encode_rows(chat, rows, short - 1)


def chat_with(folder, template, tok=None, bos="<|im_start|>", eos="<|im_end|>", eos_id=2):
    """a model folder with another template, and maybe another tokenizer."""
    nano.build(folder, eos_token_id=eos_id)
    if tok:
        tok.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": eos, "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}))
    return lu.Chat(folder, lu.read_config(folder))


def test_a_template_that_rewrites_history_is_refused(tmp_path, capsys):
    # reasoning models drop earlier thoughts; a generation prompt that opens a thought is not a prefix of the row either
    rewriting = nano.TEMPLATE.replace("message['content'] +", "(message['content'] if loop.last else message['content'].split(' ')[-1]) +")
    chat = chat_with(tmp_path / "a", rewriting)
    assert targets(chat, SINGLE[:0] + [SINGLE[0] | {"content": "Tea?"}, SINGLE[1]])[0]   # one turn is fine
    with pytest.raises(SystemExit) as e:
        chat.encode(MULTI, "rows.jsonl:3")
    assert e.value.code == 2 and "rows.jsonl:3" in (err := capsys.readouterr().err) and "rewrites" in err
    chat = chat_with(tmp_path / "b", nano.TEMPLATE.replace("assistant\n'", "assistant\n<think>'"))
    with pytest.raises(SystemExit) as e:
        chat.encode(SINGLE)
    assert e.value.code == 2


LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
          "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
          "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
          "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
          "{% else %}{% set content = message['content'] %}{% endif %}"
          "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
          "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")


def llama2_tokenizer():
    """the normaliser of Llama 2's tokenizer.json: a space is put before every stretch of text, spaces become U+2581; no pre-tokenizer."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    words = [w for t in nano.TEXT for w in t.split()] + ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "poem.", "And", "Yes.", "\n", " " * 4]
    tok.train_from_iterator(words * 3, trainers.BpeTrainer(vocab_size=384, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False, min_frequency=1))
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    return tok


def test_llama2_template(tmp_path):
    chat = chat_with(tmp_path, LLAMA2, llama2_tokenizer(), "<s>", "</s>")
    assert [a.split("</s>")[0].strip() for a in targets(chat, MULTI)[0]] == ["Sure! First, heat the water.", "Yes."]
    runs, ids = targets(chat, MULTI)
    assert all(r.endswith("</s>") for r in runs) and ids.count(2) == 2 and ids.count(1) == 2    # every answer ends; one BOS a turn
    assert not any(ids[i] == ids[i + 1] == 1 for i in range(len(ids) - 1))                     # and none doubled
    prompt = chat.prompt(SINGLE[0]["content"])
    assert prompt[0] == 1 and prompt.count(1) == 1 and 2 not in prompt
    assert ids[:1] == [1] and chat.encode(SINGLE)[0][:len(prompt)] == prompt                    # trained after exactly what is prompted
    assert targets(chat, SINGLE)[1][-1] == 2


def test_llama2_answers_are_tokenised_as_the_model_writes_them(tmp_path):
    """a stretch tokenised alone gets the normaliser's extra space: the answer would begin with a token that the model never saw there."""
    chat = chat_with(tmp_path, LLAMA2, llama2_tokenizer(), "<s>", "</s>")
    for messages in (SINGLE, MULTI):
        assert chat.encode(messages)[0] == chat.ids(chat.render(messages, False))


def test_a_template_without_end_token_still_teaches_to_stop(tmp_path):
    chat = chat_with(tmp_path, "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    runs, ids = targets(chat, MULTI)
    assert len(runs) == 2 and all(r.endswith("<|im_end|>") for r in runs)


def test_any_end_token_of_the_model_ends_an_answer(tmp_path):
    """Llama 3 Instruct as first released: the tokenizer's eos is <|end_of_text|>, the turn ends with <|eot_id|>, the model stops at both."""
    chat = chat_with(tmp_path, nano.TEMPLATE, eos="<|endoftext|>", eos_id=[0, 2])
    assert targets(chat, MULTI)[0] == ["Sure! First, heat the water.<|im_end|>", "Yes.<|im_end|>"]   # and nothing after the end of a turn


def test_doubled_bos_is_refused(tmp_path):
    chat = chat_with(tmp_path, "{{ bos_token + bos_token }}" + nano.TEMPLATE, bos="<|endoftext|>")
    with pytest.raises(SystemExit) as e:
        chat.prompt("Tea?")
    assert e.value.code == 2


def test_templates_of_today_load(tmp_path):
    # {% generation %} (assistant masks) and {% break %} are part of transformers' dialect
    for template in (nano.TEMPLATE.replace("{{'<|im_start|>'", "{% generation %}{{'<|im_start|>'").replace("{% endfor %}", "{% endgeneration %}{% endfor %}"),
                     nano.TEMPLATE.replace("{% endfor %}", "{% if message['role'] == 'stop' %}{% break %}{% endif %}{% endfor %}")):
        chat = chat_with(tmp_path, template)
        assert targets(chat, SINGLE)[0] == ["Sure! First, heat the water.<|im_end|>"]


def test_a_broken_template_is_one_line_and_exit_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        chat_with(tmp_path, "{% for m in messages %}")
    assert e.value.code == 2 and capsys.readouterr().err.count("\n") == 1


# -----------------------------------------------------------------------------
# scoring without generation; merged weights
# -----------------------------------------------------------------------------
def test_choice_logprobs_equal_plain_forwards(folder):
    model = adapted(load(folder))
    contexts, answers = tokens(17, 3, 40, 9, seed=1), tokens(1, 5, 2, 9, 1, 3, 4, 12, 2, seed=2)
    items = list(zip(contexts, (answers[:3], answers[3:4], answers[4:8], answers[8:])))
    got = model.choice_logprobs(items)
    for (ctx, choices), logp in zip(items, got):
        assert len(logp) == len(choices)
        for choice, value in zip(choices, logp):
            z = logits(model, ctx + choice)[0].log_softmax(-1)
            want = sum(z[len(ctx) + j - 1, t].item() for j, t in enumerate(choice))
            assert abs(value - want) < 1e-4
    alone = [model.choice_logprobs([i])[0] for i in items]
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(alone, got))


def test_multiple_choice_splits_context_and_continuation_as_lm_eval(chat):
    rows = [{"context": "Question: Which knot holds?\nAnswer:", "continuations": [" the kite", " a"]}]
    (ctx, choices), = lu.choice_items(chat, rows)
    for text, ids in zip(rows[0]["continuations"], choices):
        assert ids and ctx + ids == chat.ids(rows[0]["context"] + text)


def test_multiple_choice_is_in_the_order_of_its_rows(folder, chat):
    """items are scored longest last; verdicts must come back in file order."""
    model = adapted(load(folder))
    words = ["a short", "What is the capital of Peru", "How do I brew a pot of tea and hold a kite line best", "whistle"]
    rows = [{"context": f"Question: {w}?\nAnswer:", "continuations": [" the", " sea", " tea water"], "answer": i % 3} for i, w in enumerate(words)]
    got = lu.multiple_choice(model, chat, rows)
    for i, r in enumerate(rows):
        one = lu.multiple_choice(model, chat, [r])
        assert one["correct"][0] == got["correct"][i] and one["correct_norm"][0] == got["correct_norm"][i]
    assert 0 < sum(got["correct"]) < len(rows) or 0 < sum(got["correct_norm"]) < len(rows)   # else order would not show


def test_doc_nll_equals_plain(folder):
    model, a = adapted(load(folder)), flags(folder / "out", "--micro-tokens", 60)
    docs = documents(31, 12, 50, 5)
    nll, count = lu.doc_nll(model, docs, a)
    half, _ = lu.doc_nll(model, docs, a, 0.5)
    assert count.tolist() == [sum(d.mask[1:]) for d in docs]
    for d, x in zip(docs, nll):
        z = F.cross_entropy(logits(model, d.ids)[0][:-1], torch.tensor(d.ids[1:]), reduction="none")
        assert abs(x - (z * torch.tensor(d.mask[1:])).sum().item()) < 1e-4
    assert np.abs(half - nll).min() > 1e-3                               # the scale reaches the model


def test_refusal_log_odds_equals_plain(folder, chat):
    model = adapted(load(folder))
    prompts = ["How do I brew tea?", "Hi", "Which knot holds a kite line best, and why?"]
    first = sorted({chat.ids(w)[0] for w in lu.REFUSAL_STARTS})
    for x, p in zip(lu.refusal_log_odds(model, chat, prompts), prompts):
        prob = logits(model, chat.prompt(p))[0][-1].double().softmax(-1)[first].sum().item()
        assert x == pytest.approx(math.log(prob / (1 - prob)), abs=1e-3)


@pytest.mark.parametrize("bits, roomy", [(16, True), (4, True), (16, False), (4, False)])
def test_merged_equals_scaled_adapter_and_restores(folder, monkeypatch, bits, roomy):
    model, ids = adapted(load(folder, bits), "q,v,o,gate,down"), tokens(25)[0]
    if not roomy:
        monkeypatch.setattr(lu, "free_memory", lambda device: 0)         # dense weights do not fit: layers dequantise on the fly
    state = lambda: [(id(lin.dense), id(lin.codes), id(lin.A), id(lin.B), lin.s) for _, lin in model.linears()]
    values = lambda: [t.clone() for _, lin in model.linears() for t in (lin.dense, lin.codes, lin.A, lin.B) if t is not None]
    before, copies, plain = state(), values(), logits(model, ids)[0]
    want = {}
    for scale in (0.0, 0.37, 1.0):
        for _, lin in model.linears():
            lin.s *= scale
        want[scale] = logits(model, ids)[0]
        for (_, lin), s in zip(model.linears(), [x[-1] for x in before]):
            lin.s = s
    bare = load(folder, bits)
    assert near(want[0.0], logits(bare, ids)[0], 1e-6) and not near(want[0.37], plain, 1e-2)
    for scale, w in want.items():
        with model.merged(scale) as m:
            assert m is model and all((lin.dense is not None and lin.A is None) == roomy for n, lin in model.linears() if lin.s) if scale else True
            assert near(logits(model, ids)[0], w, 1e-4)
        assert state() == before and all(map(torch.equal, values(), copies))
    with pytest.raises(ZeroDivisionError):                               # and after an error inside
        with model.merged(0.5):
            1 / 0
    assert state() == before and torch.equal(logits(model, ids)[0], plain)
    assert len(list(model.parameters())) == 2 * 2 * 5                    # A and B are still registered, so training goes on


# -----------------------------------------------------------------------------
# SafeLoRA
# -----------------------------------------------------------------------------
def test_safe_lora_equals_the_naive_formulation(tmp_path):
    """C = V V^T / |V|_F and BA written out in fp64, for tau that projects all, some and none of the layers."""
    aligned, base = nano.build(tmp_path / "aligned", seed=1), nano.build(tmp_path / "base", seed=2)
    index = [lu.checkpoint_index(f) for f in (aligned, base)]
    model = adapted(load(aligned))
    start = {k: v.clone() for k, v in model.adapter().items()}
    naive = {}
    for name, lin in model.linears():
        V = (lu.read_tensor(index[0][f"{name}.weight"]) - lu.read_tensor(index[1][f"{name}.weight"])).double()
        C = V @ V.T / V.norm()
        BA = lin.B.detach().double() @ lin.A.detach().double()
        CBA = C @ BA
        naive[name] = ((CBA * BA).sum() / (CBA.norm() * BA.norm())).item(), C @ lin.B.detach().double()
    cosines = sorted(c for c, _ in naive.values())
    for tau, n in ((1.0, 14), ((cosines[6] + cosines[7]) / 2, 7), (-1.0, 0)):
        model.load_adapter(start)
        got = lu.safe_lora(model, *index, tau)
        assert got.keys() == naive.keys() and sum(c <= tau for c in got.values()) == n
        for name, lin in model.linears():
            cos, CB = naive[name]
            assert got[name] == pytest.approx(cos, abs=1e-5)
            before = start[f"base_model.model.{name}.lora_B.weight"]
            assert near(lin.B.detach().double(), CB, 1e-5) if cos <= tau else torch.equal(lin.B.detach(), before)
            assert torch.equal(lin.A.detach(), start[f"base_model.model.{name}.lora_A.weight"])
    assert len({round(c, 3) for c in cosines}) > 7                       # the cosines differ, so that a mix-up of layers shows


def test_safe_lora_leaves_layers_without_difference_or_adapter_alone(tmp_path):
    folder = nano.build(tmp_path, seed=1)
    index = lu.checkpoint_index(folder)
    model = adapted(load(folder), "q,v")
    start = {k: v.clone() for k, v in model.adapter().items()}
    got = lu.safe_lora(model, index, index, 0.5)                         # aligned == base: no direction to project on, and no NaN
    assert got == {} and all(torch.equal(v, start[k]) for k, v in model.adapter().items())


# -----------------------------------------------------------------------------
# adapter files, exact resume
# -----------------------------------------------------------------------------
@pytest.mark.parametrize("targets", [ALL, "q,v", "down"])
def test_saved_adapter_loads_in_peft_with_the_same_logits(folder, tmp_path, targets):
    a = flags(tmp_path, "--model", folder, "--targets", targets)
    model = adapted(load(folder), targets)
    lu.save_adapter(model, tmp_path / "adapter", a)
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]   # no temporary file
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert set(saved) == {f"base_model.model.model.layers.{i}.{lu.LINEARS[t]}.lora_{x}.weight" for i in range(2) for t in targets.split(",") for x in "AB"}
    assert all(v.dtype == torch.float32 for v in saved.values())
    ref = peft.PeftModel.from_pretrained(hf(folder), tmp_path / "adapter").eval()
    missing = [k for k, p in ref.named_parameters() if "lora_B" in k and not p.any()]
    docs = tokens(25, 8)
    assert not missing and all((x - y).abs().max() < 1e-4 for x, y in zip(logits(model, *docs), hf_logits(ref, *docs)))
    assert (logits(load(folder), docs[0])[0] - logits(model, docs[0])[0]).abs().max() > 1e-2   # the adapter is not a no-op
    other = adapted(load(folder), targets, seed=5)                       # and back into our own model
    other.load_adapter(saved)
    assert all(torch.equal(other.adapter()[k], saved[k]) for k in saved)


def training(folder, out, *more):
    a = flags(out, "--epochs", 2, "--batch", 2, "--save-every", 2, "--eval-every", 1, *more)
    model = load(folder)
    model.add_lora(ALL.split(","), 4, 12, 0)
    return a, model, documents(20, 9, 31, 12, 7, seed=4)                 # 5 rows, 3 steps an epoch, 6 steps


def test_resume_is_exact(folder, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    a, model, docs = training(folder, tmp_path / "whole")
    lu.train(model, docs, a, 0, tmp_path / "whole", quiet=True)
    whole = {k: v.clone() for k, v in model.adapter().items()}
    rows = [json.loads(l) for l in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["loss"] < rows[0]["loss"]

    class Kill(Exception):
        pass

    def stop_at(n, how):
        calls = iter(range(1, 99))

        def probe():   # called once a step, before anything of that step is written
            if next(calls) == n:
                how()
            return {}
        return probe

    def ctrl_c():
        lu.STOP = True

    def kill():
        raise Kill
    for n, how, error in ((1, ctrl_c, SystemExit), (3, ctrl_c, SystemExit), (4, ctrl_c, SystemExit), (4, kill, Kill)):
        out = tmp_path / f"{n}{how.__name__}"
        out.mkdir()
        a, model, docs = training(folder, out)
        monkeypatch.setattr(lu, "STOP", False)
        with pytest.raises(error) as e:
            lu.train(model, docs, a, 0, out, probe=stop_at(n, how), quiet=True)
        assert how is kill or e.value.code == 130
        monkeypatch.setattr(lu, "STOP", False)
        a, model, docs = training(folder, out, "--resume")
        adapted(model, seed=77)                                          # whatever is in memory must be overwritten
        log = lu.train(model, docs, a, 0, out, quiet=True)
        assert all(torch.equal(v, whole[k]) for k, v in model.adapter().items()), (n, how)
        again = [json.loads(l) for l in (out / "log.jsonl").read_text().splitlines()]
        assert [r["step"] for r in again] == [r["step"] for r in log] == [1, 2, 3, 4, 5, 6]
        assert [(r["loss"], r["lr"], r["grad_norm"]) for r in again] == [(r["loss"], r["lr"], r["grad_norm"]) for r in rows]
        assert sorted(p.name for p in (out / "state").iterdir()) == ["state.safetensors"]
    monkeypatch.setattr(lu, "TRAINING", False)


def test_log_has_every_step_after_a_kill_between_state_and_log(folder, tmp_path, monkeypatch):
    a, model, docs = training(folder, tmp_path)
    save, n = lu.save_state, iter(range(1, 99))

    def save_and_die(*args):
        save(*args)
        if next(n) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(lu, "save_state", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        lu.train(model, docs, a, 0, tmp_path, quiet=True)
    monkeypatch.setattr(lu, "save_state", save)
    with open(tmp_path / "log.jsonl", "a") as f:
        f.write('{"step": 5, "lo')                                       # and the half line of a torn write
    a, model, docs = training(folder, tmp_path, "--resume")
    lu.train(model, docs, a, 0, tmp_path, quiet=True)
    monkeypatch.setattr(lu, "TRAINING", False)
    assert [json.loads(l)["step"] for l in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_state_of_other_rows_is_refused(folder, tmp_path):
    a, model, docs = training(folder, tmp_path)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    step_gradients(model, docs)
    opt.step()
    path = tmp_path / "state" / "state.safetensors"
    lu.save_state(path, model, opt, 1, "key")
    saved = load_file(path)
    assert len(saved) == 3 * len(list(model.parameters()))
    fresh = torch.optim.AdamW(adapted(load(folder)).parameters(), lr=1e-3, fused=True)
    with pytest.raises(SystemExit) as e:
        lu.load_state(path, model, fresh, "another key")
    assert e.value.code == 2
    a, _, _ = training(folder, tmp_path, "--resume")
    with pytest.raises(SystemExit) as e:                                 # the same, through the loop: one row more
        lu.train(model, docs + docs[:1], a, 0, tmp_path, quiet=True)
    assert e.value.code == 2


def test_rows_are_seen_once_an_epoch_in_an_order_of_the_seed(folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(lu, "micro_batches", lambda rows, budget, f=lu.micro_batches: seen.append([d.at for d in rows]) or f(rows, budget))
    orders = {}
    for seed in (0, 0, 1):
        seen.clear()
        a, model, docs = training(folder, tmp_path)
        lu.train(model, docs, a, seed, quiet=True)
        flat = [at for rows in seen for at in rows]
        assert [len(rows) for rows in seen] == [2, 2, 1] * 2 and sorted(flat[:5]) == sorted(flat[5:]) == [d.at for d in docs]
        assert flat[:5] != flat[5:]                                      # another order in the second epoch
        orders.setdefault(seed, []).append(flat)
    assert orders[0][0] == orders[0][1] != orders[1][0]


# -----------------------------------------------------------------------------
# schedule and plan
# -----------------------------------------------------------------------------
def test_learning_rate_rises_then_falls_as_a_cosine():
    a = SimpleNamespace(lr=2.0, warmup=0.1)
    lr = [lu.lr_at(s, 100, a) for s in range(100)]
    assert lr[0] == pytest.approx(0.2) and lr[9] == pytest.approx(2.0) and np.allclose(np.diff(lr[:10]), 0.2)
    assert lr[10] == pytest.approx(2.0) and (np.diff(lr[10:]) < 0).all() and lr[55] == pytest.approx(1.0) and 0 < lr[99] < 0.002
    assert max(lr) == pytest.approx(2.0) and lu.lr_at(100, 100, a) == pytest.approx(0, abs=1e-9)
    assert lu.lr_at(0, 1, a) > 0 and lu.lr_at(0, 5, SimpleNamespace(lr=2.0, warmup=0.0)) == pytest.approx(2.0)


def test_the_plan_at_70b(tmp_path):
    """the arithmetic of specs/performance.md, section 1."""
    c = lu.finish_config(dict(lu.SIZES["70b"][1]))
    a = lu.parse_args(["--size", "70b", "--device", "cpu", "--micro-tokens", "8192"])
    N, E = lu.n_params(c)
    assert N == 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672) and N / 1e9 == pytest.approx(68.45, abs=0.01) and E == 2 * 32000 * 8192
    assert lu.n_lora(c, a) / 1e6 == pytest.approx(207, abs=0.5)
    plan = lu.memory_plan(c, a, 2, True)
    assert plan["base, 4 bits"] / 1e9 == pytest.approx(35.3, abs=0.05) and plan["embedding + head"] / 1e9 == pytest.approx(1.05, abs=0.01)
    assert plan["LoRA: w, grad, Adam m, v (fp32)"] / 1e9 == pytest.approx(3.3, abs=0.05) and plan["block inputs"] == 8192 * 8192 * 2 * 80
    assert sum(plan.values()) < 80e9                                     # the paper's claim: one 80 GB GPU
    assert sum(lu.memory_plan(c, a, 2, False).values()) > 80e9           # and only with checkpointing
    plan, checkpoint, fits = lu.choose_plan(c, a, 80e9, 2)
    assert checkpoint and fits and not lu.choose_plan(c, a, 40e9, 2)[2] and not lu.choose_plan(c, a, 1e13, 2)[1]
    flops = lu.flops_per_token(c, 2048, True)
    down = 2 * 80 * 8192 * 28672                                         # never recomputed
    attention, head = 80 * 2 * 2048 * 8192 * 4.5, 4 * 32000 * 8192
    assert flops == pytest.approx(6 * N - down + attention + head, rel=1e-9) and flops == pytest.approx(4.11e11 - down + 1.2e10 + 1e9, rel=0.01)
    assert lu.flops_per_token(c, 2048, False) == pytest.approx(4 * N + 80 * 2 * 2048 * 8192 * 3.5 + head, rel=1e-9)


def test_the_4_bit_base_weighs_what_the_plan_says(tmp_path):
    """bytes of a real layer, not of the formula: codes, 8-bit absmax, fp32 absmax of absmax."""
    lin = lu.Linear(512, 1024)
    lin.set_weight(torch.randn(512, 1024), 4)
    size = sum(t.numel() * t.element_size() for t in (lin.codes, *lin.absmax))
    assert size == pytest.approx(512 * 1024 * (0.5 + 1 / 64 + 4 / 16384), abs=8) and lin.dense is None


def test_4_bit_cache_gives_the_same_model(folder, tmp_path):
    a = flags(tmp_path, "--bits", 4)
    cold = lu.load_model(folder, a, "cpu", torch.float32)
    assert (tmp_path / "cache" / f"nf4-{cold.c['id']}" / "done").exists()
    warm = lu.load_model(folder, a, "cpu", torch.float32)
    for (_, x), (_, y) in zip(cold.linears(), warm.linears()):
        assert torch.equal(x.codes, y.codes) and all(map(torch.equal, x.absmax, y.absmax))
    docs = tokens(12)
    assert torch.equal(logits(cold, *docs)[0], logits(warm, *docs)[0])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_checkpoints_in_half_precision_load(tmp_path, kind):
    nano.build(tmp_path)
    w = {k: v.to(kind) for k, v in load_file(tmp_path / "model.safetensors").items()}
    save_file(w, tmp_path / "model.safetensors", metadata={"format": "pt"})
    m = load(tmp_path)
    assert torch.equal(m.embed, w["model.embed_tokens.weight"].float()) and torch.equal(m.blocks[1].down.dense, w["model.layers.1.mlp.down_proj.weight"].float())
    four = load(tmp_path, 4)                                             # quantised from the file's own dtype
    assert torch.equal(four.blocks[0].q.codes, lu.nf4_quantize(w["model.layers.0.self_attn.q_proj.weight"])[0])
