"""Rows of tokens, cut from the stream of a split. Knows no order, batch or device.

A row is T inputs and their targets in T + 1 tokens; -1 is padding.
"""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from .text.settings import Packing
from .text.shards import Split

type Read = Callable[[int, int, int], Int[np.ndarray, " length"]]
"""(start, stop, length) -> tokens [start, stop) of a stream of documents, padded with -1."""
FULL_WINDOWS = 16_384  # a larger held-out split is scored on its first documents only


class Rows:
    """The rows of one epoch in the order of the corpus; every token is a target once."""

    def __init__(self, split: Split, seq_len: int, packing: Packing) -> None:
        self.split, self.seq_len, self.packing = split, seq_len, packing
        # With segments, rows are pieces of the whole stream, as if it were one document.
        self.starts = (
            split.document_starts if packing == "documents" else split.shard_starts[[0, -1]]
        )
        # The BOS that follows a document is its last target: the model learns where texts end.
        targets = np.diff(self.starts) - (packing == "segments")
        self.targets = int(targets.sum())
        self.first_rows = np.cumsum(np.append(0, -(-targets // seq_len)))

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def __getitem__(self, row: int) -> Int[np.ndarray, " {self.seq_len}+1"]:
        document = int(np.searchsorted(self.first_rows, row, "right")) - 1
        start, end = map(int, self.starts[document : document + 2])
        start += (row - int(self.first_rows[document])) * self.seq_len
        tokens = self.split.read(start, min(start + self.seq_len + 1, end), self.seq_len + 1)
        if self.packing == "documents":
            tokens[0] = self.split.bos_id  # a later piece does not see the one before
            tokens[end - start : end - start + 1] = self.split.bos_id
        return tokens

    def waste(self) -> float:
        """Fraction of targets that are padding."""
        return 1 - self.targets / (len(self) * self.seq_len)


def heldout_windows(
    document_starts: Int[np.ndarray, " documents_end"], seq_len: int, stride: int
) -> Int[np.ndarray, "N 3"]:
    """First token, end, and first scored target in the stream of each evaluation window.

    Windows lie inside documents and score every token but BOS exactly once: up to T in the first of
    a document, `stride` in each later one, whose other tokens are context.
    """
    windows = []
    for start, end in itertools.pairwise(document_starts.tolist()):
        scored, stop = start + 1, min(start + 1 + seq_len, end)
        while scored < end:
            windows.append((max(start, stop - seq_len - 1), stop, scored))
            scored, stop = stop, min(stop + stride, end)
    return np.array(windows, np.int64).reshape(-1, 3)


def exact_windows(
    document_starts: Int[np.ndarray, " documents_end"], seq_len: int
) -> Int[np.ndarray, "N 3"]:
    """Windows that score each token once, with at least half a row of context where there is."""
    return heldout_windows(document_starts, seq_len, max(1, seq_len // 2))


def full_windows(split: Split, seq_len: int) -> tuple[Int[np.ndarray, "N 3"], int]:
    """The windows of a full evaluation, and how many documents they cover."""
    windows = exact_windows(split.document_starts, seq_len)
    ends = np.searchsorted(windows[:, 2], split.document_starts[1:])
    documents = max(1, int(np.searchsorted(ends, FULL_WINDOWS, "right")))
    return windows[: ends[documents - 1]], documents


def heldout_rows(
    read: Read, bos_id: int, windows: Int[np.ndarray, "N 3"], seq_len: int, packing: Packing
) -> tuple[Int[np.ndarray, "N {seq_len}+1"], Bool[np.ndarray, "N {seq_len}"]]:
    """Tokens of the windows, and which targets count.

    With `documents`, BOS takes the place of a window's first context token, as in training.
    """
    tokens = np.stack([read(first, end, seq_len + 1) for first, end, _ in windows.tolist()])
    if packing == "documents":
        tokens[:, 0] = bos_id
    first, end, scored = windows.T[:, :, None]
    target = first + 1 + np.arange(seq_len)
    return tokens, (target >= scored) & (target < end)
