"""The default sink: outputs of every step that counts, in `.npz` parts beside the checkpoints.

    outputs/00000014-0.npz   steps after the part before it up to 14, as process 0 holds them

Each process writes the shards that it holds; nothing is gathered. A part ends at every save and is
on disk before that checkpoint commits. A resume deletes the parts beyond its checkpoint.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..contract import Outputs
from ..records import store

MAX_BYTES = 1 << 28  # in the host's memory before a part is written between two saves

type Part = tuple[int, dict[str, np.ndarray]]
"""Last step, and "name/offset,offset" -> this shard over the part's steps; "step" -> the steps."""


class Parts:
    """Writes parts in one thread, in order. A part that cannot be written stays and is retried."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps: list[int] = []
        self._shards: dict[str, list[np.ndarray]] = {}
        self._bytes = 0
        self._unwritten: list[Part] = []
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._last: Future[None] | None = None

    def add(self, step: int, outputs: Outputs) -> None:
        """Copy this process's shards of one step's outputs to the host."""
        self._steps.append(step)
        for name, array in outputs.items():
            # The share of one process by count, so that all begin a part at the same step.
            self._bytes += array.nbytes // jax.process_count()
            for shard in array.addressable_shards:
                if shard.replica_id == 0:
                    offsets = ",".join(str(part.start or 0) for part in shard.index)
                    shards = self._shards.setdefault(f"{name}/{offsets}", [])
                    shards.append(np.asarray(shard.data))
        if self._bytes >= MAX_BYTES:
            self.durable()  # at most one part is being written while another one fills
            self.write(step)

    def write(self, step: int) -> None:
        """Begin to write what was added since the last part."""
        if self._steps:
            stacked = {name: np.stack(steps) for name, steps in self._shards.items()}
            part = (step, {"step": np.array(self._steps)} | stacked)
            self._steps, self._shards, self._bytes = [], {}, 0
            with self._lock:
                self._unwritten.append(part)
        self._last = self._writer.submit(self._write_all)

    def durable(self) -> None:
        """Wait for the parts that were begun; raises OSError where one cannot be written."""
        if self._last is not None:
            self._last.result()

    def cut(self, step: int) -> None:
        """Delete the parts that go beyond `step`; process 0 does."""
        if jax.process_index() == 0:
            for name in store.names(self._folder):
                if not name.endswith(".npz") or int(name.split("-")[0]) > step:
                    store.remove(self._folder / name)

    def read(self) -> dict[str, np.ndarray]:
        """Name -> array over all steps on disk, of all processes; "step" says which steps."""
        return read_outputs(self._folder)

    def _write_all(self) -> None:
        while self._unwritten:
            step, arrays = self._unwritten[0]
            path = self._folder / f"{step:08d}-{jax.process_index()}.npz"

            def fill(file: Any, arrays: dict[str, np.ndarray] = arrays) -> None:
                np.savez(file, allow_pickle=False, **arrays)

            store.write(path, fill)
            with self._lock:
                self._unwritten.pop(0)


def read_outputs(folder: Path) -> dict[str, np.ndarray]:
    """Name -> array with one leading axis over the steps, made whole from the shards."""
    by_step: dict[int, dict[str, np.ndarray]] = {}
    for name in store.names(folder):
        with np.load(folder / name) as part:
            by_step.setdefault(int(name.split("-")[0]), {}).update(part)
    parts = [_join(arrays) for _, arrays in sorted(by_step.items())]
    names = parts[0] if parts else {}
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _join(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shards by "name/offsets" -> whole arrays by name."""
    whole = {"step": arrays.pop("step")}
    shards: dict[str, list[tuple[tuple[int, ...], np.ndarray]]] = {}
    for key, shard in arrays.items():
        name, _, offsets = key.rpartition("/")
        starts = tuple(int(start) for start in offsets.split(",") if start)
        shards.setdefault(name, []).append((starts, shard))
    for name, found in shards.items():
        ends = [[s + n for s, n in zip(starts, x.shape[1:], strict=True)] for starts, x in found]
        steps, dtype = len(whole["step"]), found[0][1].dtype
        whole[name] = np.empty((steps, *np.max(ends, axis=0).astype(int)), dtype)
        for (starts, shard), end in zip(found, ends, strict=True):
            box = tuple(slice(s, e) for s, e in zip(starts, end, strict=True))
            whole[name][:, *box] = shard
    return whole
