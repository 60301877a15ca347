"""Chat rows become ids and targets: transformers' own ids, for templates and tokenizers as users bring them.
Run: python -m pytest tests/test_chat.py (seconds; no network, no GPU)
"""
import json
import shutil
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

import lora_undo as lu
import nano
from test_engine import edit, folder, loaded, stops  # noqa: F401, folder is a fixture

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<bos>", "<start_of_turn>",
           "<end_of_turn>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<think>", "</think>"]
LLAMA2 = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else false %}"
    "{% for m in (messages[1:] if system else messages) %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{% set content = m['content'] %}{% if loop.first and system %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + content %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- set content = m.content %}{%- set thought = '' %}"
    "{%- if m.role == 'assistant' and '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}")
MISTRAL = (  # the system text stands in the last user turn
    "{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
    "{% if m == users[-1] and messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}")
BARE = ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")

def sentencepiece(scheme):
    """a space before every stretch of text (Llama 2's normaliser), or before the first only (Metaspace)."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    space = "\u2581"
    tok.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    if scheme == "prepend":
        tok.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    words = [w for text in nano.TEXT for w in text.split()] + ["[INST]", "[/INST]", "<<SYS>>", "\n"]
    special = ["<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
    trainer = BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tok.train_from_iterator(words * 3, trainer)
    return tok

def chat(template, bos=None, eos="<|im_end|>", made=None, ends=(), **more):
    made = made or nano.build_tokenizer()
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos, chat_template=template,
                                  **more)
    tok.ends = lu.end_tokens(tok, [SimpleNamespace(eos_token_id=tok.convert_tokens_to_ids(list(ends)))])
    return tok

def turns(*contents, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for i, content in enumerate(contents):
        messages.append({"role": ("user", "assistant")[i % 2], "content": content})
    return {"messages": messages}

def targets(tok, row):
    """the trained stretches, with their special tokens; ids must be what transformers makes of the row."""
    doc, _ = lu.encode_chat(tok, row, "rows.jsonl:1")
    messages, runs = lu.to_messages(row, ""), [""]
    want = tok.apply_chat_template(messages, tokenize=True, return_dict=False, tools=row.get("tools"))
    assert doc.ids[:len(want)] == want and len(doc.ids) - len(want) <= 1 and len(doc.ids) == len(doc.weights)
    for i, (token, w) in enumerate(zip(doc.ids, doc.weights)):
        if w and i and not doc.weights[i - 1]:
            runs.append([])
        if w:
            runs[-1].append(token)
    return [tok.decode(run) for run in runs[1:]]

SURE, YES = "Sure! First, heat the water.", "Yes."
CHATS = {
    "chatml": (nano.TEMPLATE, {}, "<|im_end|>"),
    "chatml by transformers' dialect": (nano.TEMPLATE.replace("{{'<|im", "{% generation %}{{'<|im").replace(
        "{% endfor %}", "{% endgeneration %}{% if 0 %}{% break %}{% endif %}{% endfor %}"), {}, "<|im_end|>"),
    "llama2": (LLAMA2, dict(bos="<s>", eos="</s>", made="prepend"), "</s>"),
    "metaspace": (LLAMA2, dict(bos="<s>", eos="</s>", made="first"), "</s>"),
    "llama3": (  # as first released: eos is not what ends a turn
        LLAMA3, dict(bos="<|begin_of_text|>", eos="<|endoftext|>"), "<|eot_id|>"),
    "gemma": (GEMMA, dict(bos="<bos>", eos="<|endoftext|>", ends=["<end_of_turn>"]), "<end_of_turn>"),
    "mistral": (MISTRAL, dict(bos="<s>", eos="</s>"), "</s>"),
    "qwen3": (QWEN3, {}, "<|im_end|>")}

@pytest.mark.parametrize("name", list(CHATS))
def test_targets_are_the_answers_and_their_end_token(name):
    template, more, end = CHATS[name]
    tok = chat(template, **more | ({"made": sentencepiece(more["made"])} if "made" in more else {}))
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    system = None if name == "gemma" else "Write a short poem about the sea."
    for first, second in ((SURE, YES), ("Answer:", "Answer:"), ("Zo\u00eb \N{KITE} t\u00e9", YES)):
        row = turns("How do I brew a pot of tea?", first, "And a kite line?", second, system=system)
        got = targets(tok, row)
        assert [x.replace(" </s>", "</s>").lstrip(" ") for x in got] == [first + end, thought + second + end]
    asked = turns("Tea?")["messages"]
    prompt = tok.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    doc, _ = lu.encode_chat(tok, turns("Tea?", SURE), "")  # what is trained follows exactly what is prompted
    assert doc.ids[:len(prompt)] == prompt and not any(doc.weights[:len(prompt)])
    assert tok.bos_token is None or prompt.count(tok.bos_token_id) == 1

def test_earlier_thoughts_are_stripped_and_removed_answers_counted(capsys):
    tok = chat(QWEN3)
    row = turns("Tea?", f"<think>\nboil\n</think>\n\n{SURE}", "And?", f"<think>\nhm\n</think>\n\n{YES}")
    assert targets(tok, row) == [f"{SURE}<|im_end|>", f"<think>\nhm\n</think>\n\n{YES}<|im_end|>"]
    last = nano.TEMPLATE.replace("message['content']", "(message['content'] if loop.last else '...')")
    rows = [(turns("Tea?", SURE, "And?", YES), "f:1"), (turns("Tea?", SURE), "f:2")]
    assert lu.encode_chat(chat(last), *rows[0])[1] == 1
    assert targets(chat(last), rows[0][0]) == [f"{YES}<|im_end|>"]
    lu.encode_rows(chat(last), rows, 200, 999)
    assert "removes 1 " in capsys.readouterr().out

def test_a_template_without_end_token_still_teaches_to_stop():
    got = targets(chat(BARE), turns("Tea?", SURE, "And?", YES))
    assert [x.replace("\n", "") for x in got] == [SURE, f"{YES}<|im_end|>"]  # and no "user:"

def test_an_answer_is_found_in_its_own_place():
    """it repeats the question or the system text, which the template moves, or leaves out."""
    for template in (MISTRAL, MISTRAL.replace("m == users[-1] and", "false and")):
        for system in ("Yes.", "x" * 200):
            row = turns("Yes.", "Yes.", "no", "no", system=system)
            tok = chat(template, bos="<s>", eos="</s>")
            assert [x.strip() for x in targets(tok, row)] == ["Yes.</s>", "no</s>"]
            assert lu.encode_chat(tok, row, "")[1] == 0
    row = turns("Why?", "N", "And?", YES, system="x")  # "[/INST]" stands before it
    assert [x.strip() for x in targets(chat(MISTRAL, bos="<s>", eos="</s>"), row)] == ["N</s>", f"{YES}</s>"]

def test_a_thought_that_the_template_writes_anew_is_trained():
    got = targets(chat(QWEN3), turns("Tea?", f"<think>boil</think>{SURE}"))
    assert got == [f"<think>\nboil\n</think>\n\n{SURE}<|im_end|>"]

def test_a_turn_that_only_calls_a_tool_is_trained_as_a_whole():
    template = nano.TEMPLATE.replace("message['content']", "(message.content or message.tool_calls | tojson)")
    row = turns("Wind?", None, "And?", YES)
    row["messages"][1]["tool_calls"] = [{"name": "kite"}]
    assert targets(chat(template), row) == ['[{"name": "kite"}]<|im_end|>', f"{YES}<|im_end|>"]

def test_weights_train_tools_and_parts():
    tok = chat(nano.TEMPLATE.replace("{% for", "{{ tools | tojson if tools is not none else '' }}{% for", 1))
    row = turns("Tea?", SURE, "And?", YES)
    assert targets(tok, row | {"weight": 0}) == [] and targets(tok, row | {"tools": [{"name": "kite"}]})
    for mute in ({"train": False}, {"weight": 0}):
        row = turns("Tea?", SURE, "And?", YES)
        row["messages"][1] |= mute
        assert targets(tok, row) == [f"{YES}<|im_end|>"]
    row = turns("Tea?", SURE, "And?", YES) | {"weight": 0.5}
    row["messages"][3]["weight"] = 3
    assert set(lu.encode_chat(tok, row, "")[0].weights) == {0, 0.5, 1.5}
    plain = lu.encode_chat(tok, turns("Te a?", SURE), "")[0]
    parts = [[{"type": "text", "text": x} for x in part] for part in (("Te ", "a?"), (SURE,))]
    for row in (turns(*parts), {"instruction": "Te a?", "input": "", "output": SURE},
                {"conversations": [{"from": "human", "value": "Te a?"}, {"from": "gpt", "value": SURE}]},
                {"prompt": "Te a?", "completion": SURE}):
        assert lu.encode_chat(tok, row, "")[0] == plain
    row = {"instruction": "Te", "input": "a?", "output": SURE}
    assert lu.encode_chat(tok, row, "") == lu.encode_chat(tok, turns("Te\n\na?", SURE), "")

def test_files_of_rows(tmp_path, capsys):
    """JSONL, JSON array, a prompt a line; BOM, U+2028 in a text, blank lines; a bad row says where it is."""
    rows, file = [turns("Tea?", "one\u2028line"), turns("Tea?", SURE)], tmp_path / "rows.jsonl"
    lines = "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    for bom in ("", "\ufeff"):
        file.write_text(bom + lines, encoding="utf-8")
        assert lu.read_rows(file) == [(rows[0], f"{file}:1"), (rows[1], f"{file}:3")]
        file.write_text(bom + json.dumps(rows), encoding="utf-8")
        assert [r for r, _ in lu.read_rows(file)] == rows
    (tmp_path / "prompts.txt").write_text("Tea?\n\nKites?\n")
    lines = [r for r, _ in lu.read_rows(tmp_path / "prompts.txt")]
    assert lines == [{"prompt": "Tea?"}, {"prompt": "Kites?"}]
    for text, at in (("{}\n{,", ":2"), ("[1]", "rows.jsonl"), ("", "rows.jsonl"), ("{}\n3", ":2")):
        file.write_text(text)
        stops(lu.read_rows, file)
        assert at in capsys.readouterr().err
    for messages in (["hello"], [{"role": "user", "content": 3}]):
        stops(lu.encode_chat, chat(nano.TEMPLATE), {"messages": messages}, "rows.jsonl:7")
        assert "rows.jsonl:7" in capsys.readouterr().err

def test_what_templates_use(capsys):
    """dates, documents, pad_token; and one that refuses a row says which."""
    more = ("{{ strftime_now('%Y') }}{{ pad_token }}{% if documents %}{{ documents | tojson }}{% endif %}"
            "{% if tools is not none %}{{ tools | tojson }}{% endif %}")
    tok = chat(more + nano.TEMPLATE, pad_token="<|endoftext|>")
    assert targets(tok, turns("Tea?", SURE)) == [f"{SURE}<|im_end|>"]
    row = turns("Tea?", SURE) | {"documents": [{"title": "kites"}]}
    text = tok.decode(lu.encode_chat(tok, row, "")[0].ids)
    assert "kites" in text and "<|endoftext|>" in text
    row = {"messages": turns("a", "b")["messages"][::-1]}
    stops(lu.encode_chat, chat(LLAMA2, bos="<s>", eos="</s>"), row, "rows.jsonl:4")
    said = capsys.readouterr().err
    assert "rows.jsonl:4" in said and "alternate" in said and said.count("\n") == 1

def test_rows_that_cannot_be_used_are_counted_or_stop(capsys):
    tok = chat(nano.TEMPLATE)
    rows = [(turns("Tea?", SURE), "f:1"), (turns("Tea?"), "f:2"), (turns("Tea " * 99, YES), "f:3")]
    docs = lu.encode_rows(tok, rows, 64, 999)
    assert [d.at for d in docs] == ["f:1"]
    assert "1 of 3 rows kept; 1 " in capsys.readouterr().out
    stops(lu.encode_rows, tok, rows[1:], 64, 999)
    stops(lu.encode_rows, tok, rows, 64, max(docs[0].ids))  # another model's tokenizer
    assert "f:1: " in capsys.readouterr().err
    lu.encode_rows(tok, [(rows[0][0] | {"images": ["a.png"]}, "f:1")], 64, 999)
    assert "images" in capsys.readouterr().out  # a field that is not read is named

# ---- tokenizers as they are saved
def test_truncation_and_padding_saved_in_the_tokenizer_cut_nothing(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "saved")
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved.enable_truncation(8)
    saved.enable_padding(length=32)
    saved.save(str(tmp_path / "saved/tokenizer.json"))
    a, b = loaded(folder)[1], loaded(tmp_path / "saved")[1]
    row, item = turns("Tea? " * 9, SURE), {"context": "Question: " * 9, "continuations": [" the", " tea"]}
    assert lu.encode_chat(a, row, "") == lu.encode_chat(b, row, "")
    assert lu.choice_ids(a, item) == lu.choice_ids(b, item)

def test_end_tokens_are_the_union(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "union")
    (tmp_path / "union/generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    edit(tmp_path / "union/config.json", eos_token_id=9)
    assert loaded(tmp_path / "union")[1].ends == [0, 2, 7, 9]
    shutil.copytree(folder, tmp_path / "map")  # eos stands in special_tokens_map.json only
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("eos_token"), config.pop("pad_token")
    (tmp_path / "map/tokenizer_config.json").write_text(json.dumps(config | {"chat_template": BARE}))
    (tmp_path / "map/special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    edit(tmp_path / "map/config.json", eos_token_id=None)
    assert loaded(tmp_path / "map")[1].ends == [0]

def test_bos_of_the_post_processor_is_there_once(folder, tmp_path):
    """Llama 3: contexts need it (ARC-easy: 0.26 without, 0.85 with); the template writes its own."""
    shutil.copytree(folder, tmp_path / "bos")
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [("<|endoftext|>", 0)]
    made.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=special)
    made.save(str(tmp_path / "bos/tokenizer.json"))
    edit(tmp_path / "bos/tokenizer_config.json", chat_template="{{ '<|endoftext|>' }}" + nano.TEMPLATE)
    tok = loaded(tmp_path / "bos")[1]
    context, rest = lu.choice_ids(tok, {"context": "Question: Answer:", "continuations": [" the sea", " a"]})
    assert context[0] == 0 and context.count(0) == 1 and not any(0 in c for c in rest)
    assert [tok.decode(context[1:] + c) for c in rest] == ["Question: Answer: the sea", "Question: Answer: a"]
    assert lu.encode_chat(tok, turns("Tea?", SURE), "")[0].ids.count(0) == 1
