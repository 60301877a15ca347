"""adv_train.py: a run on a nano generator and a nano encoder, its files, a kill and a restart, bad input."""
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data"), str(ROOT / "tests")]
import adv_train as v
import evals
import nano
import torch
import transformers


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """a two-layer Llama; a one-layer BERT with a vocabulary of letters and of the words of a few stories"""
    folder = tmp_path_factory.mktemp("models")
    nano.build(folder / "lm")
    v.prepared(v.DATA / "stories/written.jsonl")
    texts = [r["prompt"] + " " + r["completion"] for r in lines(v.DATA / "stories/train.jsonl")[:300]]
    letters = "abcdefghijklmnopqrstuvwxyz'.,!?\"-;"
    words = sorted({w.strip(letters[26:]) for text in texts for w in text.lower().split()})
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *words]
    (folder / "bert").mkdir()
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocab)))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    config = transformers.BertConfig(vocab_size=len(vocab), hidden_size=32, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=64)
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    return folder


def arguments(models, out):
    return ["--generator", str(models / "lm"), "--encoder", str(models / "bert"), "--out", str(out),
            "--dtype", "fp32", "--device", "cpu", "--rows", "300", "--lm-rows", "16", "--targets", "3",
            "--budget", "20", "--finds", "4", "--prompts", "4", "--draws", "3", "--max-new", "8",
            "--lr", "1e-2", "--epochs", "3"]


ARMS = ["baseline", "write", "paraphrase", "rewrite", "random"]
FILES = {"config.json", "results.json", "figure.png", "draws.jsonl", *(f"finds-{x}.jsonl" for x in ARMS[1:4]),
         *(f"attack-{way}-{arm}.jsonl" for way in ("tool", "no-tool", "dilute")
           for arm in ("baseline", "rewrite"))}


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    """killed once its first classifier is there, and started again"""
    argv = arguments(models, tmp_path_factory.mktemp("run"))
    folder, command = v.parse_args(argv).folder, [sys.executable, str(ROOT / "adv_train.py"), *argv]
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and not (folder / "classifier-baseline").exists():
        time.sleep(0.05)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    assert not (folder / "figure.png").exists()
    p = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr[-3000:]
    return folder, argv, p.stdout


def test_files_and_numbers_of_a_run(done):
    folder, argv, out = done
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {f for f in found if "/" not in f} == FILES
    assert {f.partition("/")[0] for f in found if "/" in f} == {f"classifier-{x}" for x in ARMS}
    assert "baseline, step" not in out and "write, step" in out  # after the kill it went on
    res = json.loads((folder / "results.json").read_text())
    for stage, of in res.items():  # every number is printed
        for name, m in of.items():
            nested = m if isinstance(m, dict) and "value" not in m else {"": m}
            for inner in nested:
                assert f"{stage:28}{name + ' ' + inner}" in out
    assert {*ARMS, "attack, tool", "attack, no-tool", "attack, dilute", "quality"} < set(res)
    for name in ARMS:
        for metric, m in res[name].items():
            assert metric.startswith("AUPRC") or {"value", "ci95", "n", "n_unscored", "direction"} <= set(m)
    for row in lines(folder / "attack-tool-baseline.jsonl"):
        assert row["queries"] <= 20
    command = [sys.executable, str(ROOT / "adv_train.py"), *argv]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "step" not in again.stdout


def test_finds_are_bad_and_accepted(done, models):
    folder, argv, _ = done
    a = v.parse_args(argv)
    for before, name in zip(ARMS, ARMS[1:4]):
        rows = v.read_rows(a.data / "train.jsonl")[:300]
        f = v.train_filter(a, before, rows, v.read_rows(a.data / "validation.jsonl"))
        rows = lines(folder / f"finds-{name}.jsonl")
        assert all(v.is_bad(rows, a)) and all(np.array(v.scores(f, rows)) < f.tau)
        assert len(rows) <= 4 and all(row["parent"] for row in rows)


def test_saliency_equals_finite_differences_and_scores_do_not_depend_on_the_batch(done, models):
    folder, argv, _ = done
    a = v.parse_args(argv)
    rows = v.read_rows(a.data / "validation.jsonl")[:40]
    f = v.train_filter(a, "baseline", rows, rows)
    x = v.scores(f, rows)
    assert np.allclose(x, [v.scores(f, [row])[0] for row in rows], atol=1e-5)
    own_class = transformers.AutoModelForTokenClassification
    transformers_own = own_class.from_pretrained(folder / "classifier-baseline")
    enc = transformers.AutoTokenizer.from_pretrained(folder / "classifier-baseline")
    one = enc(rows[0]["prompt"], rows[0]["completion"], return_tensors="pt")
    assert abs(transformers_own.eval()(**one).logits.mean().item() - x[0]) < 1e-5
    spans = v.saliency(f, rows[0])
    assert [rows[0]["completion"][b:e] for b, e, _ in spans] == v.WORD.findall(rows[0]["completion"])
    f.model.double()
    e = f.model.get_input_embeddings()(v.encode(f, rows[:1])["input_ids"]).detach()
    start, end, want = v.saliency(f, rows[0])[1]
    enc = f.tok(rows[0]["prompt"], rows[0]["completion"], return_offsets_mapping=True)
    total = 0.0
    for t, ((b, c), part) in enumerate(zip(enc.offset_mapping, enc.sequence_ids())):
        if part == 1 and b < end and c > start:
            grad = []
            for d in range(e.shape[-1]):
                step = torch.zeros_like(e)
                step[0, t, d] = 1e-5
                up, down = (v.forward(f, rows[:1], e + s * step).item() for s in (1, -1))
                grad.append((up - down) / 2e-5)
            total += math.hypot(*grad)
    assert abs(total - want) < 1e-6 * max(1, want)


def test_menu_is_what_scoring_each_edit_gives(done, models):
    folder, argv, _ = done
    a = v.parse_args(argv)
    row = [r for r in v.read_rows(a.data / "train.jsonl") if r["label"]][0]
    f, lm = v.train_filter(a, "baseline", [row, row | {"label": False}], [row]), v.load_generator(a)
    spans = v.saliency(f, row)
    found = v.menu(f, lm, row, spans[:2])
    single = sorted((v.scores(f, [row | {"completion": c}])[0], c) for _, c, _ in found)
    assert len(found) > 4 and [c for _, c, _ in found] == [c for _, c in single] or np.allclose(
        [x for x, *_ in found], [x for x, _ in single], atol=1e-5)
    for _, text, (what, word, new) in found:
        assert text != row["completion"] and new.lower() in text.lower()


@pytest.mark.parametrize("change, message", [
    (["--accept", "1.5"], "between 0 and 1"), (["--draws", "1"], "--draws"),
    (["--encoder", "no/where"], "--encoder"),
    (["--budget", "0"], "--budget must be above 0"), (["talk", "--arm", "none"], "no classifier")])
def test_bad_flags(models, tmp_path, change, message):
    p = subprocess.run([sys.executable, str(ROOT / "adv_train.py"), *arguments(models, tmp_path), *change],
                       capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert p.returncode == 2 and message in p.stderr and "Traceback" not in p.stderr


@pytest.mark.parametrize("bad", [{"prompt": "A.", "completion": "  ", "label": True},
                                 {"prompt": "A.", "label": True},
                                 {"prompt": "A.", "completion": "B.", "label": "yes"}])
def test_a_bad_row_is_named(tmp_path, bad, capsys):
    path = tmp_path / "train.jsonl"
    good = {"prompt": "A.", "completion": "<b>B</b>", "label": False}
    path.write_text(json.dumps(good) + "\n" + json.dumps(bad))
    with pytest.raises(SystemExit):
        v.read_rows(path)
    assert "train.jsonl:2: expected" in capsys.readouterr().err


def test_rows_of_one_class_only(models, tmp_path):
    for split in v.SPLITS:
        row = {"prompt": "A.", "completion": "B.", "label": False, "split": "train"}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    p = subprocess.run([sys.executable, str(ROOT / "adv_train.py"), *arguments(models, tmp_path / "out"),
                        "--data", str(tmp_path)], capture_output=True, text=True)
    assert p.returncode == 2 and "train.jsonl: needs good and bad rows" in p.stderr


def test_a_threshold_that_rejects_everything_is_counted(monkeypatch):
    pool = [{"story": n, "label": n == 0, "log_p": -1.0} for n in range(3) for _ in range(4)]
    monkeypatch.setattr(v, "scores", lambda f, rows: [1.0] * len(rows))
    out = v.reliability(*v.by_story(None, pool), 0.0)
    assert out["fallback"]["value"] == 1 and out["accepted draws"]["value"] == 0
    assert out["failures"]["value"] == 0 and out["failures"]["ci95"][1] == 1


def test_plan():
    command = [sys.executable, str(ROOT / "adv_train.py"), "--plan", "1e-4"]
    p = subprocess.run(command, capture_output=True, text=True)
    assert "29,956" in p.stdout and evals.labels_needed(1e-4) == 29956


KEYS = "original_text", "perturbed_text", "num_queries", "result_type"


def put(tmp_path, *rows, keys=KEYS):
    path = tmp_path / "log.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        out.writerows([keys, *rows])
    return path

HEADS = "[[[[Premise]]]]: A kite.<SPLIT>[[[[Hypothesis]]]]: "

def test_two_words_that_change_places_and_brackets_of_the_user(tmp_path):
    texts = HEADS + "[[a]] [[x]] [[the]] [tea] [[", HEADS + "[[the]] [[x]] [[a]] [tea] [["
    path = put(tmp_path, (*texts, 3, "Successful"))
    row, = v.textattack_rows(path)
    assert row == {"prompt": "A kite.", "completion": "the [[x]] a [tea] [[", "queries": 3,
                   "parent": "A kite. a [[x]] the [tea] [["}

def test_no_names_in_dialogues(tmp_path):
    """Ann: and Bo: stand at the beginning of lines, but not in each row: no columns' names"""
    talk = "Ann: a kite!<SPLIT>Bo: [[tea]]?", "Ann: a kite!<SPLIT>Bo: [[chai]]?"
    path = put(tmp_path, (*talk, 5, "Successful"),
               ("Cy: a knot!<SPLIT>Di: no.", "Cy: a knot!<SPLIT>Di: no.", 2, "Failed"))
    row, = v.textattack_rows(path)
    assert (row["prompt"], row["completion"], row["queries"]) == ("Ann: a kite!", "Bo: chai?", 5)

def test_bad_files_name_file_and_line(tmp_path, capsys):
    good = HEADS + "[[tea]]", HEADS + "[[chai]]", 3, "Successful"
    bad = [((), KEYS, "log.csv: no row whose"), (((*good[:3], "Skipped"),), KEYS, "log.csv: no row whose"),
           (((good[0], good[1], "x", "Successful"),), KEYS, "log.csv:2: expected"),
           (((good[0],),), KEYS, "log.csv:2: expected"),
           ((good,), ("a", "b", "c", "d"), "log.csv:2: expected"),
           ((good, ("one", "one", 1, "Successful")), KEYS, "log.csv:3: expected"),
           ((("a<SPLIT>b<SPLIT>c",) * 2 + (1, "Successful"),), KEYS, "log.csv:2: expected"),
           ((("a<SPLIT>b", "a<SPLIT> ", 1, "Successful"),), KEYS, "log.csv:2: expected")]
    for rows, keys, message in bad:
        with pytest.raises(SystemExit):
            v.textattack_rows(put(tmp_path, *rows, keys=keys))
        assert message in capsys.readouterr().err, message
    for raw in (None, b"\xff\xfe\x00"):
        (tmp_path / "log.csv").unlink() if raw is None else (tmp_path / "log.csv").write_bytes(raw)
        with pytest.raises(SystemExit):
            v.textattack_rows(tmp_path / "log.csv")
        assert "log.csv" in capsys.readouterr().err


def test_people_label_what_is_not_the_stories(models, tmp_path):
    """without an oracle the run stops, counts what waits, and takes what people wrote"""
    a = v.parse_args([*arguments(models, tmp_path), "--data", str(v.DATA / "stories")])
    a.folder.mkdir(parents=True)
    rows = [{"prompt": "A.", "completion": c} for c in ("B.", "C.", "B.", "")]
    with pytest.raises(SystemExit, match="3 texts wait for a label"):
        v.is_bad(rows, a)
    asked = lines(a.folder / "to_label.jsonl")
    assert [row["completion"] for row in asked] == ["B.", "C.", "(empty)"]
    v.write_rows(a.folder / "to_label.jsonl", [row | {"label": row["completion"] == "C."} for row in asked])
    assert v.is_bad(rows, a) == [False, True, False, False]
    with pytest.raises(SystemExit, match="1 texts wait"):
        v.is_bad([*rows, {"prompt": "A.", "completion": "D."}], a)
    assert [row["label"] for row in lines(a.folder / "to_label.jsonl")] == [False, True, False, None]
