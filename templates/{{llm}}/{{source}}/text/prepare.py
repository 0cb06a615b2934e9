"""Corpus -> token shards, streamed; a killed preparation resumes.

A file is written under another name, then renamed, and counts once the manifest names it.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from ..errors import UserError
from ..records import store
from ..records.mirror import local
from ..training.given import Counts, tell_left_out
from ..training.prepared import MANIFEST, prepare_once, put, write_manifest
from .corpus import Document, SplitName, find_files, is_chosen
from .settings import TextConfig
from .shards import Manifest, Shard, open_tokenizer, read_manifest
from .tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer, train_bpe
from .usable import check_usable, read_usable

log = logging.getLogger(__name__)

SHARD_BYTES = 1 << 27  # of text; a few times as much is in memory
BATCH_DOCUMENTS = 64  # that the tokenizer's threads get at once
BPE_BYTES = 1 << 30  # of a larger corpus, a sample of this size trains the BPE, chosen by hash

type Advance = Callable[[int], None]
"""Takes the number of corpus bytes (on disk) processed since the last call."""


def prepare(config: TextConfig, *, show: bool = True) -> Manifest:
    """Tokenize the corpus into `prepared_dir`, or return at once when that is done already.

    UserError when the folder holds another preparation, a split would be empty, or more documents
    than `max_unusable_fraction` cannot be used.
    """
    request, missing = _request(config)

    def make(found: Manifest | None) -> Manifest:
        return _prepare(config, request, found, show)

    return prepare_once(config.prepared_dir, request, missing, read_manifest, make)


def _prepare(
    config: TextConfig, request: dict[str, Any], manifest: Manifest | None, show: bool
) -> Manifest:
    folder = local(config.prepared_dir)
    corpus_bytes = sum(path.stat().st_size for path in find_files(config))
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, disable=not show) as progress:

        def begin(description: str) -> Advance:
            task = progress.add_task(description, total=corpus_bytes)
            return functools.partial(progress.advance, task)

        if manifest:
            tokenizer = open_tokenizer(folder)
        else:
            tokenizer = _make_tokenizer(config, BPE_BYTES / max(corpus_bytes, 1), begin)
            manifest = Manifest(
                request=request,
                tokenizer_sha256=tokenizer.sha256,
                vocab_size=tokenizer.vocab_size,
                bos_id=tokenizer.bos_id,
                dtype="uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
                python=platform.python_version(),
            )
            write_manifest(folder, manifest)
        return _write_shards(config, manifest, tokenizer, begin("tokenize"))


def describe(manifest: Manifest) -> str:
    """What was prepared and what was left out, in a few lines."""
    lines = [
        f"{split}: {manifest.total('documents', split):,} documents, "
        f"{manifest.total('text_bytes', split):,} bytes, {manifest.total('tokens', split):,} tokens"
        for split in ("train", "heldout")
    ]
    if manifest.unusable:
        lines.append(left_out(manifest))
    if not all(shard.lossless for shard in manifest.shards):
        lines.append("the tokens do not give the held-out texts back: there are no bits per byte")
    return "\n".join([*lines, f"corpus {manifest.corpus_sha256[:16]}, Python {manifest.python}"])


def left_out(manifest: Manifest) -> str:
    """How many documents were left out, why, and the names of the first, in one line."""
    used = sum(shard.documents for shard in manifest.shards)
    return tell_left_out(manifest.unusable, used, "documents")


def _request(config: TextConfig) -> tuple[dict[str, Any], UserError | None]:
    """The settings that decide the result, and what is wrong with the files, if they are not here.

    `sources` is None then.
    """
    sources, missing = None, None
    try:
        files = find_files(config) if config.paths else {}
        listing = "".join(f"{name}\0{path.stat().st_size}\0" for path, name in files.items())
        if config.tokenizer not in ("byte", "bpe"):
            listing += JsonTokenizer(Path(config.tokenizer)).sha256
        sources = f"SHA-256 of names and sizes {hashlib.sha256(listing.encode()).hexdigest()}"
    except UserError as error:
        missing = error
    names = ("text_field", "tokenizer", "vocab_size", "heldout_fraction")
    fields = {name: getattr(config, name) for name in names}
    return {"paths": list(config.paths), **fields, "sources": sources}, missing


def _make_tokenizer(config: TextConfig, share: float, begin: Callable[[str], Advance]) -> Tokenizer:
    if config.tokenizer == "byte":
        return ByteTokenizer()
    path = local(config.prepared_dir) / "tokenizer.json"
    if config.tokenizer == "bpe":
        texts = _bpe_texts(config, share, begin("train BPE"))
        store.write(path, train_bpe(texts, config.vocab_size))
    else:
        JsonTokenizer(Path(config.tokenizer))  # so that an error names the user's file
        store.write(path, Path(config.tokenizer).read_bytes())
    return JsonTokenizer(path)


def _bpe_texts(config: TextConfig, share: float, advance: Advance) -> Iterator[str]:
    skipped: Counts = {}
    used = Counter[SplitName]()
    for document in read_usable(config, skipped):
        advance(document.disk_bytes)
        used[document.split] += 1
        if document.split == "train" and is_chosen(document.name.encode(), share):
            yield document.text
    check_usable(config, used, skipped)


def _write_shards(
    config: TextConfig, manifest: Manifest, tokenizer: Tokenizer, advance: Advance
) -> Manifest:
    folder, corpus = local(config.prepared_dir), hashlib.sha256()
    done = {shard.source_sha256: shard for shard in manifest.shards}
    shards: list[Shard] = []
    skipped: Counts = {}
    used = Counter[SplitName]()
    for split, documents in _gather(config, corpus, skipped):
        used[split] += len(documents)
        name = f"{split}-{sum(shard.split == split for shard in shards):05d}"
        source = hashlib.sha256(b"".join([name.encode(), *map(_digest, documents)])).hexdigest()
        if source in done:
            advance(sum(document.disk_bytes for document in documents))
        else:
            written = _write_shard(folder / name, documents, tokenizer, manifest.dtype, advance)
            done[source] = Shard(split=split, source_sha256=source, **written)
            manifest = dataclasses.replace(manifest, shards=tuple(done.values()))
            write_manifest(folder, manifest)
        shards.append(done[source])
    try:
        check_usable(config, used, skipped)
    except UserError:  # nothing stays: the manifest would refuse other settings
        for name in (MANIFEST, *(name for shard in done.values() for name in shard.files)):
            store.remove(folder / name)
        raise
    manifest = dataclasses.replace(
        manifest,
        complete=True,
        shards=tuple(shards),
        corpus_sha256=corpus.hexdigest(),
        unusable=skipped,
    )
    write_manifest(folder, manifest)
    return manifest


def _gather(
    config: TextConfig, corpus: Any, skipped: Counts
) -> Iterator[tuple[SplitName, list[Document]]]:
    """Usable documents of a split, about SHARD_BYTES of text at a time; the others are counted."""
    waiting: dict[SplitName, list[Document]] = {"train": [], "heldout": []}
    size = {"train": 0, "heldout": 0}
    for document in read_usable(config, skipped):
        split = document.split
        corpus.update(_digest(document))
        waiting[split].append(document)
        size[split] += len(document.text)
        if size[split] >= SHARD_BYTES:
            yield split, waiting[split]
            waiting[split], size[split] = [], 0
    yield from ((split, rest) for split, rest in waiting.items() if rest)


def _digest(document: Document) -> bytes:
    return hashlib.sha256(f"{document.name}\0{document.text}".encode()).digest()


def _write_shard(
    stem: Path, documents: list[Document], tokenizer: Tokenizer, dtype: str, advance: Advance
) -> dict[str, Any]:
    encoded: list[np.ndarray] = []
    for batch in itertools.batched(documents, BATCH_DOCUMENTS):
        for ids in tokenizer.encode_batch([document.text for document in batch]):
            encoded.append(np.concatenate([[tokenizer.bos_id], ids]).astype(dtype))
        advance(sum(document.disk_bytes for document in batch))
    texts = [document.text.encode() for document in documents]
    starts = np.array([np.cumsum([0, *map(len, parts[:-1])]) for parts in (encoded, texts)])
    lossless = True
    files: dict[str, Any] = {".tokens.npy": np.concatenate(encoded), ".starts.npy": starts}
    if stem.name.startswith("heldout"):
        files[".txt"] = b"".join(texts)
        pairs = zip(encoded, documents, strict=True)
        lossless = all(tokenizer.decode(ids) == document.text for ids, document in pairs)
    return {
        "tokens": sum(map(len, encoded)),
        "documents": len(documents),
        "text_bytes": sum(map(len, texts)),
        "lossless": lossless,
        "files": {stem.name + end: put(Path(f"{stem}{end}"), files[end]) for end in files},
    }
