"""ToxicChat 0124: 5,082 + 5,083 user prompts -> train.jsonl, test.jsonl, *_human.jsonl of each

Lin et al. 2023, arXiv 2310.17389, https://huggingface.co/datasets/lmsys/toxic-chat. Licence of the data:
CC-BY-NC-4.0 (non-commercial).

    python data/toxicchat/prepare.py               # download the two pinned CSV files, 14 MB; --src FOLDER

- TWO CONVENTIONS THAT DO NOT COMPARE. The full split (test.jsonl) takes rows that no person read, because
  moderation scores were low, for not toxic; test_human.jsonl is the part with human annotation (safety-eval's
  default: 2,853 rows, 362 toxic). It has twice the share of toxic rows: F1 and AUPRC are higher. Name the
  file.
- unsafe = toxicity 1. jailbreaking is a label of its own, kept as a field and not part of it.
- It is about the user's input: the model's output is not judged and not kept.
- Use 0124: the earlier release 1123 has other labels.
Row: {"id": "toxicchat-test-1", "messages", "prompt", "response": null, "prompt_label", "response_label":
null, "categories": [], "needs_caution": false, "kind": "human" or "auto", "labels": [], "jailbreaking"}.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, counts, expect, flags, get, pick, read_csv, save

REVISION = "29df8e4dba60e1f4af4b4075c0705c5b313548a8"
URL = f"https://huggingface.co/datasets/lmsys/toxic-chat/resolve/{REVISION}/data/0124/"
FILES = {"train": "toxic-chat_annotation_train.csv", "test": "toxic-chat_annotation_test.csv"}
SHA256 = {"train": "702eb9b7cac96c3c35e28b9b95855a71f26f21afba8666f9d243f1fa469e81ed",
          "test": "3c2e49889626f7738dca0a29bface0ba0a0595b2ffdd17f0e02f19df7c3c4c9b"}
LICENCE = "CC-BY-NC-4.0"
COUNTS = {"train": 5082, "test": 5083}
HUMAN_TEST = {"safe": 2491, "unsafe": 362}  # safety-eval's 2,853 rows
COLUMNS = ["user_input", "human_annotation", "toxicity", "jailbreaking"]

def row_of(row, where, key):
    human = choice(row, "human_annotation", where, ("True", "False"))
    toxic, jailbreak = choice(row, "toxicity", where, "01"), choice(row, "jailbreaking", where, "01")
    text = row["user_input"]
    return {"id": key, "messages": [{"role": "user", "content": text}], "prompt": text, "response": None,
            "prompt_label": "unsafe" if toxic == "1" else "safe", "response_label": None, "categories": [],
            "needs_caution": False, "kind": "human" if human == "True" else "auto", "labels": [],
            "jailbreaking": int(jailbreak)}

def main():
    args = flags(__doc__, __file__, "the folder with the two CSV files, or one file", nargs="+").parse_args()
    gots, files, empty = {}, {}, {}
    for split, path in pick(args.src, FILES).items():
        got = gots[split] = get(path, URL + FILES[split], SHA256[split], args.any_version)
        found = [row_of(row, f"{got.name}:{line}", f"toxicchat-{split}-{n}")
                 for n, (line, row) in enumerate(read_csv(got, COLUMNS), 1)]
        expect(len(found), COUNTS[split], f"{got.name}: rows", args.any_version)
        rows = [row for row in found if row["prompt"].strip()]
        human = [row for row in rows if row["kind"] == "human"]
        if split == "test":
            expect(counts(human, "prompt_label"), HUMAN_TEST, f"{got.name}: human rows", args.any_version)
        files |= {f"{split}.jsonl": rows, f"{split}_human.jsonl": human}
        empty[split] = len(found) - len(rows)
    save(args.out, files, gots, REVISION, LICENCE, by="prompt_label", empty=empty)

if __name__ == "__main__":
    main()
