"""compares the ENGINE section of every script with lora_undo.py's: the same lines, to the letter.

    python tests/engine.py            # exit 1 with the first line that differs
    python tests/engine.py --write    # copies lora_undo.py's section into the others
"""
import os
import sys
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "# ==== ENGINE:", "# ==== END OF THE ENGINE ===="


def split(path):
    """-> lines before the engine, its lines with both banners, lines after; no engine: all lines, [], []."""
    lines = path.read_text(encoding="utf-8").split("\n")
    first = [i for i, line in enumerate(lines) if line.startswith(BEGIN)]
    last = [i for i, line in enumerate(lines) if line.startswith(END)]
    if not first and not last:
        return lines, [], []
    if len(first) != 1 or len(last) != 1 or first > last:
        sys.exit(f"{path.name}: expected one line {BEGIN!r} and one {END!r} after it")
    return lines[:first[0]], lines[first[0]:last[0] + 1], lines[last[0] + 1:]


def main(root=ROOT, write=False):
    engine = split(root / "lora_undo.py")[1] or sys.exit("lora_undo.py: no engine")
    different = 0
    for path in sorted(root.glob("*.py")):
        before, own, after = split(path)
        if not own or own == engine:
            continue
        if write:
            new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            new.write_text("\n".join(before + engine + after), encoding="utf-8")
            os.replace(new, path)
            print(f"{path.name}: written")
            continue
        at = next(i for i, (a, b) in enumerate(zip_longest(own, engine)) if a != b)
        mine, want = (lines[at] if at < len(lines) else "(nothing)" for lines in (own, engine))
        print(f"{path.name}:{len(before) + at + 1}: {mine.strip()}\nlora_undo.py has: {want.strip()}")
        different += 1
    return 1 if different else 0


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--write"]):
        sys.exit(__doc__)
    sys.exit(main(write=bool(sys.argv[1:])))
