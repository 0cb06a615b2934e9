"""The table of axes fits networks: it uses the whole mesh and splits no array twice."""

import pytest
from jax.sharding import PartitionSpec as P

from ...runtime.sharding import as_tuple
from ..axes import AXES, spec


def test_two_axes_of_an_array_do_not_share_a_mesh_axis() -> None:
    assert spec("layers", "embed", "mlp") == P(None, "fsdp", "tensor")
    for clash in (("batch", "embed"), ("heads", "mlp"), ("vocab", "embed")):
        with pytest.raises(ValueError, match="one mesh axis is used twice"):
            spec(*clash)
    used = {axis for axes in AXES.values() for axis in as_tuple(axes)}
    assert used == {"data", "fsdp", "tensor"}
