"""
What train_step.py and generate.py time: a folder's model, or random weights of a size, in lora_undo.py's
engine and in its peers' libraries. lu is the module lora_undo, a the flags.
"""
import argparse
import tempfile
import time
import zlib
from pathlib import Path

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA, LR = 16, 32, 1e-4
ROOT = Path(__file__).resolve().parent.parent

def model_flags(add):
    """of every bench: a model's folder, or the shape of a size with random weights."""
    add("--model", default=str(ROOT / "data/smollm2/model"), help="folder of a model")
    add("--layers", type=int, default=0, help="instead of --model: so many blocks of --size, random weights")
    add("--size", default="70b", help="shape of --layers: a size of lora_undo.py")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--dtype", choices=["fp32", "bf16"], help="default: lora_undo.py's for the device")

def shape(lu, a):
    D, ff, _, H, Hkv, V = lu.SIZES[a.size][1:]
    return lu.transformers.LlamaConfig(
        hidden_size=D, intermediate_size=ff, num_hidden_layers=a.layers, num_attention_heads=H,
        num_key_value_heads=Hkv, vocab_size=V, max_position_embeddings=4096)

def random_model(lu, a, dtype, place):
    """transformers' Llama, a tensor at a time on the device; place(nn.Linear) stands in for a block's linear.

    The seed is the tensor's name, so that all sides have the same weights. A bf16 model is never whole.
    """
    torch, config = lu.torch, shape(lu, a)
    with torch.device("meta"):
        model = lu.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, p in list(model.named_parameters()):
        path = name.removesuffix(".weight")
        module = model.get_submodule(path)
        weight = torch.ones(p.shape, dtype=dtype, device=a.device)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        if p.dim() == 2:
            gen = torch.Generator(a.device).manual_seed(zlib.crc32(name.encode()))
            weight.normal_(0, 0.02, generator=gen)
        if p.dim() == 2 and ".layers." in name:
            model.set_submodule(path, place(module))
        del module, weight  # else the last linear outlives its 4 bits
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(a.device)  # a buffer
    return model

def load_ours(lu, a, bits, dtype, longest):
    def nf4(linear):
        return lu.LoRALinear(linear, 4)

    if a.layers:
        model = lu.prepare(random_model(lu, a, dtype, nf4), longest)
    else:
        model, _ = lu.load_model(a.model, bits, a.device, dtype, longest)
    lu.add_lora(model, RANK, ALPHA, 0)
    return model

def load_peer(lu, a, dtype):
    """-> PeftModel, as each one's documentation has it."""
    four = a.side in ("peft-bnb", "liger", "unsloth")

    def nf4(linear):
        import bitsandbytes as bnb
        new = bnb.nn.Linear4bit(linear.in_features, linear.out_features, False, dtype, device="meta")
        new.weight = bnb.nn.Params4bit(linear.weight.data, quant_type="nf4", module=new)
        return new.to(a.device)  # quantises, and the scales too

    def dense(linear):
        return linear

    def random(*args, **kwargs):
        model = random_model(lu, a, dtype, nf4 if four else dense)
        model.is_loaded_in_4bit = four  # peft asks
        return model

    if a.side == "unsloth":
        return load_unsloth(lu, a, dtype, random)
    if a.side == "liger":  # replaces transformers' classes: before a model is made
        from liger_kernel.transformers import apply_liger_kernel_to_llama
        apply_liger_kernel_to_llama()
    from peft import LoraConfig, get_peft_model
    if a.layers:
        model = random()
    else:
        nf4_config = lu.transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype)
        model = lu.AutoModelForCausalLM.from_pretrained(
            a.model, dtype=dtype, device_map={"": a.device}, quantization_config=nf4_config if four else None)
    if four:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(model, config)

def load_unsloth(lu, a, dtype, random):
    """its loader wants a folder with a tokenizer; random weights come in where it calls transformers."""
    from tokenizers import Tokenizer, models
    from unsloth import FastLanguageModel
    with tempfile.TemporaryDirectory() as folder:
        if a.layers:
            words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}, "<unk>"))
            tok = lu.transformers.PreTrainedTokenizerFast(
                tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                unk_token="<unk>")
            tok.save_pretrained(folder)
            shape(lu, a).save_pretrained(folder)
            lu.AutoModelForCausalLM.from_pretrained = random
        model, _ = FastLanguageModel.from_pretrained(
            folder if a.layers else a.model, max_seq_length=a.len or 64, dtype=dtype, load_in_4bit=True)
    return FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, target_modules=TARGETS,
        use_gradient_checkpointing="unsloth")

# ---- a turn of each: rows in, seconds, losses and gradient norms out
def make_docs(lu, a, vocab):
    """random rows. The first half of a chat row is its prompt; in a long row every token is a target."""
    rng, docs, left = lu.np.random.default_rng(0), [], a.tokens
    while (n := a.len or int(rng.integers(35, 61))) <= left:
        prompt = 0 if a.len else n // 2
        weights = [0.0] * prompt + [1.0] * (n - prompt)
        docs.append(lu.Doc(rng.integers(0, vocab, n).tolist(), weights, "random"))
        left -= n
    return docs

def ours(lu, a, dtype):
    """-> function that makes a turn, rows, what it is, predicted peak in GB."""
    bits, longest = 16 if a.side == "ours-16" else 4, a.len or 60
    model = load_ours(lu, a, bits, dtype, longest)
    docs, blocks = make_docs(lu, a, model.vocab), model.get_decoder().config.num_hidden_layers
    reset_peak(lu, a)
    have = lu.free_memory(a.device) + lu.peak_gb(a.device) * 1e9
    tokens, kept, plan = lu.choose_split(model, RANK, have, a.micro_tokens, a.keep_blocks, longest)
    flags = argparse.Namespace(lr=LR, epochs=a.steps, batch=len(docs), seed=0, micro_tokens=tokens, kept=kept)

    def turn():
        return [(r["seconds"], r["loss"], r["grad_norm"]) for r in lu.train(model, docs, flags)]
    what = f"{bits} bits, {str(dtype)[6:]}, {tokens} tokens a forward, {kept} of {blocks} blocks kept"
    return turn, docs, what, sum(plan.values()) / 1e9

def peer(lu, a, dtype):
    """-> the same for a peer, without a plan."""
    torch, model = lu.torch, load_peer(lu, a, dtype).train()
    gen = torch.Generator().manual_seed(0)
    for module in model.modules():  # the A of ours, drawn in its order
        if hasattr(module, "lora_A"):
            A, bound = module.lora_A["default"].weight, module.in_features ** -0.5
            A.data.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=gen))
    params = [p for p in model.parameters() if p.requires_grad]
    docs = make_docs(lu, a, model.config.vocab_size)
    mixed = dtype != torch.float32 and a.side != "peft-bf16"  # autocast, as transformers' Trainer has it
    reset_peak(lu, a)

    def pad(rows, value):
        longest = max(map(len, rows))
        return torch.tensor([r + [value] * (longest - len(r)) for r in rows], device=a.device)

    def step(opt):
        t0 = time.perf_counter()
        labels = [[i if w else -100 for i, w in zip(d.ids, d.weights)] for d in docs]
        batch = {"input_ids": pad([d.ids for d in docs], 0), "labels": pad(labels, -100)}
        if not a.len:
            batch["attention_mask"] = pad([[1] * len(d.ids) for d in docs], 0)
        with torch.autocast(a.device, dtype, enabled=mixed):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
        loss, norm = loss.item(), norm.item()  # a sync point, as in ours
        opt.step()
        opt.zero_grad()
        return time.perf_counter() - t0, loss, norm

    def turn():
        opt = torch.optim.AdamW(params, lr=LR, weight_decay=0.0, fused=True)
        return [step(opt) for _ in range(a.steps)]
    return turn, docs, f"{str(dtype)[6:]}, adapters in {str(params[0].dtype)[6:]}", None

def reset_peak(lu, a):
    """the plan speaks of a step, not of loading."""
    if a.device == "cuda":
        lu.torch.cuda.empty_cache()
        lu.torch.cuda.reset_peak_memory_stats()
