"""Batches are trees of rows in an order of their own, and micro-batches follow the replicas."""

import logging

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ...errors import UserError
from ...run_config import MeshConfig
from ...runtime.sharding import make_mesh
from ..batches import fit_micro_batches, make_batches
from ..optim_config import OptimConfig


class Pictures:
    """Rows of two arrays, the smaller a number."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {"image": np.full((4, 4, 3), row, np.uint8), "label": np.int32(row)}


def test_a_row_is_any_tree_of_arrays() -> None:
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), devices=jax.devices()[:8])
    sharding = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    batch = make_batches(Pictures(), seed=0, batch_size=8, micro_batches=2, sharding=sharding)(3)
    assert (batch["image"].shape, batch["label"].shape) == ((2, 4, 4, 4, 3), (2, 4))
    assert (batch["image"].dtype, batch["label"].dtype) == ("uint8", "int32")
    labels = np.asarray(batch["label"])
    assert len(set(labels.ravel().tolist())) == 8
    np.testing.assert_array_equal(np.asarray(batch["image"])[..., 0, 0, 0], labels)


@pytest.mark.parametrize(
    ("rows", "asked", "replicas", "fitting"),
    [
        (16, 4, 1, 4),
        (16, 4, 4, 4),
        (16, 4, 8, 2),
        (24, 4, 8, 3),
        (8, 4, 8, 1),
        (56, 6, 8, 7),
        (80, 6, 8, 10),
    ],
)
def test_micro_batches_follow_the_replicas(
    rows: int, asked: int, replicas: int, fitting: int, caplog: pytest.LogCaptureFixture
) -> None:
    mesh = make_mesh(MeshConfig(data=replicas), jax.devices()[:replicas])
    with caplog.at_level(logging.INFO):
        found = fit_micro_batches(OptimConfig(micro_batches=asked), rows, mesh)
    assert found.micro_batches == fitting
    assert (f"{fitting} micro-batches, not {asked}" in caplog.text) is (fitting != asked)


def test_a_batch_that_the_replicas_do_not_divide() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with pytest.raises(UserError, match=r"(?s)--data.batch-size 12 with 8 .*a multiple of 8"):
        fit_micro_batches(OptimConfig(), 12, mesh)
