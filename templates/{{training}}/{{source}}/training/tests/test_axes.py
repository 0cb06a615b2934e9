"""The table of axes fits networks: it names axes of the mesh and splits no array twice."""

import itertools

import pytest
from jax.sharding import PartitionSpec as P

from ...run_config import MeshConfig
from ...runtime.sharding import as_tuple, make_mesh
from ..axes import AXES, spec


def test_two_axes_of_an_array_do_not_share_a_mesh_axis() -> None:
    assert {axis for axes in AXES.values() for axis in as_tuple(axes)} <= {
        *make_mesh(MeshConfig()).shape
    }
    for one, two in itertools.combinations(AXES, 2):
        if {*as_tuple(AXES[one])} & {*as_tuple(AXES[two])}:
            with pytest.raises(ValueError, match="one mesh axis is used twice"):
                spec(one, two)
        else:
            assert spec(one, None, two) == P(AXES[one], None, AXES[two])
