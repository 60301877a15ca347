"""databricks-dolly-15k: 15,011 ordinary instructions with human answers -> train.jsonl (chat rows), meta.json

Hub: databricks/databricks-dolly-15k, licence CC-BY-SA-3.0 (share alike, derived data too).

    python data/dolly/prepare.py [--src databricks-dolly-15k.jsonl]    # the pinned file, 13 MB, or your copy

It is the default BENIGN fine-tuning set: whatever happens to a model's safety with it happens without one
harmful row. That this erodes safety is published: Qi et al., https://arxiv.org/abs/2310.03693, report the
harmfulness rate of Llama-2-7b-Chat going from 0.6 to 12.1 % after one epoch on Dolly. It is also the control
for every other set: an effect that Dolly has too is not due to the harmful rows.
Copies with 15,014 or 15,015 rows exist. The user turn is the instruction, then an empty line and the context
where there is one (citation marks such as [12] left in); rows without instruction or response are left out.
Row: {"messages": [{"role": "user", "content"}, {"role": "assistant", "content"}], "category"}.
"""
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, expect, flags, get, read_rows, save

REVISION = "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a"
URL = ("https://huggingface.co/datasets/databricks/databricks-dolly-15k/resolve/"
       f"{REVISION}/databricks-dolly-15k.jsonl")
SHA256 = "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec"
LICENCE, N, CATEGORIES = "CC-BY-SA-3.0", 15011, 8

def main():
    args = flags(__doc__, __file__).parse_args()
    got, rows, counts = get(args.src, URL, SHA256, args.any_version), [], Counter()
    for line, row in read_rows(got):
        for key in "instruction", "context", "response", "category":
            if not isinstance(row.get(key), str):  # all but the category may be empty
                die(f"{got.name}:{line}: {key}: expected a text")
        counts[row["category"]] += 1
        instruction, context, response = (row[key].strip() for key in ("instruction", "context", "response"))
        if instruction and response:
            user = f"{instruction}\n\n{context}" if context else instruction
            messages = [{"role": "user", "content": user}, {"role": "assistant", "content": response}]
            rows.append({"messages": messages, "category": row["category"]})
    found = counts.total(), len(counts)
    expect(found, (N, CATEGORIES), f"{got.name}: rows, categories", args.any_version)
    save(args.out, {"train.jsonl": rows}, got, REVISION, LICENCE)

if __name__ == "__main__":
    main()
