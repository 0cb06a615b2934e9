"""Token shards on disk: their manifest, its verification, and reading them.

A shard is `*.tokens.npy` (documents one after the other, each begun by BOS; uint16 or uint32) and
`*.starts.npy` (int64 (2, documents): first token and first text byte of each); held-out ones have
their text too, in `*.txt`. Writes nothing; prepare.py does.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from ..records import store
from ..records.mirror import local
from ..training.given import Counts
from ..training.prepared import MANIFEST, check_complete, check_files, map_array, parse
from .corpus import SplitName
from .tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer

FORMAT = 1  # of shards and manifest


@dataclass(frozen=True)
class Shard:
    """A run of documents of one split, in three files at most."""

    split: SplitName
    tokens: int  # with the BOS of each document
    documents: int
    text_bytes: int
    source_sha256: str  # of names and texts
    files: dict[str, str]  # name -> SHA-256, in the order tokens, starts, text
    lossless: bool = True  # decoding gives the texts back; tried on held-out ones


@dataclass(frozen=True)
class Manifest:
    """What `prepare` was asked for and what it made."""

    request: dict[str, Any]
    tokenizer_sha256: str
    vocab_size: int
    bos_id: int
    dtype: str  # of tokens
    python: str  # version; its library is the default corpus
    corpus_sha256: str = ""  # of names and texts
    complete: bool = False
    unusable: Counts = field(default_factory=dict)  # documents that were left out
    shards: tuple[Shard, ...] = ()
    format: int = FORMAT

    def total(self, what: Literal["tokens", "documents", "text_bytes"], split: SplitName) -> int:
        """Sum over a split."""
        return sum(getattr(shard, what) for shard in self.shards if shard.split == split)


@dataclass(frozen=True)
class Split:
    """The token stream of one split, memory-mapped shard by shard."""

    folder: Path
    shards: tuple[Shard, ...]
    shard_starts: Int[np.ndarray, " shards_end"]  # first token of each, then the end
    document_starts: Int[np.ndarray, " documents_end"]
    text_bytes: int
    bos_id: int

    @property
    def lossless(self) -> bool:
        """Whether decoding returns every byte, so that bits per byte are defined."""
        return all(shard.lossless for shard in self.shards)

    def read(self, start: int, stop: int, length: int) -> Int[np.ndarray, " {length}"]:
        """Tokens [start, stop) as int32, padded with -1. Safe from any thread."""
        out, done = np.full(length, -1, np.int32), 0
        shard = int(np.searchsorted(self.shard_starts, start, "right")) - 1
        while start + done < stop:
            base = int(self.shard_starts[shard])
            name, sha256 = next(iter(self.shards[shard].files.items()))
            part = map_array(self.folder / name, sha256)[start + done - base : stop - base]
            out[done : done + len(part)] = part
            done, shard = done + len(part), shard + 1
        return out

    def texts(self) -> Iterator[bytes]:
        """The documents as they were read, for compressors to compare with; held-out only."""
        for shard in self.shards:
            _, starts, text = ((self.folder / name) for name in shard.files)
            data = text.read_bytes()
            ends = [*np.load(starts)[1], len(data)]
            yield from (data[start:end] for start, end in itertools.pairwise(ends))


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a prepared folder, complete or not."""

    def make(plain: dict[str, Any]) -> Manifest:
        return Manifest(**plain | {"shards": tuple(Shard(**shard) for shard in plain["shards"])})

    return parse(folder, FORMAT, make)


def open_split(folder: str | Path, split: SplitName) -> Split:
    """Memory-map a split, once the SHA-256 of each file is that of the manifest."""
    folder, manifest = local(str(folder)), read_manifest(folder)
    check_complete(folder, manifest, len(manifest.shards))
    shards = tuple(shard for shard in manifest.shards if shard.split == split)
    files = {folder / name: sha256 for shard in shards for name, sha256 in shard.files.items()}
    check_files(files)
    ends = np.cumsum([shard.tokens for shard in shards])
    starts = [np.load(path)[0] for path in files if path.name.endswith(".starts.npy")]
    starts = [of_shard + first for of_shard, first in zip(starts, [0, *ends[:-1]], strict=True)]
    return Split(
        folder=folder,
        shards=shards,
        shard_starts=np.array([0, *ends]),
        document_starts=np.concatenate([*starts, ends[-1:]]),
        text_bytes=manifest.total("text_bytes", split),
        bos_id=manifest.bos_id,
    )


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that made the shards."""
    sha256, path = read_manifest(folder).tokenizer_sha256, local(str(folder)) / "tokenizer.json"
    if sha256 == ByteTokenizer.sha256:
        return ByteTokenizer()
    check_files({path: sha256})
    return JsonTokenizer(path)


def tokenizer_files(folder: str | Path) -> dict[str, bytes]:
    """Name -> content of what `open_tokenizer` reads: a prepared folder without its shards."""
    manifest = replace(read_manifest(folder), complete=False, shards=())
    files = {MANIFEST: json.dumps(asdict(manifest), indent=1).encode()}
    if store.exists(path := local(str(folder)) / "tokenizer.json"):
        files[path.name] = store.read(path)
    return files
