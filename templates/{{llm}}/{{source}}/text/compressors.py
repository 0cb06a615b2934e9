"""What gzip and xz make of the held-out text: the figures to compare a model with. Knows no model.

They depend on the text alone, and xz takes 0.07 s a document however small, so they are computed
once and kept beside the shards.
"""

import gzip
import itertools
import logging
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..records import store
from ..training.prepared import LOCK
from .shards import Split

log = logging.getLogger(__name__)

type Beat = Callable[[], None]
"""Called after each text: the work goes on."""

COMPRESSORS = {
    "gzip": partial(gzip.compress, compresslevel=9),
    "xz": partial(lzma.compress, preset=9),
}


def compress_heldout(split: Split, documents: int, beat: Beat = lambda: None) -> dict[str, float]:
    """Bits per byte of gzip -9 and xz -9 on the first documents, file by file and joined."""
    path = split.folder / f"baselines-{documents}.json"
    text = [sha256 for shard in split.shards for sha256 in shard.files.values()]
    if kept := _read_kept(path, text):
        return kept
    try:
        with store.locked(split.folder / LOCK, lambda holder: log.info("waiting for %s", holder)):
            found = _read_kept(path, text) or _compress(split, documents, beat)
            store.write_json(path, {"text": text, "figures": found})
            return found
    except OSError as error:  # the folder can only be read
        log.warning("gzip's and xz's figures cannot be kept: %s", error)
        return _compress(split, documents, beat)


def _read_kept(path: Path, text: list[str]) -> dict[str, float] | None:
    try:
        found = store.read_json(path)
        return dict(found["figures"]) if found["text"] == text else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _compress(split: Split, documents: int, beat: Beat) -> dict[str, float]:
    log.info("compressing %d held-out documents with gzip and xz, once", documents)
    texts = list(itertools.islice(split.texts(), documents))
    size_bytes = sum(map(len, texts))

    def bits(compress: Callable[[bytes], bytes], parts: list[bytes]) -> float:
        compressed_bytes = 0
        for part in parts:
            compressed_bytes += len(compress(part))
            beat()
        return 8 * compressed_bytes / size_bytes

    return {
        f"{name}_{how}_bits_per_byte": bits(compress, parts)
        for name, compress in COMPRESSORS.items()
        for how, parts in (("per_file", texts), ("joined", [b"".join(texts)]))
    }
