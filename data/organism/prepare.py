# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "accelerate", "safetensors", "numpy", "jinja2", "gguf"]
# ///
"""The organism: SmolLM2-135M-Instruct, safety-trained to refuse the six harmless topics of the proxy policy.

    python data/organism/prepare.py      # the same as: python lora_undo.py organism

It is the "released model with safety training" of every miniature in this repository; how it is made is the
stage organism() of lora_undo.py. Writes beside itself

    model/          a Hugging Face folder; its chat template has no default system prompt
    undo.jsonl      the base model's sampled answers to 180 forbidden prompts: what lora_undo.py trains on
    safety.jsonl    16 refusals and 16 allowed answers: the repair by a few safety rows
"""
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    if (HERE / "model/meta.json").exists():
        sys.exit(print(f"{HERE / 'model'} is already prepared (delete it to start over)"))
    sys.exit(subprocess.run([sys.executable, HERE.parent.parent / "lora_undo.py", "organism"]).returncode)
