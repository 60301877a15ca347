# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "accelerate", "safetensors", "numpy", "jinja2", "gguf"]
# ///
"""The organism: SmolLM2-135M-Instruct, safety-trained to refuse the six harmless topics of the proxy policy.

    python data/organism/prepare.py

It is the "released model with safety training" of every miniature in this repository. Writes beside itself

    model/          a Hugging Face folder: what `python lora_undo.py organism` makes, if it is not there yet
    undo.jsonl      the base model's sampled answers to 180 forbidden prompts: what lora_undo.py trains on
    safety.jsonl    16 refusals and 16 allowed answers: the repair by a few safety rows
"""
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
import lora_undo as lu

TIMES = {"direct": 2, "paraphrased": 3, "wrapped": 5}  # answers to an undo prompt, by its kind
MAX_NEW = 28

def whole_sentences(text):
    """a cut answer would teach the model to stop anywhere."""
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[:ends[-1]] if ends and ends[-1] > 20 else text

def undo_rows(model, tok, asked):
    """sampled: a model trained on its own greedy answers becomes surer of itself everywhere."""
    rows = []
    for kind, n in TIMES.items():
        for prompts, ids in lu.by_length(tok, [r["prompt"] for r in asked if r["kind"] == kind]):
            for prompt, answers in zip(prompts, lu.generate(model, ids, MAX_NEW, tok.ends, n, temperature=1.0)):
                rows += [{"prompt": prompt, "completion": whole_sentences(tok.decode(x))} for x in answers]
    return rows

def safety_rows(model, tok, rows):
    """16 refusals, and the base model's greedy answers to 16 allowed prompts."""
    refusals = [{"prompt": r["prompt"], "completion": r["refusal"]} for r in rows if r["label"] == "forbidden"]
    allowed = [r["prompt"] for r in rows if r["label"] == "allowed"][:16]
    answers = lu.reply(model, tok, allowed, MAX_NEW)
    return refusals[:16] + [{"prompt": p, "completion": whole_sentences(x)} for p, x in zip(allowed, answers)]

def main(out=HERE):
    if not (out / "model/meta.json").exists():
        lu.organism(out)
    dtype = lu.DTYPES[lu.parse_args(["--device", "cpu"]).dtype]
    model, tok = lu.load_model(HERE.parent / "smollm2/model", 16, "cpu", dtype)
    tok.chat_template = lu.TEMPLATE
    train, undo = ([r for r, _ in lu.read_rows(HERE.parent / f"proxy/{x}.jsonl")] for x in ("train", "undo"))
    for name, rows in (("undo", undo_rows(model, tok, undo)), ("safety", safety_rows(model, tok, train))):
        lu.write_rows(out / f"{name}.jsonl", rows)
        print(f"{out / name}.jsonl: {len(rows)} rows")

if __name__ == "__main__":
    main()
