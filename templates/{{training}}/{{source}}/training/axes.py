"""The one table from the logical axes of networks and batches to mesh axes. Moves no data."""

import jax
from jax.sharding import PartitionSpec

from ..runtime import sharding

AXES: sharding.Axes = {
    "layers": None,
    "batch": ("data", "fsdp"),
    # The model width of a matrix. Embeddings are split along the vocabulary instead: splitting
    # their feature axis makes the partitioner rematerialise the lookup's gradient.
    "embed": "fsdp",
    "vocab": ("tensor", "fsdp"),
    "heads": "tensor",
    "mlp": "tensor",
    "logits": "tensor",  # the vocabulary axis of an activation, whose batch has taken fsdp
}


def spec(*logical: str | None) -> PartitionSpec:
    """Logical axis names -> PartitionSpec; None is an axis that is not split."""
    return sharding.spec(AXES, *logical)


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pin an activation's sharding by logical axis names."""
    return sharding.constrain(x, spec(*logical))
