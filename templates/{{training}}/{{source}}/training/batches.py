"""Batches of a row source, placed on the mesh by a cursor: a function of (seed, cursor) alone."""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ..errors import UserError
from .optim_config import OptimConfig

log = logging.getLogger(__name__)


@runtime_checkable
class Rows(Protocol):
    """Where rows come from: each is a pytree of arrays, of the same shapes in every row."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> PyTree: ...


def fit_micro_batches(optim: OptimConfig, batch_size: int, mesh: Mesh) -> OptimConfig:
    """The settings with as many micro-batches as fill all replicas: as asked for, if that divides.

    Else more, so that a device holds no more rows at a time than was asked for, and never more than
    its rows. A batch that does not divide by the data-parallel replicas is refused; a number of
    micro-batches is not, since another number of hosts with the same batch is the same training.
    """
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % replicas:
        raise UserError(
            got=f"--data.batch-size {batch_size} with {replicas} data-parallel devices",
            expected=f"a multiple of {replicas}",
            do="change --data.batch-size, or --mesh.data and --mesh.fsdp",
        )
    asked, rows = optim.micro_batches, batch_size // replicas
    fitting = next(count for count in range(min(asked, rows), rows + 1) if rows % count == 0)
    if fitting != asked and jax.process_index() == 0:
        log.info("%d micro-batches, not %d: of %d rows a device", fitting, asked, rows // fitting)
    return replace(optim, micro_batches=fitting)


def make_batches(
    rows: Rows, *, seed: int, batch_size: int, micro_batches: int, sharding: jax.sharding.Sharding
) -> Callable[[int], PyTree]:
    """Cursor in rows -> the rows' tree of arrays (micro_batches, batch_size / micro_batches, ...).

    Each process reads the rows of its own devices only. Safe from any thread.
    """
    if len(rows) < batch_size:
        raise UserError(
            got=f"{len(rows)} rows to train on",
            expected=f"at least one batch of {batch_size} rows",
            do="give more data, or lower --data.batch-size or the length of a row",
        )
    order = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()  # reshuffled each epoch
    leaves, structure = jax.tree.flatten(rows[0])
    size = batch_size // micro_batches

    def batch(cursor: int) -> PyTree:
        # Devices along an axis that does not split the batch ask for the same rows.
        row_leaves = functools.cache(lambda row: jax.tree.leaves(order[cursor + row]))

        def fill(leaf: int, index: Any) -> np.ndarray:
            parts, places = range(micro_batches)[index[0]], range(size)[index[1]]
            return np.array(
                [[row_leaves(p * size + at)[leaf][index[2:]] for at in places] for p in parts]
            )

        arrays = [
            jax.make_array_from_callback(
                (micro_batches, size, *np.shape(first)), sharding, functools.partial(fill, leaf)
            )
            for leaf, first in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, arrays)

    return batch
