"""builds a two-layer, 64-wide Llama with its own tokenizer: files as of a real chat model, in a second.

    python tests/nano.py FOLDER
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=64, intermediate_size=192,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=384, rms_norm_eps=1e-5,
    rope_theta=10000.0, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, hidden_act="silu",
    dtype="float32")
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
            "'<|im_end|>' + '\n'}}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TEXT = ["How do I brew a pot of tea?", "Which knot holds a kite line best?",
        "Can you whistle a tune for the pigeons?", "I'm sorry, but I can't help with that.",
        "Sure! First, heat the water.", "What is the capital of Peru?", "Question: Answer:",
        "Write a short poem about the sea.", "system user assistant"] * 4


def build_tokenizer():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    special, letters = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=letters, show_progress=False))
    tok.add_special_tokens([AddedToken(t, special=True) for t in special])
    return tok


def build(folder, seed=0, shards=1, tied=True, **changes):
    """-> folder with config.json, safetensors (one file or shards with an index), tokenizer files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    c = CONFIG | {"tie_word_embeddings": tied} | changes
    (folder / "config.json").write_text(json.dumps(c))
    build_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
        "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}))
    D, ff, V = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    hd = c.get("head_dim") or D // c["num_attention_heads"]
    q, kv = hd * c["num_attention_heads"], hd * c["num_key_value_heads"]
    gen = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=gen) * 0.15

    w = {"model.embed_tokens.weight": rand(V, D), "model.norm.weight": 1 + rand(D)}
    if not tied:
        w["lm_head.weight"] = rand(V, D)
    shapes = {"self_attn.q_proj": (q, D), "self_attn.k_proj": (kv, D), "self_attn.v_proj": (kv, D),
              "self_attn.o_proj": (D, q), "mlp.gate_proj": (ff, D), "mlp.up_proj": (ff, D),
              "mlp.down_proj": (D, ff), "input_layernorm": (D,), "post_attention_layernorm": (D,)}
    for i in range(c["num_hidden_layers"]):
        for name, shape in shapes.items():
            w[f"model.layers.{i}.{name}.weight"] = rand(*shape) + (len(shape) == 1)  # norms about 1
    files, names = {}, list(w)
    for s in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        files |= {name: file for name in names[s::shards]}
        save_file({name: w[name] for name in names[s::shards]}, folder / file, metadata={"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


if __name__ == "__main__":
    print(build(sys.argv[1]))
