"""CantTalkAboutThis: 1,080 dialogues with distractors -> train.jsonl, test.jsonl (on or off topic)

Sreedhar et al. 2024, arXiv 2404.03820,
https://huggingface.co/datasets/nvidia/CantTalkAboutThis-Topic-Control-Dataset. Licence of the data:
CC-BY-4.0. Aegis 2.0 mixes topic following into a guard's training, so that the policy in the prompt is read.

    python data/canttalk/prepare.py     # download the pinned JSONL files, 22 MB; --src FOLDER: your copy

- A distractor makes two rows with the dialogue up to its bot turn as context: the distractor as the user's
  turn, off-topic, and the user turn that stands there, on-topic. At its end, only the first.
- A distractor that is empty, or whose bot turn is not in its dialogue, is left out and counted.
- train is synthetic (Mixtral), test has distractors by people. Rows of a dialogue share much of their
  context: resample dialogues (the number in the id), not rows.
- The set of this name with -NC has other training dialogues (by GPT-4) and a test file of this name.
- No checksum is published; the 1,080 dialogues of train are the paper's count, for test there is none.
Row: {"id": "canttalk-train-1-1-off", "system", "messages": ending with a user turn, "label": "on-topic" or
"off-topic", "domain", "scenario"}.
"""
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import choice, die, expect, field, flags, get, pick, read_rows, save

REVISION = "b015ae8902d8429ce32ebfed9f9935f891d10ed5"
URL = f"https://huggingface.co/datasets/nvidia/CantTalkAboutThis-Topic-Control-Dataset/resolve/{REVISION}/"
FILES = {"train": "canttalkaboutthis_topic_control_mixtral.jsonl",
         "test": "canttalkaboutthis_topic_control_human_test_set.jsonl"}
COUNTS = 1080
LICENCE = "CC-BY-4.0"

def objects(row, key, where):
    if not isinstance(row.get(key), list) or not all(isinstance(item, dict) for item in row[key]):
        die(f"{where}: {key}: expected a list of objects")
    return row[key]

def text(row, key, where):
    return row[key].strip() if isinstance(row.get(key), str) else die(f"{where}: {key}: expected a text")

def rows_of(row, where, key, gone):
    """Off-topic and on-topic rows of a dialogue. Texts are compared without outer spaces."""
    turns = [{"role": choice(turn, "role", where, ("user", "assistant", "system")),
              "content": text(turn, "content", where)} for turn in objects(row, "conversation", where)]
    turns = [turn for turn in turns if turn["role"] != "system" and turn["content"]]
    said = [turn["content"] if turn["role"] == "assistant" else None for turn in turns]
    about = {k: field(row, k, where) for k in ("domain", "scenario")}
    system = field(row, "system_instruction", where)
    for i, item in enumerate(objects(row, "distractors", where), 1):
        bot, off = text(item, "bot turn", where), text(item, "distractor", where)
        if not bot or not off or bot not in said:
            gone["bot turn not found" if bot and off else "empty"] += 1
            continue
        at = said.index(bot) + 1
        on = [turn["content"] for turn in turns[at:at + 1] if turn["role"] == "user"]
        for label, last in [("off", off), *(("on", asked) for asked in on)]:
            yield {"id": f"{key}-{i}-{label}", "system": system,
                   "messages": turns[:at] + [{"role": "user", "content": last}],
                   "label": f"{label}-topic"} | about

def main():
    args = flags(__doc__, __file__, "the folder with the JSONL files, or one file", nargs="+").parse_args()
    gots, files, dialogues, dropped = {}, {}, {}, {}
    for split, path in pick(args.src, FILES).items():
        got = gots[split] = get(path, URL + FILES[split])
        gone, found = Counter(), list(read_rows(got))
        files[f"{split}.jsonl"] = [made for n, (line, row) in enumerate(found, 1) for made in rows_of(
            row, f"{got.name}:{line}", f"canttalk-{split}-{n}", gone)]
        dialogues[split], dropped[split] = len(found), dict(gone)
    expect(dialogues.get("train", COUNTS), COUNTS, "dialogues of train", args.any_version)
    save(args.out, files, gots, REVISION, LICENCE, by="label", dialogues=dialogues, dropped=dropped)

if __name__ == "__main__":
    main()
