# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "accelerate", "peft", "matplotlib", "jinja2", "pillow"]
# ///
"""
Samples a second of mis_finetune.py's training step against the same step of transformers' Trainer.

    python bench/mis.py                          # the miniature's model on this CPU, about 4 minutes
    python bench/mis.py --model DIR --data ROWS --images DIR --max-patches 4 --device cuda --batch 4

    ours     mis_finetune.tune itself: features of the frozen tower from disk, rows packed
    trainer  transformers' Trainer and peft: in each step images are opened, cut and seen, and rows padded

The same rows, weights, start of A (rank 32 on all linears of the language model, the projector whole) and
AdamW; so in fp32 the loss and the gradient norm of the first step must agree, which is checked before a
number is printed. Then each side in the faster of fp32 and bf16 (Trainer's is autocast), by turns; a ratio
is taken inside each pair. Features are computed once, before the clock runs, and said apart.
"""
import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import mis_finetune as m  # before torch, for its allocator settings
import peft
import torch
import transformers

def parse_args():
    p = argparse.ArgumentParser(description="a training step of mis_finetune.py and of transformers' Trainer")
    add = p.add_argument
    add("--model", help="folder of a LLaVA or InternVL; default: the miniature's, made here")
    add("--data", default=str(ROOT / "data/proxy_pairs/train.jsonl"), help="rows to train on")
    add("--images", help="folder of the images; default: that of the file")
    add("--max-patches", type=int, default=1, help="tiles of an image")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--batch", type=int, default=8, help="rows of a step")
    add("--steps", type=int, default=4, help="of a turn; the first is not timed")
    add("--pairs", type=int, default=5, help="timed turns of each side")
    a = p.parse_args()
    if min(a.batch, a.pairs, a.max_patches) < 1 or a.steps < 2:
        p.error("--batch, --pairs and --max-patches are at least 1, --steps 2")
    return a

def flags(a, folder, dtype):
    line = ["--out", folder, "--device", a.device, "--dtype", dtype, "--batch", a.batch, "--epochs", 1,
            "--max-patches", a.max_patches, "--data", a.data]
    line += ["--model", a.model] if a.model else []
    return m.parse_args([*map(str, line), *(["--images", a.images] if a.images else [])])

def ours(a, flags, source, rows, folder):
    """-> docs, the start of A, function that makes a turn: [(seconds, loss, gradient norm) of each step]"""
    model, tok = m.load(flags, source)
    t0 = time.perf_counter()
    docs = m.encode_rows(model, tok, rows, flags)
    seen = len({name for row in rows for name in row["images"]})
    print(f"ours: {time.perf_counter() - t0:.1f} s for the features of {seen} images and the ids, once")
    begin = {name: p.detach().clone() for name, p in m.adapter(model).items()}

    def turn():
        with tempfile.TemporaryDirectory(dir=folder) as kept:
            m.tune(model, docs, m.BOTH, flags, Path(kept))
            rows = [m.json.loads(line) for line in (Path(kept) / "log.jsonl").read_text().splitlines()]
        return [(row["seconds"], row["loss"], row["grad_norm"]) for row in rows]
    return docs, model, begin, turn

def trainer(a, flags, source, docs, images_of, begin, folder):
    """-> function that makes a turn, the same rows in the same order"""
    order = m.np.random.default_rng([flags.seed, 0]).permutation(len(docs))
    model = transformers.AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    linears = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=flags.rank, lora_alpha=2 * flags.rank, target_modules=linears,
        modules_to_save=["multi_modal_projector"]))
    for name, p in model.named_parameters():
        if ".lora_" in name:
            p.data.copy_(begin[name.replace(".default", "")])
    eyes = m.image_processor(source)
    tiles = {"crop_to_patches": a.max_patches > 1, "max_patches": a.max_patches}
    tiles = tiles if hasattr(eyes, "crop_to_patches") else {}

    def pad(rows, value):
        longest = max(map(len, rows))
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    def collate(batch):
        images = [m.open_image(name) for d in batch for name in images_of[d.at]]
        x = eyes(images, return_tensors="pt", input_data_format="channels_last", **tiles)
        labels = [[i if w else -100 for i, w in zip(d.ids, d.weights)] for d in batch]
        ids, mask = [d.ids for d in batch], [[1] * len(d.ids) for d in batch]
        return {"input_ids": pad(ids, 0), "labels": pad(labels, -100), "attention_mask": pad(mask, 0),
                "pixel_values": x["pixel_values"]}

    class Clock(transformers.TrainerCallback):
        def __init__(self):
            self.ends, self.rows = [time.perf_counter()], []

        def on_step_end(self, *args, **kwargs):
            self.ends.append(time.perf_counter())

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "grad_norm" in logs:
                self.rows.append((self.ends[-1] - self.ends[-2], logs["loss"], float(logs["grad_norm"])))

    def turn():
        clock = Clock()
        args = transformers.TrainingArguments(
            folder, per_device_train_batch_size=a.batch, max_steps=a.steps, logging_steps=1, report_to=[],
            bf16=flags.dtype == "bf16", save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
            use_cpu=a.device == "cpu", learning_rate=flags.lr, weight_decay=0.0,
            dataloader_pin_memory=False, train_sampling_strategy="sequential")
        transformers.Trainer(model, args, train_dataset=[docs[j] for j in order], data_collator=collate,
                             callbacks=[clock]).train()
        return clock.rows
    return turn

def main():
    a = parse_args()
    print(f"{torch.get_num_threads()} threads, load average at start {os.getloadavg()[0]:.2f}; torch "
          f"{torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        exact, fast = flags(a, folder, "fp32"), flags(a, folder, m.parse_args([]).dtype)
        source = Path(a.model) if a.model else m.make_vlm(exact, Path(folder) / "start")
        rows = m.labelled(m.read_rows(a.data, a.images and Path(a.images)), "reasoning")
        rows = m.drawn(rows, a.steps * a.batch, m.np.random.default_rng(0))
        docs, model, begin, turn = ours(a, exact, source, rows, folder)
        one = turn()
        images_of = model.images_of
        two = trainer(a, exact, source, docs, images_of, begin, folder)()
        gaps = abs(one[0][1] - two[0][1]), abs(one[0][2] / two[0][2] - 1)
        print(f"first step in fp32: loss {one[0][1]:.4f} and {two[0][1]:.4f}, gradient norms differ by "
              f"{gaps[1]:.1e}")
        if not max(gaps) < 2e-3:  # Trainer rounds its logs
            sys.exit("mis: the sides do not compute the same step")
        sides = {"ours fp32": turn, "trainer fp32": trainer(a, exact, source, docs, images_of, begin, folder)}
        if fast.dtype != "fp32":
            sides["ours bf16"] = ours(a, fast, source, rows, folder)[3]
            sides["trainer bf16"] = trainer(a, fast, source, docs, images_of, begin, folder)
        seconds = {name: [] for name in sides}
        for k in range(a.pairs + 1):
            for name, side in sides.items():
                found = median(row[0] for row in side()[1:])
                seconds[name] += [found] * bool(k)  # a first turn compiles and allocates
            print(f"turn {k}/{a.pairs}", {name: round(s[-1], 2) for name, s in seconds.items() if s})
    best = {who: min((name for name in sides if name.startswith(who)), key=lambda name: median(seconds[name]))
            for who in ("ours", "trainer")}
    ratios = [theirs / mine for mine, theirs in zip(seconds[best["ours"]], seconds[best["trainer"]])]
    for name, s in seconds.items():
        print(f"{name:14}{a.batch / median(s):8.2f} samples/s" + "  the faster" * (name in best.values()))
    print(f"ours/trainer {median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}] of {a.pairs} pairs")
    print(f"command: python bench/mis.py {' '.join(sys.argv[1:])}".rstrip())

if __name__ == "__main__":
    main()
