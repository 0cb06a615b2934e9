"""The mesh and the table of axes refuse what cannot work, and say what to do instead."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ...errors import UserError
from ...run_config import MeshConfig
from ..compiled import describe_state
from ..sharding import (
    Axes,
    arrange,
    check_divisible,
    constrain,
    describe_shards,
    make_mesh,
    named,
    spec,
)


def test_mesh_takes_all_devices() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 3}, {"tensor": 0}, {"fsdp": -1}, {"data": 4}, {"data": -2, "fsdp": -4}]
)
def test_mesh_that_does_not_fit(sizes: dict[str, int]) -> None:
    name, size = next(iter(sizes.items()))
    parts = (f"got: .*{name}={size}", "expected: .*product of 8", "to do: .*--mesh")
    with pytest.raises(UserError) as error:
        make_mesh(MeshConfig(**sizes))
    assert all(re.search(part, str(error.value)) for part in parts)


def fake_slices(count: int, devices: int) -> list[SimpleNamespace]:
    """Devices that come as a launcher may give them: not slice by slice."""
    return [
        SimpleNamespace(slice_index=i % count, id=i, platform="gpu", device_kind="a GPU")
        for i in range(devices)
    ]


@pytest.mark.parametrize(
    ("shape", "count", "crossed"),
    [
        ((4, 2, 1), 2, "data"),
        ((8, 1, 1), 2, "data"),
        ((2, 4, 1), 2, "data"),
        ((1, 8, 1), 2, "fsdp"),
        ((2, 4, 1), 4, "both"),
        ((1, 1, 8), 1, ""),
    ],
)
def test_slices_meet_on_the_outermost_axes(
    shape: tuple[int, int, int], count: int, crossed: str
) -> None:
    devices = arrange(shape, fake_slices(count, 8))
    slices = np.vectorize(lambda device: device.slice_index)(devices)
    assert slices.shape == shape
    assert len({device.id for device in devices.flat}) == 8
    changes = [np.count_nonzero(np.diff(slices, axis=axis)) > 0 for axis in range(3)]
    wanted = {"data": (1, 0, 0), "fsdp": (0, 1, 0), "both": (1, 1, 0), "": (0, 0, 0)}[crossed]
    assert changes == [*map(bool, wanted)]


def test_a_tensor_axis_does_not_leave_a_slice() -> None:
    with pytest.raises(
        UserError, match=r"(?s)over 2 slices.*lower --mesh.tensor to a divisor of 4"
    ):
        arrange((1, 1, 8), fake_slices(2, 8))


def test_slices_that_a_setting_makes() -> None:
    devices = jax.devices()
    assert arrange((2, 4, 1), devices, 1).tolist() == arrange((2, 4, 1), devices).tolist()
    four = arrange((2, 4, 1), devices, 4)  # of two devices; fsdp runs over two of them
    assert [device.id for device in four.flat] == [device.id for device in devices]
    for slices in (0, 3, 16):
        with pytest.raises(UserError, match=f"--mesh.slices {slices}\n.*divisor of 8"):
            make_mesh(MeshConfig(slices=slices))


TABLE: Axes = {"rows": ("data", "fsdp"), "wide": "fsdp", "whole": None}


def test_two_axes_of_an_array_do_not_share_a_mesh_axis() -> None:
    assert spec(TABLE, "rows", None, "whole") == P(("data", "fsdp"), None, None)
    with pytest.raises(ValueError, match="one mesh axis is used twice"):
        spec(TABLE, "rows", "wide")
    with pytest.raises(KeyError, match="tall"):
        spec(TABLE, "tall")


def test_constrain_pins_on_a_mesh_and_is_nothing_without() -> None:
    x, mesh = jnp.ones((8, 4)), make_mesh(MeshConfig(fsdp=4))
    assert constrain(x, P(("data", "fsdp"), None)) is x
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: constrain(x, P(("data", "fsdp"), None)))(x)
    assert pinned.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), None)), 2)


def test_size_that_its_mesh_axis_does_not_divide() -> None:
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    specs = {"a": P("fsdp"), "b": P(None, ("tensor", "fsdp"))}
    check_divisible({"a": np.ones((4, 3)), "b": np.ones((3, 16))}, specs, mesh)
    with pytest.raises(
        UserError, match=r"(?s)\['b'\] of shape \(3, 12\).*axis 1 \(12\).* = 8.*do: "
    ):
        check_divisible({"a": np.ones((4, 3)), "b": np.ones((3, 12))}, specs, mesh)


def test_table_counts_the_bytes_of_one_device() -> None:
    shardings = named({"small": P(), "large": P("fsdp")}, make_mesh(MeshConfig(fsdp=8)))
    abstract = {
        name: jax.ShapeDtypeStruct((size,), np.float32, sharding=shardings[name])
        for name, size in {"small": 1000, "large": 2_000_000}.items()
    }
    heading, first, second = describe_shards(abstract).splitlines()
    assert "largest" in heading
    assert first.split()[:3] == ["1.00", "MB", "large"]
    assert "float32[1000]" in second


def test_the_state_is_counted_in_a_line() -> None:
    sharding = named(P("fsdp"), make_mesh(MeshConfig(fsdp=8)))
    array = jax.ShapeDtypeStruct((2_000_000,), np.float32, sharding=sharding)
    state = {"params": {"a": {"b": array}}, "momentum": array}
    assert describe_state(state) == "2,000,000 parameters; state 2 arrays, 2 MB a device"
    assert describe_state({"chains": array}) == "state 1 arrays, 1 MB a device"
