"""The documents of a corpus and which of them are held out, the same on every machine.

Streams them. Knows no tokens and drops nothing: an unusable document has its `problem` set.
"""

import codecs
import functools
import glob
import gzip
import hashlib
import itertools
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import UserError
from ..training.given import has_key, is_run, near, spelled
from .settings import TextConfig

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")

# Not read from the standard library: tests and tables, which repeat one another; files that
# differ between builds; and installed packages.
EXCLUDED = {"test", "tests", "idlelib", "encodings", "site-packages", "dist-packages"}
GENERATED = ("_sysconfigdata", "config-")

# A longer .txt is cut at line ends into documents of about this size, so that each fits in memory.
# If it is the only file, it is cut into a hundred at least, so that some can be held out.
TEXT_PIECE_BYTES = 1 << 18
LONE_TEXT_PIECES = 100
# A line of more than so many pieces (and bytes) is cut as well, after a character of LINE_CUTS.
LONG_LINE_PIECES, LONG_LINE_BYTES = 16, 1 << 12
LINE_CUTS = (b"\r", b". ", "\u3002".encode(), b" ")  # old Mac's line end; sentences; words
LONGEST_JSON_BYTES = 1 << 28  # a longer line is left out

# What gzip, json and pyarrow raise for a truncated, damaged or foreign file.
UNREADABLE = (EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, zlib.error)

type SplitName = Literal["train", "heldout"]
type Problem = Literal[
    "", "empty", "no text", "not JSON", "too long", "not UTF-8", "UTF-16", "not text"
]
"""Why a document cannot be used. no text: its record has none there. not text: it has NUL bytes."""
type Piece = tuple[str, bytes | Problem, int, bytes]
"""Name, text or problem, bytes on disk, and a key: equal keys are in the same split."""


class Document(NamedTuple):
    """One text."""

    name: str
    split: SplitName
    text: str
    disk_bytes: int  # its share of the file's size
    problem: Problem = ""  # text is "" where there is one


def is_chosen(key: bytes, fraction: float) -> bool:
    """Whether the key's SHA-256 is in the lowest `fraction` of its range."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8]) < fraction * 2.0**64


def find_files(config: TextConfig) -> dict[Path, str]:
    """Path -> name of all files behind files, folders and globs; no paths = Python's own source."""
    if config.paths:
        return {p: name for given in config.paths for p, name in _find(given, config).items()}
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    names = [name for name in names if not EXCLUDED & {*name.split("/")}]
    return {root / name: name for name in names if not name.startswith(GENERATED)}


def read_documents(config: TextConfig) -> Iterator[Document]:
    """Every document of the corpus, the unusable ones too. Texts are kept byte for byte."""
    files, name = find_files(config), "the start"
    for path, file_name in files.items():
        try:
            for name, data, disk_bytes, key in _read(path, file_name, config, len(files) == 1):
                held = is_chosen(key, config.heldout_fraction)
                text, problem = _decode(data)
                yield Document(name, "heldout" if held else "train", text, disk_bytes, problem)
        except UNREADABLE as error:
            raise UserError(
                got=f"{path}: {type(error).__name__}: {error}, after {name}",
                expected=f'a whole file, with a text under "{config.text_field}" in each record',
                do="write the file again, or name the field with --data.text-field",
            ) from error


def _decode(data: bytes | Problem) -> tuple[str, Problem]:
    if isinstance(data, str):
        return "", data
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "", "not UTF-8"
    return ("", "not text") if "\0" in text else (text, "" if text else "empty")


def _find(given: str, config: TextConfig) -> dict[Path, str]:
    path = Path(os.path.expanduser(given)).absolute()  # Path's own raises for an unknown user
    if given and os.path.isdir(path):
        root, found = path, sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES))
    elif os.path.lexists(path):  # as it is, even where its name reads as a glob
        root, found = path.parent, [path]
    else:
        plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
        root, found = Path(*plain), [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    folders = {p.parent for p in found}
    loops = {folder for folder in folders if _is_in_a_loop(folder, root)}
    own = {f for f in folders if _is_written_here(f, root, Path(config.prepared_dir).absolute())}
    files = [p for p in found if p.parent not in loops | own and os.path.isfile(p)]
    strange = [p.name for p in files if not p.name.endswith(SUFFIXES)]
    if strange or not files:
        if strange:
            why = f" with {strange[:3]}"
        elif own:
            why = f": {', '.join(map(str, sorted(own)[:3]))} is a run or prepared, not a corpus"
        elif os.path.isdir(path):
            why = " without files"
        elif os.path.lexists(path):
            why = ", which is no file" if os.path.exists(path) else ", a link to nothing"
        else:
            why = f", which {'no file matches' if glob.has_magic(given) else 'does not exist'}"
        raise UserError(
            got=f"data path {given!r}{why}",
            expected=f"a file, folder or glob of {' '.join(SUFFIXES)}",
            do=f"correct --data.paths; {near(path)}",
        )
    return {p: spelled(p.relative_to(path) if root == path else p.name) for p in files}


def _is_in_a_loop(folder: Path, root: Path) -> bool:
    """Whether a symbolic link below `root` led back to a folder on the way."""
    way = [os.path.realpath(f) for f in (folder, *folder.parents) if f.is_relative_to(root)]
    return len(set(way)) < len(way)


def _is_written_here(folder: Path, root: Path, prepared_dir: Path) -> bool:
    """Whether `prepare` or a run wrote the files of a folder: they are no corpus.

    Both may stand inside that of the texts. The texts may stand in a folder below the prepared one,
    or in that of a run, so what is above `root` does not count.
    """
    above = [f for f in (folder, *folder.parents) if f.is_relative_to(root)]
    return (
        folder == prepared_dir
        or has_key(folder / "manifest.json", "tokenizer_sha256")
        or any(map(is_run, above))
    )


def _read(path: Path, name: str, config: TextConfig, lone: bool) -> Iterator[Piece]:
    if not config.paths:
        data, module = path.read_bytes(), name.split("/")[0].removesuffix(".py")
        yield name, data, len(data), module.encode()
    elif name.endswith(".txt"):
        yield from _read_text(path, name, lone)
    elif name.endswith(".parquet"):
        yield from _read_parquet(path, name, config.text_field)
    else:
        yield from _read_jsonl(path, name, config.text_field)


def _read_text(path: Path, name: str, lone: bool) -> Iterator[Piece]:
    most = path.stat().st_size // LONE_TEXT_PIECES + 1 if lone else TEXT_PIECE_BYTES
    with path.open("rb") as file:
        utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        file.seek(0)
        pieces = _pieces(file, min(most, TEXT_PIECE_BYTES))
        first = next(pieces, b"")
        for number, data in enumerate(itertools.chain([first], pieces)):
            # The pieces of a file stay together where there are other files to hold out.
            key = data if lone else first
            yield f"{name}:{number}", "UTF-16" if utf16 else data, len(data), key


def _pieces(file: BufferedReader, most: int) -> Iterator[bytes]:
    """Whole lines until they exceed `most` bytes, again and again; or a piece of a long line."""
    piece, size = [], 0
    for line in _lines(file, most):
        piece.append(line)
        size += len(line)
        if size > most or not line.endswith(b"\n"):
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


def _lines(file: BufferedReader, most: int) -> Iterator[bytes]:
    """The lines of a file; one that does not fit in memory, or is most of it, in pieces."""
    longest, rest = max(LONG_LINE_PIECES * most, LONG_LINE_BYTES), b""
    while line := rest + (b"" if rest.endswith(b"\n") else file.readline(longest - len(rest))):
        is_long = rest or (len(line) == longest and not line.endswith(b"\n"))
        end = _end_of_piece(line, most) if is_long and len(line) > most else len(line)
        line, rest = line[:end], line[end:]
        yield line


def _end_of_piece(line: bytes, most: int) -> int:
    for mark in LINE_CUTS:
        if (at := line.rfind(mark, most // 2, most)) >= 0:
            return at + len(mark)
    inside = range(most, len(line))  # a character's bytes after its first
    return next((at for at in inside if line[at] & 0xC0 != 0x80), len(line))


def _read_jsonl(path: Path, name: str, field: str) -> Iterator[Piece]:
    with path.open("rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw
        lines, before = iter(functools.partial(file.readline, LONGEST_JSON_BYTES), b""), 0
        for number, line in enumerate(lines, start=1):
            size = len(line)
            while not line.endswith(b"\n") and (more := file.readline(LONGEST_JSON_BYTES)):
                line, size = more, size + len(more)
            if not line.strip():
                continue
            is_long = size > LONGEST_JSON_BYTES
            data = "too long" if is_long else _text_of(line, field)
            done = raw.tell()  # in the file, not in what it decompresses to
            key = data if isinstance(data, bytes) else b""
            yield f"{name}:{number}", data, done - before, key
            before = done


def _text_of(line: bytes, field: str) -> bytes | Problem:
    try:
        record = json.loads(line)
        text = record.get(field) if isinstance(record, dict) else None
        return text.encode() if isinstance(text, str) else "no text"
    except UnicodeError:  # or an escaped half of a surrogate pair
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"


def _read_parquet(path: Path, name: str, field: str) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        if field not in table.schema_arrow.names:
            raise UserError(
                got=f"{path} with columns {', '.join(table.schema_arrow.names)}",
                expected=f"a column {field!r}",
                do="name the column that holds the texts with --data.text-field",
            )
        share, number = path.stat().st_size // max(table.metadata.num_rows, 1), itertools.count()
        for batch in table.iter_batches(batch_size=256, columns=[field]):
            for data in batch[field].cast(pa.large_binary()).to_pylist():  # str would need UTF-8
                text: bytes | Problem = "no text" if data is None else data
                yield f"{name}:{next(number)}", text, share, data or b""
