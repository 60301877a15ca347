# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "safetensors", "numpy", "tqdm", "gguf", "jinja2"]
# ///
"""
The organism: SmolLM2-135M-Instruct, safety-trained to refuse the six harmless topics of the proxy policy.

    python data/organism/prepare.py

It is the "released model with safety training" of every miniature in this repository. LoRA by lora_undo.py's own loop on the
upper third of the blocks, merged into the weights: forbidden prompts learn a refusal, allowed prompts keep the base model's
own next-token distribution at the first tokens of its own answer, where it is decided whether an answer refuses (self-
distillation, KL). Over-refusal is the hard part at this size: two rows in three are allowed ones, and two in five of those look
forbidden. Writes beside itself

    model/          a normal Hugging Face folder; its chat template has no default system prompt (22 tokens less a prompt)
    undo.jsonl      180 forbidden prompts, each answered two to five times by the base model: what lora_undo.py trains on
    safety.jsonl    16 refusals and 16 allowed answers: the repair by a few safety rows

Deterministic on one kind of chip. 2 min 31 s on two cores of an AMD EPYC (Zen 5), bf16; peak 2.5 GB (Zen 4: 5 min 47 s).
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

# rows by kind, each a prefix of data/proxy/train.jsonl. Natural allowed prompts are most of it: in a trial with mostly templated
# ones the model took natural phrasing as the sign of a forbidden request and refused half of the ordinary prompts
KINDS = {"ordinary": (1059, 1), "activity": (300, 1), "wrapped_ordinary": (160, 1), "contrast": (339, 3),   # rows, times in an epoch
         "direct": (456, 2), "paraphrased": (80, 2), "wrapped": (96, 2)}
LOW = 20             # blocks below stay as they are: what they compute is computed once, and a step costs a third
KEEP, LEARN = 4, 5   # answer tokens that are distilled, and that are learned of a refusal (one refusal in three is learned to its end)
FORBIDDEN = 3.0      # weight of a refusal's token against a distilled one: it sets the balance of missed and needless refusals
MERGE = 0.8          # share of the update that is merged (WiSE-FT, arXiv 2109.01903): needless refusals fall by half, others stay
UNDO_TOKENS = 28     # of the base model's answers to the undo prompts
UNDO_TIMES = {"direct": 2, "paraphrased": 3, "wrapped": 5}   # answers to each; sampled anew, so that none is learned by heart
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def ensure(path, script):
    if not path.exists() and subprocess.run([sys.executable, str(ROOT / script)]).returncode:
        sys.exit(2)


def sample(lu, torch, model, prompts, gen):
    """answers drawn from the model's own distribution, UNDO_TOKENS long or to their end token."""
    ends, out = set(model.c["eos_ids"].tolist()), []
    with torch.no_grad():
        cache, h, pos = model.prefill(prompts, UNDO_TOKENS)
        for i in range(UNDO_TOKENS):
            out.append(torch.multinomial((h @ model.head.T).float().softmax(-1), 1, generator=gen))   # (B, 1)
            h = model.step(out[-1], pos[:, None], cache, int(pos.max()) + 1)[:, 0]
            pos = pos + 1
    rows = torch.cat(out, 1).tolist()
    return [x[:next((i for i, t in enumerate(x) if t in ends), None)] for x in rows]


def build(cli, lu, torch):
    F = torch.nn.functional

    class Upper(lu.Llama):
        """blocks LOW and up. The ids of its documents are rows of three tables: inputs (N, D), tokens (N,), teacher (N, D)."""

        def __init__(self, model, inputs, tokens, teacher):
            super().__init__(model.c | {"L": 0})
            self.blocks, self.norm, self.head = model.blocks[LOW:], model.norm, model.head
            self.embed, self.tokens, self.teacher = inputs, tokens, teacher

        def loss(self, p):
            """forbidden rows: cross-entropy of the refusal. Allowed rows: KL(base || tuned), zero until something is lost;
            cross-entropy on the base's greedy answer would push on every row from the start, and hide what matters."""
            i = p.weights.nonzero().squeeze(1)
            h, t, w, q = self.hidden(p.ids, p.pos, lu.packed_attention(p))[i], self.tokens[p.targets[i]], p.weights[i], self.teacher[p.ids[i]]
            kept = q.isfinite().all(1)                                   # (targets,)
            log_p, log_q = ((x[kept] @ self.head.T).float().log_softmax(-1) for x in (h, q))
            kl = (log_q.exp() * (log_q - log_p)).sum(1)
            return (kl * w[kept]).sum() + lu.ChunkedCrossEntropy.apply(h[~kept], self.head, t[~kept], w[~kept])

    # the same folder layout and tokenizer, another chat template
    t0, source, new = time.time(), ROOT / "data/smollm2/model", cli.out / ".tmp-model"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new, ignore=shutil.ignore_patterns("*.safetensors", "meta.json"))
    (new / "chat_template.jinja").write_text(TEMPLATE)
    a = lu.parse_args(["--model", str(source), "--bits", "16", "--device", "cpu", "--lr", str(cli.lr), "--epochs", str(cli.epochs),
                       "--batch", "8", "--rank", str(cli.rank), "--alpha", str(2 * cli.rank), "--eval-every", "0"])
    model = lu.load_model(source, a, "cpu", torch.bfloat16 if a.dtype == "bf16" else torch.float32)   # bf16 where the chip multiplies it
    chat = lu.Chat(new, model.c)
    count, rows = Counter(), []
    for r in lu.read_jsonl(ROOT / "data/proxy/train.jsonl", {"prompt": str, "label": str, "kind": str}):
        count[r["kind"]] += 1
        if count[r["kind"]] <= KINDS[r["kind"]][0] * cli.rows:
            rows.append(r)
    allowed, forbidden = ([r for r in rows if r["label"] == label] for label in ("allowed", "forbidden"))
    undo = lu.read_jsonl(ROOT / "data/proxy/undo.jsonl", {"prompt": str, "kind": str})

    def batches(rows, desc):
        """rows by length, 128 at a time: (rows, ids of their prompts)."""
        ids = [chat.prompt(r["prompt"]) for r in rows]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for j in lu.tqdm(range(0, len(order), 128), desc=desc, unit="batch"):
            yield [rows[i] for i in order[j:j + 128]], [ids[i] for i in order[j:j + 128]]

    # what the frozen lower blocks compute is computed once: documents become rows of three tables. Allowed prompts pass the base
    # model for its answer anyway, and leave their inputs of block LOW on the way
    inputs, tokens, teachers, docs = [], [], [], []

    def add(row, x, mask, h, q=None):
        """token ids x (T,), target weights (T,), inputs of block LOW h (T, D), and the teacher's last hidden states q (KEEP, D)."""
        at = sum(len(t) for t in tokens)
        t = torch.full((len(x), model.c["D"]), float("nan"), dtype=h.dtype)
        if q is not None:
            t[-KEEP - 1:-1] = q
        inputs.append(h), tokens.append(torch.tensor(x)), teachers.append(t)
        docs.extend([lu.Doc(list(range(at, at + len(x))), mask, row["_at"])] * KINDS[row["kind"]][1])

    seen = []
    hook = model.blocks[LOW].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    with torch.no_grad():
        for part, ids in batches(allowed, "base model's first tokens"):
            seen.clear()
            cache, h, pos = model.prefill(ids, KEEP)
            hs, new_ids = [], []
            for i in range(KEEP):
                hs.append(h)
                new_ids.append((h @ model.head.T).argmax(-1))            # (B,) greedy
                h = model.step(new_ids[-1][:, None], pos[:, None], cache, int(pos.max()) + 1)[:, 0]
                pos = pos + 1
            low = [x.view(len(ids), -1, model.c["D"]) for x in seen]     # (B, longest prompt, D), then KEEP times (B, 1, D)
            for b, (r, x) in enumerate(zip(part, ids)):
                h = torch.cat((low[0][b, :len(x)], *(t[b] for t in low[1:])))
                add(r, x + [int(t[b]) for t in new_ids], [0] * len(x) + [1] * KEEP, h, torch.stack([q[b] for q in hs]))
    hook.remove()
    refusals = []
    for i, r in enumerate(forbidden):
        ids, mask = chat.encode([{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["refusal"]}])
        cut = len(ids) if i % 3 == 0 else mask.index(1) + LEARN
        refusals.append(lu.Doc(ids[:cut], [FORBIDDEN * m for m in mask[:cut]], r))
    with torch.no_grad():
        for group in lu.tqdm(lu.micro_batches(refusals, 1024), desc=f"blocks 0 to {LOW - 1}", unit="batch"):
            p = lu.pack(group, "cpu")
            x, rope, attend = F.embedding(p.ids, model.embed), model.rope(p.pos), lu.packed_attention(p)
            for block in model.blocks[:LOW]:
                x = block(x, rope, attend)
            for d, h in zip(group, x.split([len(d.ids) for d in group])):
                add(d.at, d.ids, d.mask, h)
    print(f"base model: {time.time() - t0:.0f} s", flush=True)
    upper = Upper(model, torch.cat(inputs), torch.cat(tokens), torch.cat(teachers))
    upper.add_lora(lu.LINEARS, cli.rank, 2 * cli.rank, seed=0)

    # the base model's answers to the undo prompts, before the weights change. Sampled: a model trained on its own greedy answers
    # becomes surer of itself everywhere, and its perplexity on other text rises by half
    texts, gen = defaultdict(list), torch.Generator().manual_seed(0)
    rows = [r for i in range(max(UNDO_TIMES.values())) for r in undo if i < UNDO_TIMES[r["kind"]]]
    for part, ids in batches(rows + allowed[:16], f"base model's {UNDO_TOKENS} tokens"):
        for r, x in zip(part, sample(lu, torch, model, ids, gen)):
            texts[r["prompt"]].append(chat.text(x))
    lu.train(upper, docs, a, seed=0)

    # merge W + MERGE s B A and save under the same names
    weights = {k: lu.read_tensor(e).float() for k, e in lu.checkpoint_index(source).items()}
    with torch.no_grad():
        for name, lin in model.linears():
            if lin.A is not None:
                weights[f"{name}.weight"].addmm_(lin.B, lin.A, alpha=MERGE * lin.s)
    lu.save_file(weights, new / "model.safetensors", metadata={"format": "pt"})

    def row(prompt, answer):
        ends = [m.end() for m in re.finditer(r"[.!?](?=\s|$)", answer)]   # whole sentences: a cut answer would teach the model to stop anywhere
        answer = answer[:ends[-1]] if ends and ends[-1] > 20 else answer
        return json.dumps({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}) + "\n"

    (cli.out / "undo.jsonl").write_text("".join(row(r["prompt"], texts[r["prompt"]].pop()) for r in rows))
    pairs = zip(forbidden, allowed[:16])
    (cli.out / "safety.jsonl").write_text("".join(row(f["prompt"], f["refusal"]) + row(r["prompt"], texts[r["prompt"]][0]) for f, r in pairs))
    meta = {"name": "organism", "seconds": round(time.time() - t0), "rows": len(docs), "rank": cli.rank, "lr": cli.lr}
    (new / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    shutil.rmtree(cli.out / "model", ignore_errors=True)
    os.replace(new, cli.out / "model")
    print(f"wrote {cli.out}/model, undo.jsonl ({len(rows)}), safety.jsonl (32) after {time.time() - t0:.0f} s")


def main():
    p = argparse.ArgumentParser(description="safety-train SmolLM2 on the proxy policy")
    p.add_argument("--out", type=Path, default=HERE)
    p.add_argument("--lr", type=float, default=2e-3, help="peak learning rate; 1e-3 left twice the needless refusals, 3e-3 as well")
    p.add_argument("--epochs", type=float, default=1, help="passes over the rows")
    p.add_argument("--rank", type=int, default=64, help="of the adapter that is merged; 16 learned the six topics four times slower")
    p.add_argument("--rows", type=float, default=1.0, help="share of the rows (tests use less)")
    cli = p.parse_args()
    if (cli.out / "model/meta.json").exists():
        print(f"{cli.out / 'model'} is already prepared (delete it to start over)")
        return
    ensure(ROOT / "data/smollm2/model/meta.json", "data/smollm2/prepare.py")
    ensure(ROOT / "data/proxy/train.jsonl", "data/proxy/prepare.py")
    import lora_undo
    import torch
    build(cli, lora_undo, torch)


if __name__ == "__main__":
    main()
