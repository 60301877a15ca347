# /// script
# dependencies = ["pyarrow"]
# ///
"""SafeChain: 40,000 instructions of WildJailbreak with a safe thought and answer -> train.jsonl

Jiang et al. 2025, arXiv 2502.12025, hub: UWNSL/SafeChain. No licence is stated. GATED: accept the terms at
https://huggingface.co/datasets/UWNSL/SafeChain, fetch the file (124 MB) with your own account:

    hf download UWNSL/SafeChain --repo-type dataset --local-dir safechain
    uv run data/safechain/prepare.py --src safechain/data/train-00000-of-00001.parquet
    python data/safechain/prepare.py --src safechain.jsonl      # converted: no pyarrow needed

- `response` begins inside the thought: the leading <think> is not in it, because the prompt of R1's template
  ends in it. It stays so here. A template that does not open the thought needs it put back.
- Rows without </think> teach a model never to close a thought: they are left out, as empty ones are, and
  named in meta.json. Duplicates (but for case and spaces) are counted and stay.
- Second-hand sources: R1-Distill-Llama-70B wrote five responses, Llama-Guard passed all five, one was drawn.
  Safe means safe by that judge.
- No checksum and no revision was in public code: rows are counted, the checksum is recorded.
Row: {"id": "safechain-1", "prompt", "response", "label": WildJailbreak's type (vanilla_harmful, ..),
"category": "harmful" or "benign"}; numbered by row.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, field, flags, get, read_rows, save

FILE = "UWNSL/SafeChain data/train-*.parquet"
LICENCE, N = "none stated; gated: not to be passed on", 40000
LABELS = ["vanilla_harmful", "vanilla_benign", "adversarial_harmful", "adversarial_benign"]

def fault(row):
    """Why a row cannot be trained on, or None."""
    texts = row.get("instruction"), row.get("response")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "empty"
    thought, closed, answer = row["response"].rpartition("</think>")
    return "unclosed" if not closed else None if answer.strip() else "no answer"

def repeated(texts):
    """How many say again what an earlier one said, but for case and spaces."""
    return len(texts) - len({" ".join(text.split()).casefold() for text in texts})

def main():
    args = flags(__doc__, __file__, "the file, fetched with your own account").parse_args()
    if not args.src:
        die("gated: accept the terms at https://huggingface.co/datasets/UWNSL/SafeChain, fetch the parquet "
            "file with your account, then --src FILE")
    got, rows, dropped, strange = get(args.src, FILE), [], {}, 0
    for i, (line, row) in enumerate(read_rows(got, ["instruction", "label", "response"]), 1):
        label = field(row, "label", f"{got.name}:{line}")
        strange += label not in LABELS
        if why := fault(row):
            dropped.setdefault(why, []).append(f"safechain-{i}")
            continue
        rows.append({"id": f"safechain-{i}", "prompt": row["instruction"], "response": row["response"],
                     "label": label, "category": "harmful" if "harmful" in label else "benign"})
    total = len(rows) + sum(map(len, dropped.values()))
    expect(total, N, f"{got.name}: rows", args.any_version)
    expect(strange, 0, f"{got.name}: rows with a label that is no type of WildJailbreak", args.any_version)
    for why, ids in dropped.items():
        print(f"left out, {why}: {len(ids)}: {', '.join(ids[:5])}{', ..' * (len(ids) > 5)}")
    again = {key: repeated([row[key] for row in rows]) for key in ("prompt", "response")}
    print(f"said before: {again['prompt']} prompts, {again['response']} responses")
    save(args.out, {"train.jsonl": rows}, got, None, LICENCE, by="label", dropped=dropped, repeated=again)

if __name__ == "__main__":
    main()
