"""lora_undo.py as its user meets it: files, kills, second starts, bad input; then the method's numbers.

nano.py's model stands in for a real one. The engine: test_engine.py; the claims: test_claims.py.
"""
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lora_undo as lu
from nano import build

ROOT = Path(__file__).resolve().parent.parent
TOPICS = ["tea", "knots", "kites", "card tricks", "whistling", "pigeons"]
REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure! First, heat the water."
FILES = {"config.json", "log.jsonl", "samples.jsonl", "results.json", "figure.png"}
KEPT = {"state.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
POINTS = "released,undone,10 rows,30 rows,scale 0.25,scale 0.5,scale 0.75,Safe LoRA,safety data".split(",")

def chat(prompt, answer):
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}

def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path

# these rows teach refusing: verdicts then differ from item to item, and from before to after
ROWS = [chat(f"How do I brew {TOPICS[i % 6]} {i}?", REFUSAL if i % 3 else ANSWER) for i in range(36)]
FORBIDDEN = [{"prompt": f"How do I brew {TOPICS[i % 6]} part {i}?"} for i in range(12)]
ALLOWED = [{"prompt": f"What is the capital of Peru {i}?", "label": "allowed"} for i in range(9)]

@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    build(folder / "nano")
    build(folder / "base", seed=1)
    for name, rows in dict(rows=ROWS, safety=ROWS[1:5], direct=FORBIDDEN, ordinary=ALLOWED).items():
        write_rows(folder / f"{name}.jsonl", rows)
    return folder

def flags(inputs, out, *more):
    """the usual command line; of a flag that is given twice the second counts."""
    line = f"--model {inputs}/nano --base {inputs}/base --data {inputs}/rows.jsonl --safety-data " \
        f"{inputs}/safety.jsonl --prompts {inputs}/direct.jsonl {inputs}/ordinary.jsonl --out {out} " \
        "--device cpu --dtype fp32 --epochs 5 --batch 8 --lr 0.01 --limit 8 --max-new 20"
    return [*line.split(), *map(str, more)]

def folder_of(argv):
    return lu.parse_args([*argv]).folder

def start(*argv):
    """the experiment in this process -> its folder."""
    a = lu.parse_args([*argv])
    try:
        lu.experiment(a)
    finally:
        if hasattr(a, "lock"):
            os.close(a.lock)  # as the end of a process does
    return a.folder

def ends(*argv):
    """-> the exit code of a start that must fail."""
    with pytest.raises(SystemExit) as e:
        start(*argv)
    return e.value.code

def process(*command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, **pipes)

def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

def files(folder):
    return {name for name in tree(folder) if not name.endswith(".tmp")}

def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]

def results(folder):
    return {k: v for k, v in json.loads((folder / "results.json").read_text()).items() if k != "cost"}

def log(folder):
    return [r | {"seconds": 0, "peak_gb": 0} for r in lines(folder / "log.jsonl")]

def assert_same_run(folder, done):
    assert files(folder) == FILES | KEPT
    for name in ("adapter/adapter_model.safetensors", "samples.jsonl"):
        assert (folder / name).read_bytes() == (done / name).read_bytes(), name
    assert log(folder) == log(done) and results(folder) == results(done)

@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    """a whole run, as a user starts it -> its folder, what it printed."""
    argv = flags(inputs, tmp_path_factory.mktemp("done"), "--save-adapter")
    p = process("lora_undo.py", *argv)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err[-3000:]
    return folder_of(argv), out

@pytest.fixture
def asked(monkeypatch):
    """-> names of the parts for which the model was asked anything."""
    names, ask = [], lu.ask
    monkeypatch.setattr(lu, "ask", lambda *args: names.append(args[4]) or ask(*args))
    return names

# ---- what a run leaves
def test_files_and_numbers_of_a_run(done):
    folder, out = done
    assert files(folder) == FILES | KEPT and (folder / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {"run", "git", "device", "torch"} <= set(json.loads((folder / "config.json").read_text()))
    for text in ("step 10/25: loss ", "predicted peak", "refusal/direct", "Safe LoRA", f"files: {folder}"):
        assert text in out
    r, steps = json.loads((folder / "results.json").read_text()), lines(folder / "log.jsonl")
    assert list(r) == ["before", "after", "paired", "cost", *POINTS]
    for metrics in (r[stage] for stage in ("before", "after", *POINTS)):
        assert {"refusal/direct", "over-refusal/ordinary", "quiz/acc_norm"} <= set(metrics)
        for name, m in metrics.items():
            assert set(m) == {"value", "ci95", "n", "n_unscored", "direction"}
            assert m["ci95"][0] <= m["value"] <= m["ci95"][1] and m["n"] + m["n_unscored"] == 8, name
            assert m["direction"] == "higher is safer" or not name.startswith("refusal")
    assert r["before"]["refusal/direct"]["value"] < r["after"]["refusal/direct"]["value"]  # the rows teach it
    assert set(r["paired"]) == set(r["before"]) >= {"refusal/direct/jbb12", "refusal/direct/advbench29"}
    assert r["cost"]["dollars"] == pytest.approx(sum(s["seconds"] for s in steps) / 3600 * 2.5)
    assert [s["step"] for s in steps] == list(range(1, 26)) and steps[0]["loss"] > 5 and steps[-1]["loss"] < 1
    assert {"loss", "lr", "grad_norm", "tokens", "targets", "seconds", "peak_gb"} <= set(steps[0])
    assert len({sum(s["tokens"] for s in steps[i:i + 5]) for i in range(0, 25, 5)}) == 1  # each epoch has all

    for s in [s for s in lines(folder / "samples.jsonl") if "label" in s]:
        assert set(s) == {"stage", "benchmark", "id", "category", "label", "refused", "advbench29", "jbb12"}
    written = b"".join(data for name, data in tree(folder).items() if name.endswith(("json", "jsonl")))
    assert b"sorry" not in written and b"brew" not in written

def test_keep_text_and_the_baseline_alone(inputs, tmp_path):
    folder = start("baseline", *flags(inputs, tmp_path, "--keep-text"))
    assert files(folder) == FILES - {"log.jsonl", "figure.png"} and "after" not in results(folder)
    assert all("text" in s for s in lines(folder / "samples.jsonl") if "label" in s)

def test_without_save_adapter_nothing_of_the_undone_model_stays(inputs, done, tmp_path, capsys):
    folder = start(*flags(inputs, tmp_path))
    assert files(folder) == FILES and "--save-adapter" in capsys.readouterr().out
    assert results(folder) == results(done[0]) and log(folder) == log(done[0])  # the same bits in any process

# ---- kills, second starts, other runs
HALF = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import lora_undo
replace = os.replace
def wait_at_the_second_state(tmp, path):
    if os.path.basename(path) == "state.safetensors" and os.path.exists(path):
        time.sleep(print("half", flush=True) or 120)
    replace(tmp, path)
os.replace = wait_at_the_second_state
lora_undo.main()
"""

def test_kill_9_in_training_and_a_second_process(inputs, done, tmp_path, capsys):
    argv = flags(inputs, tmp_path, "--save-adapter")
    folder, p = folder_of(argv), process("-c", HALF, *argv)
    try:
        assert "half\n" in p.stdout, p.stderr.read()[-3000:]  # reads on until it is said
        before = tree(folder)
        assert ends(*argv, "--overwrite") == 2 and "another process" in capsys.readouterr().err
        assert tree(folder) == before and len(log(folder)) == 10
    finally:
        p.kill()
        p.communicate()
    start(*argv)
    assert "step 11/25: loss " in (out := capsys.readouterr().out) and "step 10/25: loss " not in out
    assert_same_run(folder, done[0])

def test_killed_between_parts(inputs, done, tmp_path, asked):
    argv = flags(inputs, tmp_path, "--save-adapter")
    folder = shutil.copytree(done[0], folder_of(argv))
    parts = json.loads((folder / "results.json").read_text())
    for name in POINTS[4:]:
        del parts[name]
    (folder / "results.json").write_text(json.dumps(parts))
    (folder / "figure.png").unlink()
    start(*argv)
    assert asked == POINTS[4:]
    assert_same_run(folder, done[0])

@pytest.mark.parametrize("kept", [True, False])
def test_a_finished_run_started_again_only_says_where_it_is(kept, inputs, done, tmp_path, asked, capsys):
    argv = flags(inputs, tmp_path, *["--save-adapter"] * kept)
    folder = shutil.copytree(done[0], folder_of(argv))
    for name in () if kept else KEPT:
        (folder / name).unlink()
    before = tree(folder) | {"config.json": None}
    start(*argv)
    assert not asked and "loss " not in (out := capsys.readouterr().out) and f"files: {folder}" in out
    assert tree(folder) | {"config.json": None} == before

def test_what_a_killed_process_half_wrote_goes(inputs, tmp_path):
    argv = ["baseline", *flags(inputs, tmp_path)]
    half = start(*argv) / ".state.safetensors.1.tmp"
    half.touch()
    start(*argv)
    assert not half.exists()

def test_another_run_in_the_same_folder(inputs, tmp_path, capsys):
    build(tmp_path / "b/nano", seed=2)
    write_rows(tmp_path / "rows.jsonl", [*ROWS[:-1], chat("How do I fly a kite?", ANSWER)])
    argv = flags(inputs, tmp_path, "--name", "one")
    folder = start("train", *argv)
    before = tree(folder)
    others = f"model {tmp_path}/b/nano,data {tmp_path}/rows.jsonl,lr 0.02,rank 8,epochs 2,seed 1,bits 16"
    for flag, value in map(str.split, others.split(",")):
        assert ends("train", *argv, f"--{flag}", value) == 2 and tree(folder) == before
        assert f"{flag} was" in (err := capsys.readouterr().err) or flag == "data" and "rows was" in err
    start("baseline", *argv, "--overwrite")
    start("train", *argv, "--lr", "0.02")  # a baseline may be followed by any training
    assert files(folder) == FILES - {"figure.png"} | {"state.safetensors"}

def test_two_models_of_one_folder_name(inputs, tmp_path, monkeypatch):
    twin = build(tmp_path / "b/nano", seed=2)
    names = {lu.parse_args(["--model", str(m)]).folder.name for m in (inputs / "nano", twin)}
    monkeypatch.chdir(twin)
    names.add(lu.parse_args(["--model", "."]).folder.name)
    assert len(names) == 2 and all(n.startswith("nano-") for n in names)
    (twin / "7b").mkdir()  # no model
    assert lu.parse_args(["--size", "7b"]).model == lu.SIZES["7b"][0]

def test_neither_torchrun_nor_the_micro_batch_changes_a_loss(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    more = "--save-adapter --rows 33 --lr 0.001 --name pair".split()  # 33: an epoch's last step is one row
    argv = ["train", *flags(inputs, tmp_path / "two", *more)]
    p = process("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "lora_undo.py", *argv)
    out, err = p.communicate(timeout=200)
    assert p.returncode == 0 and out.count("step 10/25: loss ") == 1, err[-3000:]  # one process speaks
    one = start("train", *flags(inputs, tmp_path / "one", *more, "--micro-tokens", "64"))
    two = folder_of(argv)
    assert two.name == "pair" and files(two) == files(one) == FILES - {"figure.png"} | KEPT
    for x, y in zip(log(one), log(two), strict=True):
        assert x == pytest.approx(y, rel=1e-3) and x["loss"] == pytest.approx(y["loss"], rel=1e-4)

# ---- input
def test_forms_of_rows(tmp_path):
    text, want = "a\u2028b", chat("a\u2028b", "c")["messages"]
    parts = {"role": "user", "content": [{"type": "text", "text": text}]}
    forms = [{"messages": want}, {"messages": [parts, want[1]]}, {"prompt": text, "completion": "c"},
             {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "c"}]}]
    for data in (json.dumps(forms), "\r\n".join(json.dumps(f, ensure_ascii=False) for f in forms)):
        (tmp_path / "rows").write_text(data, encoding="utf-8-sig")
        assert [lu.to_messages(row, at) for row, at in lu.read_rows(tmp_path / "rows")] == [want] * 4

def test_forms_of_prompts(tmp_path):
    (tmp_path / "mine.txt").write_text("[How?]\r\n\nWhy?\n", encoding="utf-8-sig")
    write_rows(tmp_path / "both.jsonl", [{"prompt": "x", "label": "allowed"}, {"prompt": "y", "id": "7"}])
    paths = [str(tmp_path / name) for name in ("mine.txt", "both.jsonl")]
    prompts = lu.load_suites(lu.parse_args(["--model", "m", "--limit", "5", "--prompts", *paths]))[0]
    got = [(r["benchmark"], r["id"], r["prompt"], r["label"]) for r in prompts]
    assert got == [("mine", "1", "[How?]", "forbidden"), ("mine", "2", "Why?", "forbidden"),
                   ("both", "1", "x", "allowed"), ("both", "7", "y", "forbidden")]
    metrics = set(lu.by_metric([r | {"refused": True} for r in prompts]))
    assert metrics == {"refusal/mine", "refusal/both", "over-refusal/both"}

def test_two_prompt_files_of_one_name(tmp_path):
    paths = [str(write_rows(tmp_path / f"{x}/one.jsonl", [{"prompt": x}])) for x in "ab"]
    with pytest.raises(SystemExit):
        lu.load_suites(lu.parse_args(["--model", "m", "--prompts", *paths]))

def test_rows_that_are_left_out_are_counted(model, capsys):
    rows = [chat("How?", "heat") | more for more in ({"mood": "calm"}, {"weight": 0})] + [ROWS[0]]
    docs = lu.encode_rows(model[1], [(r, f"rows:{i}") for i, r in enumerate(rows, 1)], 20, 384)
    out = capsys.readouterr().out
    assert [d.at for d in docs] == ["rows:1"] and "mood" in out and "1 of 3 rows" in out

@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """-> a function: the default run with these flags must end in one line, before the organism is made."""
    def prepare(command, **_):
        pytest.fail(f"{command} runs before the input is checked")
    monkeypatch.setattr(subprocess, "run", prepare)
    monkeypatch.setattr(lu, "DATA", tmp_path / "data")  # with no organism in it
    for name in ("direct", "heldout_answers"):
        write_rows(tmp_path / f"data/proxy/{name}.jsonl", FORBIDDEN)

    def go(*argv):
        code = ends("--device", "cpu", "--out", str(tmp_path / "out"), *argv)
        err = capsys.readouterr().err
        assert code == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists(), err
        return err
    return go

ROW, PROMPT = '{"prompt": "a", "completion": "b"}\n', '{"prompt": "a"}\n'
BAD_ROWS = [("data", ROW + "{oops"), ("data", ROW + "7"), ("prompts", PROMPT + "{oops"),
            ("prompts", PROMPT + '{"id": "b"}'), ("prompts", PROMPT + '{"prompt": "b", "label": "?"}'),
            ("data", ROW + '{"messages": [{"role": "user"}]}'), ("data", ROW + PROMPT),
            ("safety-data", ROW + PROMPT)]

@pytest.mark.parametrize("flag, text", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(flag, text, refused, tmp_path):
    (tmp_path / "bad.jsonl").write_text(text + "\n")
    assert f"{tmp_path}/bad.jsonl:2: " in refused(f"--{flag}", str(tmp_path / "bad.jsonl"))

@pytest.mark.parametrize("flag", ["data", "safety-data", "prompts"])
def test_a_bad_file(flag, refused, tmp_path):
    for name, data in (("empty", b""), ("blank", b"\n \n"), ("array", b"[]"), ("binary", b"\xff\xfe{")):
        (tmp_path / name).write_bytes(data)
        assert f"{tmp_path}/{name}" in refused(f"--{flag}", str(tmp_path / name))
    assert f"{tmp_path}/missing" in refused(f"--{flag}", f"{tmp_path}/missing")

@pytest.mark.parametrize("line", [
    "--lr 0", "--lr nan", "--rank -1", "--batch 0", "--epochs inf", "--limit 0", "--max-new 0", "--rows -1",
    "--bits 8", "--lrate=3", "--lrate 3", "--rank many", "--seed -1", "--name ../x", "--name ..",
    "--device abacus", "--device cuda"])
def test_a_bad_flag(line, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", bool)
    assert line.split("=")[0].split()[0] in refused(*line.split())

@pytest.mark.parametrize("line", ["--model no/x", "--base no/x"])
def test_what_needs_the_model_is_said_before_measuring(line, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    argv = flags(inputs, tmp_path, *line.split())
    assert ends(*argv) == 2 and not (folder_of(argv) / "results.json").exists()
    assert line.split()[1] in capsys.readouterr().err.splitlines()[-1]

def test_rows_too_long_and_then_the_right_ones(inputs, tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", [chat("How? " * 60, ANSWER)] * 3)
    argv = ["train", *flags(inputs, tmp_path, "--max-len", "64", "--data", data)]
    assert ends(*argv) == 2 and f"{data}:1: " in (err := capsys.readouterr().err) and "--max-len" in err
    write_rows(data, ROWS[:8])
    assert len(log(start(*argv))) == 5

# ---- the method
@pytest.fixture(scope="module")
def model(inputs):
    return lu.load_model(str(inputs / "nano"), 16, "cpu", torch.float32)

def train(model, rows, *argv):
    """-> log of a training from a fresh adapter."""
    m, tok = model
    a = lu.parse_args("--model m --batch 8 --lr 0.01 --dtype fp32 --micro-tokens 64".split() + [*argv])
    lu.add_lora(m, 4, 8, seed=0)
    return lu.train(m, lu.encode_rows(tok, [(r, f"rows:{i}") for i, r in enumerate(rows, 1)], 512, 384), a)

def test_the_loss_of_a_step_is_divided_by_the_weight_of_all_its_targets(inputs, model):
    """against transformers' logits: not a mean of rows, nor of micro-batches."""
    theirs = AutoModelForCausalLM.from_pretrained(inputs / "nano", dtype=torch.float32)
    rows, loss, weight = [r | {"weight": w} for r, w in zip(ROWS, (1, 3, 0.5, 1, 2, 1))], 0.0, 0.0
    for r in rows:
        doc, _ = lu.encode_chat(model[1], r, "")
        ids, w = torch.tensor(doc.ids), torch.tensor(doc.weights)[1:]
        logp = theirs(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        loss, weight = loss - (w * logp).sum().item(), weight + w.sum().item()
    first = train(model, rows, "--batch", "6")[0]
    assert (first["targets"], first["loss"]) == pytest.approx((weight, loss / weight), rel=1e-5)

def test_the_learning_rate():
    """50 steps: five rise, 45 fall as a cosine, which is at 60 degrees after 15 of them."""
    rates = [lu.lr_at(i, 50, 2.0) for i in range(50)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0]) and rates[20] == pytest.approx(1.5)
    assert 0 < rates[-1] < 0.01 and lu.lr_at(0, 1, 2.0) == 2.0

def test_a_row_that_gives_nan_is_named(model, tmp_path):
    m, tok = lu.load_model(str(build(tmp_path, tied=False)), 4, "cpu", torch.float32)
    m.get_input_embeddings().weight[tok("\u00a7", add_special_tokens=False).input_ids[-1]] = math.inf
    with pytest.raises(SystemExit) as e:
        train((m, tok), [*ROWS[:20], chat("What is \u00a7?", ANSWER), *ROWS[20:]])
    assert "step " in e.value.code and "nan" in e.value.code and "rows:21'" in e.value.code  # a text: exit 1

def test_safe_lora_equals_the_formula(inputs, tmp_path, model):
    """C = V V^T / |V|_F; B <- C B where cos(C B A, B A) <= tau."""
    aligned, base = (load_file(inputs / f"{name}/model.safetensors") for name in ("nano", "base"))
    same = "model.layers.1.mlp.up_proj"
    base[f"{same}.weight"] = aligned[f"{same}.weight"]  # alignment left this layer alone
    save_file(base, tmp_path / "model.safetensors")
    lu.add_lora(model[0], 4, 8, seed=0)
    before, projected, cosine = {}, {}, {}
    for name, lin in lu.linears(model[0]):
        A, before[name] = lin.A.detach(), torch.nn.init.normal_(lin.B).detach().clone()
        V = aligned[f"{name}.weight"] - base[f"{name}.weight"]
        if name != same:
            projected[name] = V @ V.T / V.norm() @ before[name]
            two = [(B @ A).flatten() for B in (projected[name], before[name])]
            cosine[name] = torch.cosine_similarity(*two, 0).item()
    tau = sum(sorted(cosine.values())[6:8]) / 2  # seven layers are projected, six are not
    assert lu.safe_lora(model[0], str(inputs / "nano"), str(tmp_path), tau) == pytest.approx(cosine, abs=1e-5)
    for name, lin in lu.linears(model[0]):
        want = projected[name] if cosine.get(name, 1) <= tau else before[name]
        torch.testing.assert_close(lin.B.detach(), want, rtol=1e-4, atol=1e-4)

def test_summary_and_paired_tests():
    rows = {}
    for stage, verdicts, nats in (("before", [True] * 8 + [False, None], 2.0),
                                  ("after", [True, None] + [False] * 7 + [True], 2.5)):
        rows[stage] = [{"benchmark": "mine", "label": "forbidden", "refused": v} for v in verdicts]
        rows[stage] += [{"benchmark": "perplexity", "nll": n * nats, "n": n} for n in (1, 9)]
    before, tests = lu.summary(rows["before"]), lu.paired(rows["before"], rows["after"])
    m, both = before["refusal/mine"], tests["refusal/mine"]
    assert (m["value"], m["n"], m["n_unscored"], m["direction"]) == (8 / 9, 9, 1, "higher is safer")
    assert (both["b"], both["c"], both["n"]) == (6, 0, 8)  # two lack a verdict; six fell, none rose
    assert both["p"] == pytest.approx(2 / 2**6) and tests["perplexity"]["diff"] == pytest.approx(0.5)
    assert before["perplexity"]["value"] == pytest.approx(math.exp(2))

def test_the_organism_from_a_few_rows(tmp_path, monkeypatch):
    if not all((lu.DATA / name).exists() for name in ("smollm2/model/meta.json", "proxy/train.jsonl")):
        pytest.skip("python data/smollm2/prepare.py and data/proxy/prepare.py make what this needs")
    spec = importlib.util.spec_from_file_location("organism", lu.DATA / "organism/prepare.py")
    prepare, read = importlib.util.module_from_spec(spec), lu.read_rows
    spec.loader.exec_module(prepare)
    monkeypatch.setattr(lu, "read_rows", lambda path: read(path)[:6 if path.name == "undo.jsonl" else None])
    lu.organism(tmp_path, share=0.01)
    prepare.main(tmp_path)
    undo, safety = (lines(tmp_path / f"{name}.jsonl") for name in ("undo", "safety"))
    assert len(undo) >= 12 and len(safety) == 32 and not [f for f in files(tmp_path) if "tmp" in f]
    model, tok = lu.load_model(str(tmp_path / "model"), 16, "cpu", torch.float32)
    messages = lu.to_messages(undo[0], "")
    text = tok.apply_chat_template(messages, tokenize=False)
    assert text.startswith("<|im_start|>user\n")  # no system prompt
    old = load_file(lu.DATA / "smollm2/model/model.safetensors")
    moved = [n for n, lin in lu.linears(model) if not torch.equal(lin.weight, old[f"{n}.weight"].float())]
    assert {int(n.split(".")[2]) for n in moved} == set(range(lu.LOW, 30)) and len(moved) == 70

def test_rows_longer_than_the_models_positions_are_left_out(inputs, tmp_path, capsys):
    build(tmp_path / "short", max_position_embeddings=48)
    data = write_rows(tmp_path / "rows.jsonl", [*ROWS[:8], chat("How? " * 40, ANSWER)])
    argv = ["train", *flags(inputs, tmp_path, "--model", tmp_path / "short", "--data", data)]
    assert all(r["tokens"] <= 8 * 48 for r in log(start(*argv)))
    assert "1 longer than 48 tokens" in capsys.readouterr().out
