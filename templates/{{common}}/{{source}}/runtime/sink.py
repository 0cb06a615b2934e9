"""The default sink: outputs of every step that counts, in `.npz` files beside the checkpoints.

    outputs/00000014-0.npz   steps after the file before it up to 14, as process 0 holds them

Each process writes the shards that it holds; nothing is gathered. A file ends at every save and is
on disk before that checkpoint commits. A resume deletes the files beyond its checkpoint.
"""

import re
import threading
from collections import Counter, defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from ..contract import Outputs
from ..records import store

FILE = re.compile(r"(\d{8,})-\d+\.npz(\.(\w+\.)?part)?")  # a part too, of a write that was killed
BLOCK_BYTES = 1 << 28  # of outputs that are collected before a file is written between two saves
WAITING_BLOCKS = 2  # that may wait for the disk; then the run waits too, and ends if that fails


class NpzFiles:
    """Writes files in one thread, in order; what cannot be written is kept and tried again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps: list[int] = []
        self._shards: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        self._bytes = 0
        self._waiting: list[tuple[int, Any, Any]] = []
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._last: Future[None] | None = None

    def add(self, step: int, outputs: Outputs) -> None:
        """Copy this process's shards of one step's outputs to the host. bfloat16 becomes float32.

        Raises OSError where the disk has refused more than may wait in memory.
        """
        self._steps.append(step)
        for name, array in outputs.items():
            # The same count in all processes, so that their files end at the same steps.
            holders = 1 if array.is_fully_replicated else jax.process_count()
            self._bytes += array.nbytes // holders
            for shard in array.addressable_shards:
                if shard.replica_id == 0:
                    offsets = ",".join(str(part.start or 0) for part in shard.index)
                    key = f"{name}/{offsets}/{','.join(map(str, array.shape))}"
                    copy = np.asarray(shard.data)
                    # NumPy's format does not know the dtypes of ml_dtypes, whose kind is "V".
                    wide = copy.astype(np.float32) if copy.dtype.kind == "V" else copy
                    self._shards[key].append(wide)
        if self._bytes >= BLOCK_BYTES:
            self.write(step)

    def write(self, step: int) -> None:
        """Begin to write what was added since the last file."""
        if self._steps:
            with self._lock:
                self._waiting.append((step, self._steps, self._shards))
            self._steps, self._shards, self._bytes = [], defaultdict(list), 0
        self._last = self._writer.submit(self._write_waiting)
        if len(self._waiting) > WAITING_BLOCKS:
            self.durable()

    def durable(self) -> None:
        """Wait for the files that were begun; raises OSError where one cannot be written."""
        if self._last is not None:
            self._last.result()

    def cut(self, step: int) -> None:
        """Delete the files that go beyond `step`; process 0 does."""
        if jax.process_index() == 0:
            for name in store.names(self._folder):
                found = FILE.fullmatch(name)
                if found and (found[2] or int(found[1]) > step):
                    store.remove(self._folder / name)

    def read(self) -> dict[str, np.ndarray]:
        """Name -> array over all steps on disk, of all processes; "step" says which steps."""
        return read_outputs(self._folder)

    def _write_waiting(self) -> None:
        while self._waiting:
            step, steps, shards = self._waiting[0]
            arrays: Any = {name: np.stack(found) for name, found in shards.items()}
            path = self._folder / f"{step:08d}-{jax.process_index()}.npz"
            store.write(path, partial(_save, {"step": np.array(steps)} | arrays))
            with self._lock:
                self._waiting.pop(0)


def read_outputs(folder: Path) -> dict[str, np.ndarray]:
    """Name -> array with one leading axis over the steps, made whole from the shards.

    ValueError where a process's file is missing.
    """
    by_step: dict[str, dict[str, np.ndarray]] = {}
    for name in store.names(folder):
        if (found := FILE.fullmatch(name)) and not found[2]:
            with store.reading(folder / name) as file:
                by_step.setdefault(found[1], {}).update(_load(file))
    wholes = [_join(last_step, arrays) for last_step, arrays in sorted(by_step.items())]
    names = wholes[0] if wholes else {}
    return {name: np.concatenate([whole[name] for whole in wholes]) for name in names}


def _save(arrays: Any, file: BinaryIO) -> None:
    np.savez(file, allow_pickle=False, **arrays)


def _load(file: BinaryIO) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def _join(last_step: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shards by "name/offsets/shape" -> whole arrays by name."""
    steps = arrays.pop("step")
    whole, filled = {"step": steps}, Counter[str]()
    for key, shard in arrays.items():
        name, *numbers = key.rsplit("/", 2)
        offsets, shape = (tuple(int(n) for n in text.split(",") if n) for text in numbers)
        if name not in whole:
            whole[name] = np.empty((len(steps), *shape), shard.dtype)
        box = (slice(o, o + n) for o, n in zip(offsets, shard.shape[1:], strict=True))
        whole[name][:, *box] = shard
        filled[name] += shard.size
    missing = [name for name in filled if filled[name] != whole[name].size]
    if missing:
        raise ValueError(f"outputs up to step {last_step}: a file lacks shards of {missing}")
    return whole
