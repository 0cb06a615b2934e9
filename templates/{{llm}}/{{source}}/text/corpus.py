"""The documents of a corpus and which of them are held out, the same on every machine.

Streams them. Knows no tokens and drops nothing: an unusable document has its `problem` set.
"""

import difflib
import glob
import gzip
import hashlib
import itertools
import json
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import UserError
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

# What gzip, json and pyarrow raise for a truncated, damaged or foreign file.
UNREADABLE = (EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, zlib.error)

type SplitName = Literal["train", "heldout"]
type Piece = tuple[str, bytes, int, bytes]
"""Name, text, bytes on disk, and a key: pieces with equal keys are in the same split."""


class Document(NamedTuple):
    """One text."""

    name: str
    split: SplitName
    text: str
    disk_bytes: int  # its share of the file's size
    problem: str = ""  # "empty" or "not UTF-8"; text is "" then


def is_chosen(key: bytes, fraction: float) -> bool:
    """Whether the key's SHA-256 is in the lowest `fraction` of its range."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8]) < fraction * 2.0**64


def find_files(paths: tuple[str, ...]) -> dict[Path, str]:
    """Path -> name of all files behind files, folders and globs; no paths = Python's own source."""
    if paths:
        return {path: name for given in paths for path, name in _find(given).items()}
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    names = [name for name in names if not EXCLUDED & {*name.split("/")}]
    return {root / name: name for name in names if not name.startswith(GENERATED)}


def read_documents(config: TextConfig) -> Iterator[Document]:
    """Every document of the corpus, the unusable ones too. Texts are kept byte for byte."""
    files, name = find_files(config.paths), "the start"
    for path, file_name in files.items():
        try:
            for name, data, disk_bytes, key in _read(path, file_name, config, len(files) == 1):
                held = is_chosen(key, config.heldout_fraction)
                try:
                    text, problem = data.decode(), "" if data else "empty"
                except UnicodeDecodeError:
                    text, problem = "", "not UTF-8"
                yield Document(name, "heldout" if held else "train", text, disk_bytes, problem)
        except UNREADABLE as error:
            raise UserError(
                got=f"{path}: {type(error).__name__}: {error}, after {name}",
                expected=f'a whole file, with a text under "{config.text_field}" in each record',
                do="write the file again, or name the field with --data.text-field",
            ) from error


def _find(given: str) -> dict[Path, str]:
    path = Path(given).expanduser().absolute()
    inside = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES))
    files = inside or [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    files = [p for p in files if p.is_file()]
    strange = [p.name for p in files if not p.name.endswith(SUFFIXES)]
    if strange or not files:
        folder = path if path.is_dir() else path.parent
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, names, cutoff=0.4) or names[:3]
        raise UserError(
            got=f"data path {given!r}" + (f" with {strange[:3]}" if strange else ""),
            expected=f"a file, folder or glob of {' '.join(SUFFIXES)}",
            do=f"correct --data.paths; {folder} has {', '.join(near) or 'nothing'}",
        )
    return {p: p.relative_to(path).as_posix() if inside else p.name for p in files}


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
    with path.open("rb") as lines:
        pieces = iter(lambda: b"".join(lines.readlines(min(most, TEXT_PIECE_BYTES))), b"")
        first = next(pieces, b"")
        for number, data in enumerate(itertools.chain([first], pieces)):
            # The pieces of a file stay together where there are other files to hold out.
            yield f"{name}:{number}", data, len(data), data if lone else first


def _read_jsonl(path: Path, name: str, field: str) -> Iterator[Piece]:
    with path.open("rb") as raw:
        lines: Any = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw
        before = 0
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    data = str.encode(json.loads(line)[field])
                except UnicodeError:  # not UTF-8, or an escaped half of a surrogate pair
                    data = b"\xff"
                done = raw.tell()  # in the file, not in what it decompresses to
                yield f"{name}:{number}", data, done - before, data
                before = done


def _read_parquet(path: Path, name: str, field: str) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        share, number = path.stat().st_size // max(table.metadata.num_rows, 1), itertools.count()
        for batch in table.iter_batches(batch_size=256, columns=[field]):
            for data in batch[field].cast(pa.large_binary()).to_pylist():  # str would need UTF-8
                yield f"{name}:{next(number)}", data or b"", share, data or b""
