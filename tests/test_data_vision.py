"""data/vision and data/easyvqa: a nano ONNX backbone and a small wheel, written here; no network."""
import importlib, json, re, zipfile

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file
from transformers import Dinov2Config, Dinov2Model

from test_data import jsonl, refused, run
from test_fetch import ROOT


def nano_onnx(weights, **changes):
    """A Dinov2's weights as torch's exporter writes them; changes are arrays, None drops one."""
    held, nodes = {"decoder.bias": np.zeros(2)}, []  # not the backbone's: left out
    for name, x in weights.items():
        path = "/backbone/" + re.sub(r"\.(?!\d)", "/", name).rpartition("/")[0]  # layer.0 keeps its dot
        if name.endswith("position_embeddings"):
            held |= {"onnx::Concat_1": x[:, :1], "onnx::Reshape_2": x[:, 1:]}
            nodes += [("Reshape", path, ["onnx::Reshape_2"]), ("Concat", path, ["onnx::Concat_1", "x"])]
        elif x.ndim == 2 and "mask_token" not in name:
            held[f"onnx::MatMul_{len(nodes)}"] = x.T
            nodes.append(("MatMul", path, ["x", f"onnx::MatMul_{len(nodes)}"]))
        elif "mask_token" not in name:
            held[f"backbone.{name}"] = x
    nodes = [helper.make_node(op, inputs, ["x"], name=f"{path}/{op}") for op, path, inputs in nodes]
    held = [numpy_helper.from_array(x, name) for name, x in (held | changes).items() if x is not None]
    return helper.make_model(helper.make_graph(nodes, "nano", [], [], held)).SerializeToString()


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    out = tmp_path_factory.mktemp("vision")
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42}
    model = Dinov2Model(Dinov2Config(**shape, patch_size=14)).eval()
    for weight in model.parameters():  # a fresh model's biases and scales would hide a mistake
        torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(out / "random")
    weights = load_file(out / "random/model.safetensors")
    (out / "nano.onnx").write_bytes(nano_onnx(weights))
    done = run("vision", "--src", out / "nano.onnx", "--out", out, "--any-version")
    assert done.returncode == 0 and "43 tensors" in done.stdout and done.stderr.count("warning: ") == 2
    return out, model, weights


def test_the_folder_computes_what_the_model_computed(nano):
    out, model, _ = nano
    found, pixels = Dinov2Model.from_pretrained(out / "model"), torch.randn(2, 3, 56, 28)
    with torch.no_grad():
        assert torch.equal(found(pixels).last_hidden_state, model(pixels).last_hidden_state)
    assert "there already" in run("vision", "--src", "nowhere", "--out", out).stdout


def test_images_are_squeezed_never_cropped(nano):
    auto = importlib.import_module("transformers.models.auto.image_processing_auto")  # 5.17 hides its name
    image = Image.new("L", (300, 40), 255)
    image.paste(0, (0, 0, 30, 40))  # the left tenth is black: a crop of the middle would lose it
    processor = auto.AutoImageProcessor.from_pretrained(nano[0] / "model")
    pixels = processor(image, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 112, 112)
    np.testing.assert_allclose(pixels[0, :, 56, 0], [-2.1179, -2.0357, -1.8044], atol=1e-4)  # -mean / std
    np.testing.assert_allclose(pixels[0, :, 56, 111], [2.2489, 2.4286, 2.64], atol=1e-4)


@pytest.mark.parametrize("name, x, text", [
    ("backbone.layernorm.bias", None, "missing_keys"), ("onnx::Concat_1", None, "embeddings.Concat"),
    ("backbone.head", np.zeros(2, np.float32), "unexpected_keys"),
    ("backbone.layernorm.bias", np.zeros(3, np.float32), "mismatched_keys"),
    ("backbone.layernorm.bias", np.full(128, np.float32("nan")), "some that are not")])
def test_a_backbone_that_is_not_one_leaves_no_folder(nano, tmp_path, name, x, text):
    (tmp_path / "nano.onnx").write_bytes(nano_onnx(nano[2], **{name: x}))
    done = run("vision", "--src", tmp_path / "nano.onnx", "--out", tmp_path, "--any-version")
    assert done.returncode == 2 and text in done.stderr.splitlines()[-1], done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["nano.onnx"]


def test_the_real_backbone_gives_the_numbers_of_its_onnx_file():
    if not (ROOT / "data/vision/model").exists():
        pytest.skip("no data/vision/model: run data/vision/prepare.py (90 MB)")
    image = torch.linspace(-2, 2, 3 * 112 * 112).view(1, 3, 112, 112)
    with torch.no_grad():
        found = Dinov2Model.from_pretrained(ROOT / "data/vision/model")(image).last_hidden_state[0]
    runtime = [-3.1417155, -3.6287646, 1.9505038, -0.1366203]  # what ONNX Runtime makes of the last patch
    np.testing.assert_allclose(found[64, -4:], runtime, atol=2e-5)


TRAIN = [["what is the red shape?", "circle", 0], ["is there not a circle?", "no", 1],
         ["is no kite there?", "yes", 10], ["is a red shape present?", "yes", 1]]


def easyvqa(folder, *args, more=()):
    """prepare.py on a wheel of three training images and a test image, whose bytes are their names."""
    with zipfile.ZipFile(folder / "a.whl", "w") as file:
        for name in "train/images/0", "train/images/1", "train/images/10", "test/images/0":
            file.writestr(f"easy_vqa/data/{name}.png", name)
        for split, rows in ("train", [*TRAIN, *more]), ("test", [["what color is the kite?", "teal", 0]]):
            file.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(rows))
    return run("easyvqa", "--src", folder / "a.whl", "--out", folder / "out", *args)


def test_easyvqa_keeps_every_tenth_image_apart(tmp_path):
    refused(easyvqa(tmp_path), "--any-version accepts it", out := tmp_path / "out")
    done = easyvqa(tmp_path, "--any-version")
    assert done.returncode == 0 and done.stderr.count("warning: ") == 3, done.stderr
    train, dev, test = (jsonl(out / f"{name}.jsonl") for name in ("train", "dev", "test"))
    assert [row["id"] for row in train] == ["easyvqa-train-1", "easyvqa-train-3"]
    assert train[0]["messages"] == [{"role": "user", "content": "<image>\nis there not a circle?"},
                                    {"role": "assistant", "content": "no"}]
    found = [row["answer"] + " " + row["form"] for row in dev + test]
    assert found == ["circle shape", "yes negated", "teal colour"]
    assert (out / dev[1]["images"][0]).read_bytes() == b"train/images/10"


@pytest.mark.parametrize("row", [["which?", "no", 7], ["which?", "no"], ["which?", 3, 0], ["why?", "no", "0"]])
def test_easyvqa_names_the_row_that_is_wrong(tmp_path, row):
    done = easyvqa(tmp_path, "--any-version", more=[row])
    refused(done, "train/questions.json: row 4: ", tmp_path / "out")
