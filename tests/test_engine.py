"""The engine of lora_undo.py against independent references: transformers, peft, bitsandbytes, plain autograd, values
worked out by hand. Run: python -m pytest tests/test_engine.py (about a minute on one core; no network, no GPU)
"""
import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.autograd import gradcheck
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import engine
import lora_undo as lu
import nano

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
ROOT = Path(__file__).resolve().parent.parent


def tokens(*lengths, seed=0):
    """lists of random ids, special tokens left out."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 384, n).tolist() for n in lengths]


def documents(*lengths, seed=0):
    """[Doc] of random ids; the first third is prompt, the rest is answer."""
    return [lu.Doc(ids, [0.0] * (len(ids) // 3) + [1.0] * (len(ids) - len(ids) // 3), f"rows:{i}")
            for i, ids in enumerate(tokens(*lengths, seed=seed))]


def load(folder, bits=16, dtype=torch.float32, longest=64):
    return lu.load_model(str(folder), bits, "cpu", dtype, longest)[0]


def adapted(model, targets="all", seed=0):
    """LoRA with B far from 0: at B = 0 the gradient of A is 0, and half of the formulas are never exercised."""
    lu.add_lora(model, 4, 12, seed, targets)
    gen = torch.Generator().manual_seed(seed + 1)
    for key, p in lu.adapter(model).items():
        if "lora_B" in key:
            p.data.normal_(0, 0.1, generator=gen)
    return model


def reference(folder, model):
    """transformers' model with the same base weights: dequantised, if they are in 4 bits."""
    ref = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).eval().requires_grad_(False)
    for name, lin in lu.linears(model):
        ref.get_submodule(name).weight.copy_(lin.dense(model.dtype))
    return ref


@torch.no_grad()
def packed_logits(model, *ids):
    """one packed forward -> a (T, V) for each document."""
    h = lu.hidden(model, lu.pack([lu.Doc(x, [1.0] * len(x), "") for x in ids], "cpu"))
    return lu.logits(model, h).split([len(x) for x in ids])


@torch.no_grad()
def logprob(ref, prefix, continuation):
    z = ref(torch.tensor([prefix + continuation])).logits[0].float().log_softmax(-1)
    return sum(z[len(prefix) + j - 1, t].item() for j, t in enumerate(continuation))


def step(model, docs, budget=10**6):
    """loss and adapter gradients of one step as the loop makes them: sum over packs / targets of the step."""
    total, loss = sum(sum(d.weights[1:]) for d in docs), 0.0
    for p in lu.adapter(model).values():
        p.grad = None
    for group in lu.micro_batches(docs, budget):
        part = lu.answer_loss(model, lu.pack(group, "cpu")) / total
        part.backward()
        loss += part.item()
    return loss, {k: p.grad.clone() for k, p in lu.adapter(model).items()}


def near(a, b, tol):
    """largest difference over the largest magnitude."""
    return (a - b).abs().max().item() <= tol * max(b.abs().max().item(), 1e-30)


def same(g, h, tol):
    assert g.keys() == h.keys() and g
    bad = [k for k in g if not (g[k] - h[k]).norm() <= tol * h[k].norm() + 1e-12]
    assert not bad, bad


def stops(call, *args, **kw):
    """the call ends the program with exit status 2."""
    with pytest.raises(SystemExit) as e:
        call(*args, **kw)
    assert e.value.code == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """grouped-query, tied: the miniature's own shape."""
    return nano.build(tmp_path_factory.mktemp("nano"), seed=3)


@pytest.fixture
def model(folder):
    return load(folder)


# ---- NF4 ----------------------------------------------------------------------------------------------------------
MIDPOINTS = (lu.NF4[1:] + lu.NF4[:-1]) / 2


def dequantize(codes, scales, n, dtype=torch.float32):
    return lu.dequantize_plain(codes, scales, torch.empty(n, dtype=dtype))


def nibbles(codes, n):
    return torch.stack([codes >> 4, codes & 15], 1).flatten()[:n].tolist()


def test_nf4_golden_values():
    """appendix E's constants, the packing order and the nearest code, by hand."""
    assert lu.NF4[[0, 1, 7, 8, 14, 15]].tolist() == torch.tensor(
        [-1.0, -0.6961928009986877, 0.0, 0.07958029955625534, 0.7229568362236023, 1.0]).tolist()
    w = torch.zeros(64)
    w[:5] = torch.tensor([2.0, -2.0, 0.0, 1.4, -1.4])  # 0.7 is nearest 0.7230 (14), -0.7 nearest -0.6962 (1)
    codes, scales = lu.quantize(w)
    assert codes.dtype == torch.uint8 and codes.tolist() == [0xF0, 0x7E, 0x17] + [0x77] * 29
    back = dequantize(codes, scales, 64)  # one block: the mean of absmax is absmax, so it survives as it is
    assert torch.equal(back[:5], 2 * lu.NF4[[15, 0, 7, 14, 1]]) and not back[5:].any()
    w = torch.cat([lu.NF4, lu.NF4.flip(0)]).repeat(2) * 0.75  # every code, in both nibbles
    codes, scales = lu.quantize(w.view(8, 8))
    assert nibbles(codes, 64) == [*range(16), *range(15, -1, -1)] * 2
    assert torch.equal(dequantize(codes, scales, 64), w)


def test_nf4_ties_go_to_the_lower_code():
    up = torch.nextafter(MIDPOINTS, torch.full_like(MIDPOINTS, 9.0))
    w = torch.cat([torch.tensor([1.0]), MIDPOINTS, up, torch.zeros(33)])  # absmax 1 keeps the midpoints exact
    q = nibbles(lu.quantize(w)[0], 64)
    assert q[1:16] == list(range(15)) and q[16:31] == list(range(1, 16))


@pytest.mark.parametrize("shape", [(1,), (63,), (65,), (3, 5), (7, 64), (33, 129), (300, 64)])
def test_nf4_any_size(shape):
    """nearest code and nearest level the slow way; a row does not end at a block, nor a matrix at a byte."""
    w, gen = torch.randn(shape), torch.Generator().manual_seed(0)
    w = w * torch.rand(shape[0], generator=gen).view(-1, *[1] * (len(shape) - 1))
    codes, (q, absmax2, offset) = lu.quantize(w)
    n, blocks = w.numel(), -(-w.numel() // 64)
    assert codes.shape == ((n + 1) // 2,) and q.shape == (blocks,) and absmax2.shape == (-(-blocks // 256),)
    absmax = torch.stack([b.abs().max() for b in w.flatten().split(64)])
    assert torch.isclose(offset, absmax.mean())
    level = lu.DYNAMIC[q.long()] * absmax2.repeat_interleave(256)[:blocks]
    gaps = (lu.DYNAMIC - ((absmax - offset) / absmax2.repeat_interleave(256)[:blocks].clamp(min=1e-38))[:, None]).abs()
    assert near((level - (absmax - offset)).abs(), gaps.min(1).values * absmax2.repeat_interleave(256)[:blocks], 1e-4)
    nearest = (w.flatten() / absmax.repeat_interleave(64)[:n] - lu.NF4[:, None]).abs().argmin(0)
    want = lu.NF4[nearest] * (level + offset).repeat_interleave(64)[:n]
    assert near(dequantize(codes, (q, absmax2, offset), n), want, 1e-6)


def test_dynamic_levels_by_hand():
    """bitsandbytes' 8-bit map: 0, 1, and in seven decades 2^i levels at the middle of equal steps, both signs."""
    d = lu.DYNAMIC
    assert len(d) == 256 and (d.diff() > 0).all() and d[-1] == 1 and d[127] == 0
    assert torch.allclose(d[[0, 128, 254]], torch.tensor([-1 + 0.9 / 128, 5.5e-7, 1 - 0.9 / 128]))


def test_zero_blocks_stay_zero():
    w = torch.randn(8, 128) * 0.02
    w[2:5], w[6, :64] = 0, -0.0
    back = dequantize(*lu.quantize(w), w.numel()).view(8, 128)
    assert back.isfinite().all() and not back[2:5].any() and not back[6, :64].any()
    assert not dequantize(*lu.quantize(torch.zeros(200)), 200).any()


def test_nf4_is_bit_identical_to_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes")
    gen = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=gen) * 0.03

    zeros = rand(8, 128)
    zeros[2:5] = 0
    scale = torch.tensor([1.0, 0.5, 4.0, 2**-10])[:, None]  # powers of two: the ties stay exact
    ties = torch.cat([scale, MIDPOINTS.repeat(17)[:252].view(4, 63) * scale], 1)
    cases = {"random": rand(512, 256), "bf16": rand(512, 256).bfloat16(), "zero blocks": zeros, "ties": ties,
             "odd": rand(33, 129), "tail": rand(100), "one": rand(1), "bf16 tail": rand(301).bfloat16(),
             "zero tail": torch.cat([rand(64), torch.zeros(5)]), "tiny": rand(256) * 1e-30}
    for name, w in cases.items():
        want, state = bnb.quantize_4bit(w, quant_type="nf4", blocksize=64)
        absmax = lu.quantize_blockwise(w.flatten(), lu.NF4, 64)[1]
        assert torch.equal(lu.quantize(w)[0], want.flatten()), name
        assert torch.allclose(absmax, state.absmax.flatten(), rtol=0, atol=1e-37), name  # it says 1e-38 for 0


def test_double_quantisation_equals_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes")
    assert torch.equal(lu.DYNAMIC, bnb.create_dynamic_map())
    gen = torch.Generator().manual_seed(1)
    for shape in ((1, 100), (192, 64), (256, 576), (320, 200)):  # 2 blocks; 3, 9 and 3.9 second-level blocks
        w = (torch.randn(*shape, generator=gen) * torch.rand(shape[0], 1, generator=gen)).bfloat16()
        want, state = bnb.quantize_4bit(w, quant_type="nf4", blocksize=64, compress_statistics=True)
        codes, (q, absmax2, offset) = lu.quantize(w)
        theirs = state.absmax.flatten()
        assert torch.equal(codes, want.flatten())
        assert torch.equal(absmax2, state.state2.absmax) and torch.equal(offset, state.offset)
        # its CPU kernel finds the level through a table of 2^16 bins (its CUDA kernel and ours compare with the
        # midpoints): near a midpoint it may miss the nearest level by one. Ours is then never the worse one
        assert (q != theirs).float().mean() < 0.02 and (q.int() - theirs.int()).abs().max() <= 1
        for dtype in (torch.bfloat16, torch.float32):  # with the same codes: the same bits
            state.dtype = dtype
            ours = dequantize(codes, (theirs, absmax2, offset), w.numel(), dtype).view(shape)
            assert torch.equal(ours, bnb.dequantize_4bit(want, state))


INTERPRETED = """
import torch, lora_undo as lu
gen = torch.Generator().manual_seed(0)
for n in (1, 63, 64, 65, 127, 4096, 4097, 16448, 70001):  # odd tails, several programs, several second-level blocks
    w = torch.randn(n, generator=gen) * torch.rand(n, generator=gen)
    w[64:128] = 0
    codes, scales = lu.quantize(w)
    want = lu.dequantize_plain(codes, scales, torch.empty(n))
    cut = (want.view(torch.int32) & -65536).view(torch.float32)  # the interpreter cuts to bf16, a GPU rounds
    for dtype, want in ((torch.float32, want), (torch.bfloat16, cut)):
        room = torch.full((n + 64,), 7, dtype=dtype)
        lu.dequantize_triton(codes, scales, room[:n])
        print(n, dtype, torch.equal(room[:n], want.to(dtype)) and bool((room[n:] == 7).all()))
"""


def test_triton_kernel_gives_the_bits_of_the_plain_function():
    """Triton's interpreter runs the kernel on a CPU; it must be asked for before triton is imported."""
    pytest.importorskip("triton", reason="needs triton")
    done = subprocess.run([sys.executable, "-c", INTERPRETED], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"TRITON_INTERPRET": "1"})
    lines = done.stdout.splitlines()
    assert len(lines) == 18 and all(x.endswith("True") for x in lines), done.stdout + done.stderr


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("out", ["bf16", "fp32"])
def test_triton_kernel_compiles(arch, out):
    """to machine code, without a GPU. Offsets are 64 bits wide: a 70B layer's MLP has 2^28 values, others more."""
    triton = pytest.importorskip("triton", reason="needs triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    types = dict(codes="*u8", q="*u8", absmax2="*fp32", offset="*fp32", nf4="*fp32", dynamic="*fp32", n="i64",
                 out=f"*{out}")
    signature = {name: types.get(name, "constexpr") for name in lu.dequantize_kernel.arg_names}
    source = ASTSource(lu.dequantize_kernel, signature, constexprs={"ROWS": 64})
    try:
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": False})
    except (RuntimeError, OSError) as e:
        pytest.skip(f"no ptxas: {e}") if "ptxas" in str(e) else pytest.fail(str(e))
    assert f"sm_{arch}" in made.asm["ptx"] and len(made.asm["cubin"]) > 1000
    assert "fma.rn" not in made.asm["ptx"]  # the product is rounded before the offset is added, as on a CPU
    moves = [line for line in made.asm["ttir"].splitlines() if "tt.addptr" in line]
    wide = [line for line in moves if line.rstrip().partition(" loc(")[0].endswith("xi64>")]
    assert len(moves) - len(wide) == 3  # into the two tables only: nf4 twice, dynamic
