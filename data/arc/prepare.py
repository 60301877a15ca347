# /// script
# dependencies = ["pyarrow"]
# ///
"""ARC: 2,376 easy and 1,172 challenge test questions -> items-easy, items-challenge.jsonl, meta.json

Clark et al. 2018, https://arxiv.org/abs/1803.05457, hub: allenai/ai2_arc, licence CC-BY-SA-4.0.

    uv run data/arc/prepare.py     # the two pinned parquet files, 0.5 MB; plain python where pyarrow is there
    python data/arc/prepare.py --src easy.parquet challenge.parquet     # your copies
    python data/arc/prepare.py --any-version --src arc_easy.jsonl arc_challenge.jsonl  # llm-foundry's copy

The words easy and challenge in a file's name tell its set. A set that is not given is not written.

- Prompt of lm-evaluation-harness: "Question: {question}\\nAnswer:", each choice as a continuation after one
  space; acc and acc_norm (divided by the length of the choice). Leaderboards quote 25-shot acc_norm.
- Some questions have three or five choices: chance is not exactly 25 %. Some label them 1 to 4 instead of A
  to D: here `answer` is always the 0-based position.
- llm-foundry's JSONL has four choices everywhere, in a few the same text twice, and no ids.
Row: {"id", "context", "prompt", "choices": texts, "answer": 0-based}; the id is upstream's, or "arc-easy-1"
with the 1-based line where there is none.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, die, expect, field, flags, get, in_words, items, pick, read_rows, save, texts

REVISION = "210d026faf9955653af8916fad021475a3f00453"
URL = f"https://huggingface.co/datasets/allenai/ai2_arc/resolve/{REVISION}/ARC-%s/test-00000-of-00001.parquet"
URLS = {"easy": URL % "Easy", "challenge": URL % "Challenge"}
SHA256 = {"easy": "4160597d618ae851c7eb04e281574f3f654776216ac6b6641588d64527b47177",
          "challenge": "62f03257e737aed263f55c6abf87c7bb0028a44a6bdd2a26eb1279eb42c1d1e9"}
LICENCE, COUNTS = "CC-BY-SA-4.0", {"easy": 2376, "challenge": 1172}

ABOUT = {"domain": "knowledge", "paper": "https://arxiv.org/abs/1803.05457"}
MEANS = {"easy": "knows school science, without examples; chance is about 25 %",
         "challenge": "knows school science that retrieval and word statistics got wrong; chance about 25 %"}

def question_of(row, where):
    """(question, choices, 0-based answer) of a row in either layout."""
    if "query" in row:  # llm-foundry: query, choices, gold
        question, choices = field(row, "query", where), texts(row, "choices", where)
        return question.removeprefix("Question: "), choices, choice(row, "gold", where, range(len(choices)))
    found = row.get("choices")
    if not isinstance(found, dict):  # the hub: question, choices {text, label}
        die(f"{where}: choices: expected texts with labels")
    labels = texts(found, "label", where)
    letter = choice(row, "answerKey", where, labels)
    return field(row, "question", where), texts(found, "text", where, len(labels)), labels.index(letter)

def main():
    args = flags(__doc__, __file__, "local parquet or JSONL files", nargs="+").parse_args()
    files, gots = {}, {}
    for name, path in pick(args.src, {name: f"*{name}*" for name in URLS}).items():
        got = gots[name] = get(path, URLS[name], SHA256[name], args.any_version)
        rows = []
        for line, row in read_rows(got):
            question, choices, answer = question_of(row, f"{got.name}:{line}")
            key = row.get("id") or f"arc-{name}-{line}"
            rows.append({"id": key, "context": f"Question: {question}\nAnswer:", "choices": choices,
                         "prompt": in_words(question, choices), "answer": answer})
        expect(len(rows), COUNTS[name], f"{got.name}: questions", args.any_version)
        suite = items(rows, f"arc_{name}", "choice", size=COUNTS[name], about=MEANS[name], **ABOUT)
        files[f"items-{name}.jsonl"] = suite
    save(args.out, files, gots, REVISION, LICENCE)

if __name__ == "__main__":
    main()
