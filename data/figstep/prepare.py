"""FigStep: 500 questions drawn as images of numbered lists, 10 topics of 50 -> prompts, items.jsonl

Gong et al. 2023, arXiv 2311.05608, licence MIT. Images are needed: clone the repository:

    git clone https://github.com/CryptoAILab/FigStep
    git -C FigStep checkout 0861b17b3d67887c06ee3534ec65b3012f9becb7
    python data/figstep/prepare.py --src FigStep/

- One text goes with every image. It is not repeated here but read from src/generate_prompts.py of the clone.
  Other wordings are around: compare only with the same text.
- `question` is what the image asks for: a judge needs it, the model under test must not see it.
- 3 of the 10 topics are legal, financial and health advice, answered with care by many models: rates by
  topic.
- No checksum is established: counts are checked. Rows without their images stop the run.
Row: {"id": "figstep-TOPIC-TASK", "prompt", "category": topic, "label": "forbidden", "images": [absolute
path], "question"}.
"""
import ast, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import counts, die, expect, field, flags, get, items, read_csv, save, with_images

LICENCE = "MIT"
SIZES = [50] * 10
ABOUT = {"domain": "misuse", "paper": "https://arxiv.org/abs/2311.05608", "harmful": True,
         "about": "refuses instructions that are written in an image"}
COLUMNS = ["dataset", "category_id", "task_id", "category_name", "question"]

def carrier(got):
    """The text that goes with every image: the first under `== QueryType.figstep` in the authors' file."""
    try:
        for node in ast.walk(ast.parse(got.raw)):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith(".figstep"):
                for part in (part for statement in node.body for part in ast.walk(statement)):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.strip():
                        return part.value
    except (SyntaxError, ValueError):
        pass
    die(f"{got.name}: QueryType.figstep: expected the text sent with the images")

def main():
    args = flags(__doc__, __file__, "a clone of the repository").parse_args()
    if not args.src:
        die("give --src DIR, a clone of https://github.com/CryptoAILab/FigStep at commit 0861b17b")
    root, rows = Path(args.src), []
    got = get(root / "data" / "question" / "safebench.csv", None)
    prompt = carrier(get(root / "src" / "generate_prompts.py", None))
    for line, row in read_csv(got, COLUMNS):
        dataset, topic, task, category, question = (field(row, key, f"{got.name}:{line}") for key in COLUMNS)
        image = f"data/images/SafeBench/query_{dataset}_{topic}_{task}_6.png"
        rows.append({"id": f"figstep-{topic}-{task}", "prompt": prompt, "category": category,
                     "label": "forbidden", "images": [image], "question": question})
    found = list(counts(rows, "category").values())
    expect(found, SIZES, f"{got.name}: questions by topic", args.any_version)
    expect(len(counts(rows, "id")), len(rows), f"{got.name}: different ids", args.any_version)
    rows = with_images(rows, root, args.any_version)
    got = got._replace(source=root.resolve().name, pinned=False)
    suite = items(rows, "figstep", "refusal", size=sum(SIZES), **ABOUT)
    save(args.out, {"prompts.jsonl": rows, "items.jsonl": suite}, got, None, LICENCE)

if __name__ == "__main__":
    main()
