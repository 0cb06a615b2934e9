"""The sink of a fit: draws in a Zarr store that ArviZ reads as it is, one chain in each chunk.

    outputs/posterior/theta/c/2/14/0    draws of chain 2, the 15th chunk that is kept, as raw bytes
    outputs/sample_stats/energy/…

Process 0 lays the whole store out before the first draw, so that no process ever writes metadata;
each writes the chunks of the chains that it holds, through `store`. What is not drawn yet is NaN. A
draw of warm-up is not kept. A resume cuts the arrays to its checkpoint.
"""

import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray
import zarr

from ..contract import Outputs
from ..records import store
from ..records.mirror import Mirror
from ..runtime.distributed import barrier

BLOCK_BYTES = 1 << 28  # of draws that wait for the disk; then the run waits too
MARK = "sample_stats/lp"  # finite where a draw is there


@dataclass(frozen=True)
class Layout:
    """What is stored, and what its axes are called."""

    arrays: dict[str, tuple[tuple[int, ...], Any, tuple[str, ...]]]
    """Path in the store -> shape of one draw, dtype, names of its axes."""
    coords: dict[str, list[Any]]
    chains: int
    chunk: int
    warmup_steps: int
    steps: int
    attributes: dict[str, Any] = field(default_factory=dict)

    def draws(self, step: int) -> int:
        """Draws of each chain that are kept up to a step."""
        return max(0, step - self.warmup_steps) * self.chunk


class DrawStore:
    """Writes in one thread, in order; what cannot be written is kept and tried again."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._waiting: list[tuple[Path, bytes]] = []
        self._bytes = 0
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="draws")
        self._last: Future[None] | None = None

    def add(self, step: int, outputs: Outputs) -> None:
        """Copy this process's chains to the host, unless they are warming up."""
        if step <= self.layout.warmup_steps:
            return
        number = step - self.layout.warmup_steps - 1
        for name, array in outputs.items():
            ends = ["0"] * len(self.layout.arrays[name][0])
            for shard in array.addressable_shards:
                if shard.replica_id == 0:
                    first = shard.index[0].start or 0
                    for chain, draws in enumerate(np.asarray(shard.data), first):
                        parts = (*name.split("/"), "c", str(chain), str(number), *ends)
                        with self._lock:
                            self._waiting.append((self.folder.joinpath(*parts), draws.tobytes()))
                        self._bytes += draws.nbytes
        if self._bytes >= BLOCK_BYTES:
            self.write(step)
            self.durable()

    def write(self, step: int) -> None:
        """Begin to write what was added."""
        self._last, self._bytes = self._writer.submit(self._write_waiting), 0

    def durable(self) -> None:
        """Wait for what was begun; raises OSError where it cannot be written."""
        if self._last is not None:
            self._last.result()

    def cut(self, step: int) -> None:
        """Lay the store out, and forget what is beyond `step`; process 0 does."""
        if jax.process_index() == 0:
            lay_out(self.folder, self.layout, self.layout.draws(step))

    def read(self) -> dict[str, np.ndarray]:
        """Array -> its draws, which are the leading axis."""
        found = read_draws(self.folder)
        return {
            f"{group}/{name}": np.moveaxis(array.values, 1, 0)
            for group in ("posterior", "sample_stats")
            for name, array in found[group].data_vars.items()
        }

    def _write_waiting(self) -> None:
        while self._waiting:
            path, content = self._waiting[0]
            store.write(path, content)
            with self._lock:
                self._waiting.pop(0)


def lay_out(folder: Path, layout: Layout, kept: int, total: int | None = None) -> None:
    """Make the arrays, or give them the length of this run; of their draws, `kept` stay."""
    total = layout.draws(layout.steps) if total is None else total
    root = zarr.open_group(str(folder), mode="a", use_consolidated=False)
    root.attrs.update(layout.attributes)
    for path, (shape, dtype, dims) in layout.arrays.items():
        if path in root:
            _cut(folder / path, kept // layout.chunk, [layout.chains, total, *shape])
        else:
            root.create_array(
                path,
                shape=(layout.chains, total, *shape),
                chunks=(1, layout.chunk, *shape),
                dtype=dtype,
                fill_value=np.nan if np.issubdtype(dtype, np.floating) else 0,
                # A chunk is its bytes: the run writes it without Zarr. Draws hardly compress.
                compressors=None,
                filters=None,
                dimension_names=("chain", "draw", *dims),
            )
    for group in ("posterior", "sample_stats"):
        used = {d for path, (*_, dims) in layout.arrays.items() if group in path for d in dims}
        coords = {"chain": [*range(layout.chains)], "draw": [*range(total)]}
        coords |= {name: names for name, names in layout.coords.items() if name in used}
        _name_axes(root[group], coords)
    consolidate(folder)


def consolidate(folder: Path) -> None:
    """Let readers find all groups of a Zarr store in one file."""
    with warnings.catch_warnings():  # that readers other than xarray may not look for it
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(folder))


def _cut(array: Path, chunks: int, shape: list[int]) -> None:
    """Another length, and no chunk from `chunks` on.

    Zarr's own `resize` deletes each chunk that there could be, which takes minutes for a long run.
    """
    for chain in store.names(array / "c"):
        for name in store.names(array / "c" / chain):
            if not (name.isdecimal() and int(name) < chunks):
                store.remove(array / "c" / chain / name)
    about = store.read_json(array / "zarr.json")
    store.write_json(array / "zarr.json", about | {"shape": shape})


def _name_axes(group: Any, coords: dict[str, list[Any]]) -> None:
    for name, values in coords.items():
        texts = any(isinstance(value, str) for value in values)
        data = np.array(values, object if texts else np.int64)
        if texts:
            data = data.astype(np.dtypes.StringDType())
        group.create_array(name, data=data, dimension_names=(name,), overwrite=True)


def gather_outputs(run_dir: str) -> Path:
    """DIR/outputs, where process 0 finds what all have written, in a bucket too. Call it in all."""
    copy = Mirror(run_dir, process=jax.process_index())
    if jax.process_count() > 1:
        copy.send("outputs/")
        barrier("outputs")
        if jax.process_index() == 0:
            copy.fetch("outputs/")
    return copy.local / "outputs"


def read_draws(folder: Path) -> Any:
    """The posterior and its statistics as an ArviZ DataTree, up to the last draw of all chains."""
    tree = xarray.open_datatree(folder, engine="zarr", consolidated=False)
    density = np.asarray(tree[MARK].values)
    missing = np.isnan(density).any(axis=0)
    count = int(missing.argmax()) if missing.any() else density.shape[1]
    return tree.map_over_datasets(lambda d: d.isel(draw=slice(count)) if "draw" in d.dims else d)
