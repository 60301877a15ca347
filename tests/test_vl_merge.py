"""vl_merge.py as its user meets it: transformers' ids and logits, losses, features, stages, kills, bad input.

Nano models stand in: a chat model, CLIP's and InternVL's towers. The merging formulas: test_merge.py.
"""
import json
import math
import os
import shutil
from argparse import Namespace
from collections import Counter

import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import logsigmoid
from transformers import (AutoModel, AutoModelForImageTextToText, CLIPImageProcessorPil, CLIPVisionConfig,
                          InternVLVisionConfig, LlavaProcessor)

import nano
import vl_merge as v
from test_lora_undo import ANSWER, HALF, REFUSAL, TOPICS, lines, log, process, tree, write_rows
from test_safechain import ends

KINDS = {"clip": "LlavaForConditionalGeneration", "internvit": "InternVLForConditionalGeneration"}
COLOURS = ["red", "green", "blue", "orange", "purple", "black"]
SIZE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)

# ---- nano models, pictures, rows
def tower(folder, kind, seed=0):
    torch.manual_seed(seed)
    if kind == "clip":
        config = CLIPVisionConfig(**SIZE, image_size=28, patch_size=14, projection_dim=32)
    else:  # 16 patches become 4 tokens
        config = InternVLVisionConfig(**SIZE, image_size=[28, 28], patch_size=[7, 7], use_mean_pooling=False)
    model, crop = AutoModel.from_config(config), {"height": 28, "width": 28}
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.1  # else all pictures look alike to it
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop).save_pretrained(folder)

def picture(path, i):
    image = Image.new("RGB", (40, 30 + i), "white")
    ImageDraw.Draw(image).polygon([(i, 2), (30, 5 + i), (12 + i, 28)], COLOURS[i % 6])
    image.save(path)
    return str(path)

def asked(i, count=1, **more):
    """an item with so many pictures"""
    text, images = f"Tea or {TOPICS[i % 6]}?", [f"{(i + k) % 6}.png" for k in range(count)]
    return {"id": f"a{i}", "images": images, "prompt": "<image>\n" * count + text} | more

def row(i, count=1, answer=None):
    item, answer = asked(i, count), answer or f"A {COLOURS[i % 6]} one."
    turns = ("user", item.pop("prompt")), ("assistant", answer)
    return item | {"messages": [{"role": role, "content": text} for role, text in turns]}

@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    at, labels = tmp_path_factory.mktemp("inputs"), ("forbidden", "allowed")
    nano.build(at / "chat", num_hidden_layers=5)
    nano.build(at / "untied", seed=1, tied=False)
    for kind in KINDS:
        tower(at / kind, kind)
    for i in range(6):
        picture(at / f"{i}.png", i)
    refuse = [asked(i, i % 2, label=labels[i // 2 % 2]) for i in range(10)]
    ask = [asked(i, 2 - i % 2, answer="A red one.") for i in range(6)]
    sets = {"captions": [row(i) for i in range(44)], "rows": [row(i, i % 3) for i in range(46)],
            "safety": [row(i, i % 2, (REFUSAL, ANSWER)[i % 3 == 0]) for i in range(24)],
            "pairs": [asked(i, i % 2, chosen=REFUSAL, rejected=ANSWER) for i in range(44)],
            "refuse_dev": refuse[:8], "refuse": refuse, "ask_dev": ask[:4], "ask": ask}
    sets["rows"][5]["messages"] += sets["rows"][3]["messages"]  # two turns
    for name, rows in sets.items():
        write_rows(at / f"{name}.jsonl", rows)
    for r in (llava := json.loads(json.dumps(sets["rows"]))):  # LLaVA's layout
        r["image"], turns, names = r.pop("images"), r.pop("messages"), {"user": "human", "assistant": "gpt"}
        r["image"] = r["image"][0] if len(r["image"]) == 1 else r["image"]
        r["conversations"] = [{"from": names[m["role"]], "value": m["content"]} for m in turns]
    (at / "llava.json").write_text(json.dumps(llava))
    return at

def flags(at, out, *more):
    """the usual command line; of a flag that is given twice the second counts"""
    line = (f"--model {at}/chat --vision {at}/clip --pretrain {at}/captions.jsonl --data {at}/rows.jsonl "
            f"--safety {at}/safety.jsonl --preferences {at}/pairs.jsonl --prompts {at}/refuse_dev.jsonl "
            f"{at}/refuse.jsonl --questions {at}/ask_dev.jsonl {at}/ask.jsonl --out {out} --name one "
            "--device cpu --dtype fp32 --rank 4 --batch 2 --max-len 300 --lr 0.01 --max-new 12 "
            "--methods linear ties --shares 0 1")
    return [*line.split(), *map(str, more)]

@pytest.fixture(scope="module")
def both(inputs, tmp_path_factory):
    """-> function: kind -> args, our new VLM and its tokenizer, transformers' model of the same folder"""
    out, chats = tmp_path_factory.mktemp("vlms"), {"clip": "chat", "internvit": "untied"}

    def make(kind):
        a = v.parse_args(flags(inputs, out, "--vision", inputs / kind, "--model", inputs / chats[kind]))
        return a, *v.load(a, v.make_vlm(a, out / kind)), theirs(out / kind)
    return make

def theirs(folder):
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[f"{k}_keys"] for k in ("missing", "unexpected", "mismatched")), info
    return model.eval().requires_grad_(False)

def given(model, ids, names):
    """what transformers' model takes"""
    ids, eyes = torch.tensor([ids]), CLIPImageProcessorPil.from_pretrained(model.name_or_path)
    found = eyes([Image.open(name) for name in names], return_tensors="pt") if names else {}
    images = {k: x.to(model.dtype) for k, x in found.items()}
    return images | {"input_ids": ids, "attention_mask": ids * 0 + 1}

# ---- ids, logits, answers
@pytest.mark.parametrize("kind", KINDS)
def test_ids_targets_logits_and_answers(kind, both, inputs):
    """ids, logits and answers are transformers' own; targets are the answers with their end"""
    (a, model, tok, other), want, said = both(kind), {}, []
    assert type(other).__name__ == type(model).__name__ == KINDS[kind]
    rows = v.read_rows(inputs / "rows.jsonl")[:7]  # of no, one and two pictures
    items, gap = v.encode_rows(model, tok, rows, a), "<|endoftext|>"
    same = v.encode_rows(model, tok, v.read_rows(inputs / "llava.json")[:7], a)
    assert [doc[:2] for doc, in items] == [doc[:2] for doc, in same]
    for (doc,), r in zip(items, rows, strict=True):
        targets = tok.decode([i if w else tok.vocab[gap] for i, w in zip(*doc[:2])]).split(gap)
        answers = [m["content"] + "<|im_end|>" for m in r["messages"] if m["role"] == "assistant"]
        assert [text for text in targets if text] == answers and set(doc.weights) == {0, 1}
        text, images = tok.apply_chat_template(r["messages"], tokenize=False), map(Image.open, r["images"])
        assert doc.ids == tok(text.replace("<image>", 4 * "<image>")).input_ids
        if kind == "clip":
            processor = LlavaProcessor(model.processor, tok, 14, "default", num_additional_image_tokens=1)
            assert doc.ids == processor(text=text, images=list(images) or None)["input_ids"][0]
        want[doc.at] = other(**given(other, doc.ids, r["images"])).logits[0]
    for size in (1024, 1):  # all in one pack, each alone
        for p in v.packs(model, items, size):
            parts = v.logits(model, v.hidden(model, p)).split(p.cu.diff().tolist())
            for at, got in zip(p.ats, parts, strict=True):
                torch.testing.assert_close(got, want[at], rtol=1e-4, atol=1e-4)
    asked = [v.encode(model, tok, r, r["messages"][:1], ask=True).ids for r in rows]
    with v.dense_weights(model):
        v.set_features(model, [name for r in rows for name in r["images"]])
        answers = v.generate(model, asked, 12, tok.ends)
    for ids, r in zip(asked, rows):
        new = other.generate(**given(other, ids, r["images"]), do_sample=False, max_new_tokens=12,
                             eos_token_id=tok.ends, pad_token_id=0)[0, len(ids):].tolist()
        said.append([new[:-1] if new[-1] in tok.ends else new])
    assert answers == said and len(set(map(str, said))) > 2
    written, table = torch.tensor([[model.config.image_token_id]]), model.get_input_embeddings()
    assert table(written)[0].equal(table.weight[written[0]])  # a placeholder that it wrote is no picture

# ---- losses
def log_p(other, doc, names):
    """of a document's targets, by transformers"""
    ids, w = torch.tensor(doc.ids)[1:, None], torch.tensor(doc.weights)[1:]
    found = other(**given(other, doc.ids, names)).logits[0, :-1].double().log_softmax(-1)
    return (found.gather(1, ids)[:, 0] * w).sum()

@pytest.mark.parametrize("kind, name", [("clip", "rows"), ("internvit", "rows"), ("clip", "pairs")])
def test_a_loss_and_its_gradient_in_any_split(kind, name, both, inputs):
    """against transformers with W + s B A for W, in fp64; A's and B's gradients: against the first split's"""
    (a, model, tok, other), old, want = both(kind), both(kind)[-1], 0.0
    items, dpo = v.encode_rows(model, tok, v.read_rows(inputs / f"{name}.jsonl")[:6], a), name == "pairs"
    loss_of = v.dpo_loss if dpo else v.answer_loss
    if dpo:
        model.reference = v.reference(model, items, 1024)
        start = sum(loss_of(model, p, a).item() for p in v.packs(model, items, 200))
        assert start == pytest.approx(6 * math.log(2), rel=1e-6)  # no margin differs from itself
    other.double().requires_grad_(True)
    for target, lin in v.linears(model):
        torch.nn.init.normal_(lin.B, 0, 0.05)
        other.get_submodule(target).weight.data += (lin.s * lin.B @ lin.A).detach()
    for item in items:
        new, before = ([log_p(m, doc, model.images_of[doc.at]) for doc in item] for m in (other, old))
        margin = new[0] - before[0] - new[-1] + before[-1]
        want = want - (logsigmoid(a.beta * margin) if dpo else new[0])  # arXiv 2305.18290, eq. 7
    want.backward()
    params = v.adapter(model) | v.projector_weights(model)
    names = {key: key.removeprefix("base_model.model.") for key in v.projector_weights(model)}
    grads = {key: other.get_parameter(name).grad for key, name in names.items()}
    for size, kept in ((1024, math.inf), (1, math.inf), (200, 0), (1024, 1)):
        v.checkpoint_blocks(model, kept)
        for p in params.values():
            p.requires_grad_(True).grad = None
        loss = sum(loss_of(model, p, a) for p in v.packs(model, items, size))
        loss.backward()
        assert loss.item() == pytest.approx(want.item(), rel=1e-4), (size, kept)
        for key, p in params.items():
            grad, got = grads.setdefault(key, p.grad.double()), p.grad.double()
            torch.testing.assert_close(got, grad, rtol=1e-3, atol=1e-4 * grad.abs().max().item())

# ---- features, projector
def see_anew(a, folder, names):
    """-> features by a model just loaded, how many pictures its tower was given"""
    model, calls = v.load(a, folder)[0], []
    model.get_image_features = lambda x: calls.append(len(x)) or type(model).get_image_features(model, x)
    v.cache_features(model, names, a)
    return torch.stack([v.load_file(model.feature_files[name])["features"] for name in names]), sum(calls)

@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_projectors_input_and_computed_once(kind, inputs, both, tmp_path):
    a, names = both(kind)[0], [shutil.copy(inputs / f"{i}.png", tmp_path) for i in range(4)]
    for name, seed, again in (("a", 0, 4), ("a", 0, 1), ("twin", 1, 4)):  # twin: the same shapes
        tower(tmp_path / name, kind, seed)
        b = Namespace(**vars(a) | {"out": tmp_path, "vision": str(tmp_path / name)})
        folder, found = v.make_vlm(b, tmp_path / f"vlm-{name}"), []
        if again == 1:
            picture(names[0], 5)
        got, calls = see_anew(b, folder, names)
        other = theirs(folder)
        other.model.multi_modal_projector.register_forward_pre_hook(lambda _, x: found.append(x[0]))
        other.get_image_features(given(other, [1], names)["pixel_values"])
        torch.testing.assert_close(got, found[0], rtol=1e-4, atol=1e-5)
        assert calls == again and see_anew(b, folder, names)[1] == 0

@pytest.mark.parametrize("kind", KINDS)
def test_the_projector_starts_with_what_it_promises(kind, both, inputs):
    (a, model, _, other), names, seen = both(kind), [str(inputs / f"{i}.png") for i in range(6)], []
    projector, table = model.model.multi_modal_projector, model.get_input_embeddings().weight
    v.cache_features(model, names, a)
    v.start_projector(model, names)
    projector.linear_1.register_forward_hook(lambda _, x, y: seen.extend((x[0], y)))
    assert projector(model.features).std().item() == pytest.approx(3 * table.std().item(), rel=1e-4)
    x, z = (t.flatten(0, -2) for t in seen)
    if kind == "clip":  # what standardises is a part of the first matrix
        x = (x - x.mean(0)) / x.std(0)
        torch.testing.assert_close(z, other.model.multi_modal_projector.linear_1(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(x.mean(0), torch.zeros_like(x[0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std(0), torch.ones_like(x[0]), rtol=1e-3, atol=0)

# ---- a run
def start(*argv):
    """the experiment in this process -> its folder"""
    a = v.parse_args([*argv])
    try:
        v.experiment(a)
    finally:  # as the end of a process does
        hasattr(a, "lock") and os.close(a.lock)
    return a.folder

@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    """a whole run, as a user starts it -> its folder, its command line"""
    argv = flags(inputs, tmp_path_factory.mktemp("run"))
    p = process("vl_merge.py", *argv)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0 and "files: " in out, err[-3000:]
    return v.parse_args(argv).folder, argv

STAGES = {"aligned": "start", "VL": "aligned", "SFT": "VL", "multi-task": "aligned", "DPO": "VL"}
MODEL = {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
         "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
KEPT = {"adapter_config.json", "adapter_model.safetensors", "log.jsonl", "state.safetensors"}

def test_files_and_numbers_of_a_run(done):
    folder, _ = done
    want = {"config.json", "results.json", "samples.jsonl", "figure.png"} | {f"start/{f}" for f in MODEL}
    for stage in STAGES:
        want |= {f"{stage}/{f}" for f in MODEL | {"merge.json"}} | {f"{stage}-adapter/{f}" for f in KEPT}
    assert set(tree(folder)) == want
    res, samples = json.loads((folder / "results.json").read_text()), lines(folder / "samples.jsonl")
    pairs = "chat linear", "SFT linear", "SFT ties"
    blocks = [f"chat blocks {x}" for x in ("0-0", "1-2", "3-4")]
    tried = [f"dev {p} {t}.0" for p in pairs for t in (0, 1)]
    assert set(res) == {"chat", "layers", "chosen t", "dev VL", *STAGES, *blocks, *tried, *pairs}
    items = dict.fromkeys([*STAGES, *pairs], 16) | dict.fromkeys([*blocks, *tried, "dev VL", "aligned"], 12)
    assert Counter(s["stage"] for s in samples) == items | {"chat": 5}
    assert list(res["chosen t"]) == list(pairs)
    for pair, t in res["chosen t"].items():
        points = {t: sum(res[f"dev {pair} {t}"][m]["value"] for m in ("safety", "helpfulness"))
                  for t in (0.0, 1.0)}
        assert points[t] == max(points.values())
        if pair != "SFT ties":  # half of its task vector is trimmed
            assert res[pair] == res["VL"] if t == 0 else pair == "chat linear" or res[pair] == res["SFT"]
    assert {what: len(found) for what, found in res["layers"].items()} == {"VL": 35, "SFT": 35, "DPO": 35}
    assert all(0 < cos < 1 and change > 0 for x in res["layers"].values() for cos, change in x.values())
    assert [len(log(folder / f"{stage}-adapter")) for stage in STAGES] == [22, 23, 24, 35, 22]

@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_what_peft_makes_of_its_adapter(stage, done, inputs, recwarn):
    peft, folder, kept = pytest.importorskip("peft"), done[0] / stage, done[0] / f"{stage}-adapter"
    made, tok = theirs(folder), v.AutoTokenizer.from_pretrained(folder)
    r = v.read_rows(inputs / "rows.jsonl")[2]
    base = json.loads((kept / "adapter_config.json").read_text())["base_model_name_or_path"]
    text = tok.apply_chat_template(r["messages"], tokenize=False).replace("<image>", 4 * "<image>")
    x = given(made, tok(text).input_ids, r["images"])
    want = peft.PeftModel.from_pretrained(theirs(base), kept).eval()(**x).logits
    torch.testing.assert_close(made(**x).logits, want, rtol=1e-4, atol=1e-4)
    assert base == str(done[0] / STAGES[stage]) and (want - theirs(base)(**x).logits).abs().max() > 0.01
    assert not [w for w in recwarn if "missing adapter keys" in str(w.message)]

def test_started_again_nothing_is_done_twice(done, inputs, monkeypatch, capsys):
    folder, argv = done
    before = tree(folder)
    for name in ("ask", "tune", "merge"):
        monkeypatch.setattr(v, name, v.partial(pytest.fail, "again"))
    start(*argv)
    start("tune", *argv)
    for other in (f"--vision {inputs}/internvit", f"--data {inputs}/safety.jsonl", "--lr 0.02", "--seed 1",
                  "--limit 2", "--beta 1", "--methods slerp", "--rank 8"):
        assert ends(start, *argv, *other.split()) == 2 and tree(folder) == before, other
        assert "holds another run" in capsys.readouterr().err

@pytest.mark.parametrize("stage", ["VL", "DPO"])
def test_kill_9_in_training_and_a_second_process(stage, inputs, done, tmp_path, capsys):
    argv, adapter = ["tune", *flags(inputs, tmp_path)], f"{stage}-adapter"
    folder = shutil.copytree(done[0], v.parse_args(argv).folder)
    (folder / "figure.png").unlink()
    for name in (stage, adapter):
        shutil.rmtree(folder / name)
    p = process("-c", HALF.replace("lora_undo", "vl_merge"), *argv)  # waits before the second state is kept
    try:
        assert "half\n" in p.stdout, p.stderr.read()[-3000:]  # reads on until it is said
        before = tree(folder)
        assert ends(start, *argv, "--overwrite") == 2 and "another process" in capsys.readouterr().err
        assert tree(folder) == before and len(log(folder / adapter)) == 20
    finally:
        p.kill()
        p.communicate()
    (folder / f"{stage}.tmp-1").mkdir()  # of a merge that was killed
    start(*argv)
    for name in (f"{adapter}/adapter_model.safetensors", f"{stage}/model.safetensors"):
        assert (folder / name).read_bytes() == (done[0] / name).read_bytes(), name
    assert log(folder / adapter) == log(done[0] / adapter) and not list(folder.rglob("*tmp*"))

# ---- bad input
def test_pictures_of_any_kind_become_what_one_sees(tmp_path):
    red, white, grey, clear = (255, 0, 0), (255, 255, 255), (128, 128, 128), Image.new("RGBA", (9, 9))
    clear.paste((*red, 255), (0, 0, 9, 4))
    first = Image.new("RGB", (9, 9), red)
    first.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (9, 9), white)])
    clear.quantize().save(tmp_path / "palette.png")
    Image.new("I;16", (9, 9), 128 * 257).save(tmp_path / "deep.png")
    for name, *want in (("cmyk.jpg", red, red), ("moving.gif", red, red), ("palette.png", red, white),
                        ("deep.png", grey, grey)):
        image = v.open_image(tmp_path / name)
        found = [image.getpixel(at) for at in ((1, 1), (1, 7))]
        assert image.mode == "RGB" and found == [pytest.approx(c, abs=3) for c in want], name

def test_internvls_frame_stands_around_each_image(both, tmp_path):
    """as its processor writes it; the miniature's tokenizer has no such tokens"""
    a, model, tok, _ = both("internvit")
    shutil.copytree(model.name_or_path, tmp_path / "framed")
    own = v.AutoTokenizer.from_pretrained(tmp_path / "framed")
    own.add_tokens(["<img>", "</img>"])
    own.save_pretrained(tmp_path / "framed")
    r = row(1, 2)
    for folder, times in ((tmp_path / "framed", 2), (model.name_or_path, 0)):
        m, tok = v.load(a, folder)
        text = tok.decode(v.encode(m, tok, r | {"at": "x:1"}, r["messages"]).ids)
        assert text.count("<image>") == 2 * 4 and text.count(f"<img>{4 * '<image>'}</img>") == times

def test_what_cannot_be_seen_is_left_out_or_unscored_and_named(both, tmp_path, capsys):
    """among rows, and among prompts"""
    a, model, tok, _ = both("clip")
    picture(tmp_path / "good.png", 1)
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "empty.png").touch()
    (tmp_path / "short.png").write_bytes(data[:-60])
    (tmp_path / "broken.png").write_bytes(data.replace(b"IDAT", b"ID\xcaT"))
    Image.new("RGB", (20000, 9)).save(tmp_path / "wide.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    names = [f"{name}.png" for name in ("missing", "empty", "short", "broken", "wide", "dot", "good")]
    rows = write_rows(tmp_path / "rows.jsonl", [row(i) | {"images": [name]} for i, name in enumerate(names)])
    assert len(v.encode_rows(model, tok, v.read_rows(rows), a)) == 2
    said = capsys.readouterr().out
    prompts = write_rows(tmp_path / "tea.jsonl", [asked(i, images=[name]) for i, name in enumerate(names)])
    b = Namespace(**vars(a) | {"prompts": [prompts], "questions": []})
    found = v.ask(*v.load(a, model.name_or_path), v.load_suites(b), b)
    assert [r["id"] for r in found] == [f"a{i}" for i in range(7)]
    assert [r["refused"] for r in found[:5]] == [None] * 5 and v.summary(found)["safety"]["n_unscored"] >= 5
    for out in (said, capsys.readouterr().out):
        assert all(f"{tmp_path / name}: cannot be read" in out for name in names[:5])

PAIR = asked(0, chosen="Tea.", rejected="Kites.")
BAD = {"--pretrain": [row(1, 2) | {"images": ["0.png"]}, row(1) | {"images": ["0.png", "1.png"]}, {}],
       "--data": [row(1) | {"images": []}, {"messages": [{"role": "user"}]}, {"conversations": [{"a": 1}]},
                  {"messages": [{"role": "user", "content": 7}]}, {"images": [3]}, 7],
       "--safety": [{"messages": "tea"}],
       "--preferences": [{k: x for k, x in PAIR.items() if k != "rejected"}, PAIR | {"chosen": None}],
       "--prompts": [asked(1, 2) | {"images": []}, {"prompt": 3}, {"prompt": "a", "label": "?"}],
       "--questions": [asked(1)]} | dict.fromkeys(
    ["--limit 0", "--lr nan", "--seed -1", "--lrate 3", "--rank many", "--name ../x", "--model missing",
     "--vision missing", "--prompts missing", "--methods soup", "--shares 1.5", "--shares nan",
     "--prompts EMPTY", "--data EMPTY", "--prompts ONE", "--pretrain BLIND"], [None])

@pytest.mark.parametrize("flag, bad", [(flag, bad) for flag, rows in BAD.items() for bad in rows])
def test_bad_input_is_named_before_anything_is_trained(flag, bad, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    good = {"--preferences": PAIR, "--prompts": asked(0), "--questions": asked(0, answer="Tea")}
    write_rows(inputs / "BAD", [good.get(flag, row(0)), bad])
    (inputs / "EMPTY").write_text(" \n")
    write_rows(inputs / "ONE", [asked(0, 0)])  # nothing to choose t by
    write_rows(inputs / "BLIND", [row(i, 0) for i in range(4)])  # a projector learns nothing from texts
    flag, value = (flag if bad is None else f"{flag} BAD").split()
    value = str(inputs / value) if value.isupper() else value
    assert ends(start, *flags(inputs, tmp_path, "--questions", inputs / "ask.jsonl", flag, value)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert flag in said or value in said if bad is None else f"{value}:2: " in said
    assert not list(tmp_path.rglob("log.jsonl"))
