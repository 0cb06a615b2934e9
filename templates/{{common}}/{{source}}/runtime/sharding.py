"""The device mesh, and how arrays are split over it. Knows no array by name and moves no data.

Axes are `AxisType.Auto`: the compiler propagates shardings, and `constrain` pins activations where
blocks meet. The tests assert the sharding of every parameter and the compiled collectives.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..errors import UserError
from ..run_config import MeshConfig

type Axes = Mapping[str, str | tuple[str, ...] | None]
"""Logical axis of an array -> the mesh axes that split it."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh (data, fsdp, tensor) over all devices of all processes, or over those of a topology.

    Several slices are joined along `data`, whose traffic is the least; see `arrange`.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    rest = config.fsdp * config.tensor
    data = count // max(rest, 1) if config.data == -1 else config.data
    if min(data, config.fsdp, config.tensor) < 1 or data * rest != count:
        raise UserError(
            got=f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor}",
            expected=f"a product of {count}, the number of {devices[0].device_kind} devices",
            do="set --mesh.data -1 and choose --mesh.fsdp and --mesh.tensor so that their product "
            f"divides {count}; JAX_NUM_CPU_DEVICES=8 makes eight devices of a CPU",
        )
    arranged = arrange((data, config.fsdp, config.tensor), devices, config.slices)
    return Mesh(arranged, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def arrange(shape: tuple[int, int, int], devices: Sequence[Any], slices: int = -1) -> np.ndarray:
    """Devices in the shape (data, fsdp, tensor), inner axes on the faster network.

    What one fast network joins has one `slice_index`: a TPU slice, a host of GPUs. Slices are cut
    from `data` first, then from `fsdp`. Processes on CPUs have none, and come in order; `slices`
    above 0 makes so many equal parts of that order instead.
    `jax.make_mesh` refuses several slices, and on v6e and v5p an axis that is a part of a physical
    one, such as 2 of a 4x4 (JAX 0.12).
    """
    groups = _slices_of(devices, slices)
    rest, between = len(groups), []
    for size in shape[:2]:
        between.append(math.gcd(size, rest))
        rest //= between[-1]
    if rest > 1:
        raise UserError(
            got=f"mesh data={shape[0]} fsdp={shape[1]} tensor={shape[2]} over {len(groups)} slices",
            expected=f"data x fsdp a multiple of {len(groups)}: no tensor axis leaves a slice",
            do=f"lower --mesh.tensor to a divisor of {len(devices) // len(groups)}; where hosts of "
            "GPUs share one fast network, --mesh.slices 1 says so",
        )
    inside = [size // part for size, part in zip(shape, [*between, 1], strict=True)]
    parts = [
        mesh_utils.create_device_mesh(inside, group, allow_split_physical_axes=True)
        for group in groups
    ]
    # Axes (data, fsdp) between slices, then (data, fsdp, tensor) inside of one.
    return np.stack(parts).reshape(*between, *inside).transpose(0, 2, 1, 3, 4).reshape(shape)


def _slices_of(devices: Sequence[Any], slices: int) -> list[list[Any]]:
    if slices == -1:
        found: dict[Any, list[Any]] = {}
        for device in devices:
            found.setdefault(getattr(device, "slice_index", 0), []).append(device)
        return [found[index] for index in sorted(found)]
    if slices < 1 or len(devices) % slices:
        raise UserError(
            got=f"--mesh.slices {slices}",
            expected=f"a divisor of {len(devices)}, the number of devices",
            do="take one, or leave it out: the devices tell their slices",
        )
    size = len(devices) // slices
    return [list(devices[i : i + size]) for i in range(0, len(devices), size)]


def spec(table: Axes, *logical: str | None) -> PartitionSpec:
    """Logical axis names -> PartitionSpec; refuses two axes of one array on one mesh axis."""
    mesh_axes = [table[name] if name else None for name in logical]
    used = [axis for axes in mesh_axes for axis in as_tuple(axes)]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {logical} map to {mesh_axes}: one mesh axis is used twice")
    return PartitionSpec(*mesh_axes)


def constrain(x: jax.Array, sharding: PartitionSpec) -> jax.Array:
    """Pin an activation's sharding; does nothing outside a mesh or on a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, sharding)


def as_tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    return (axes,) if isinstance(axes, str) else axes or ()


def check_divisible(abstract: Any, specs: Any, mesh: Mesh) -> None:
    """Raise where a sharded axis of the state does not divide by its mesh axes."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    for (path, leaf), leaf_spec in zip(
        leaves, jax.tree.leaves(specs, is_leaf=is_spec), strict=True
    ):
        for dim, axes in enumerate(leaf_spec):
            parts = math.prod(mesh.shape[axis] for axis in as_tuple(axes))
            if leaf.shape[dim] % parts:
                raise UserError(
                    got=f"{jax.tree_util.keystr(path)} of shape {leaf.shape}",
                    expected=f"axis {dim} ({leaf.shape[dim]}) divisible by mesh {axes} = {parts}",
                    do="change that size in the preset, or lower --mesh.fsdp / --mesh.tensor",
                )


def named(specs: Any, mesh: Mesh) -> Any:
    """Tree of PartitionSpec -> tree of NamedSharding."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=is_spec)


def device_bytes(array: Any) -> int:
    """What one device holds of an abstract array."""
    return math.prod(array.sharding.shard_shape(array.shape)) * int(array.dtype.itemsize)


def describe_shards(abstract: Any, rows: int = 12) -> str:
    """A table of the largest arrays: bytes a device, name, shape, sharding."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    sized = sorted(leaves, key=lambda leaf: -device_bytes(leaf[1]))
    lines = [
        f"{device_bytes(x) / 1e6:9.2f} MB  {jax.tree_util.keystr(path, simple=True, separator='/')}"
        f" {x.dtype}{list(x.shape)} {x.sharding.spec}"
        for path, x in sized[:rows]
    ]
    return "\n".join(["the largest arrays of the state, bytes a device:", *lines])


def is_spec(x: Any) -> bool:
    """For `is_leaf`."""
    return isinstance(x, PartitionSpec)
