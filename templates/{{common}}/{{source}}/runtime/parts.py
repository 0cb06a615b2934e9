"""The parts of a state that each process holds: as bytes, by name, and moved to another process."""

import functools
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from ..contract import State

type Pairs = tuple[tuple[int, int], ...]
"""(from, to) process, each once on a side."""


def names_of_parts(abstract: State) -> dict[int, str]:
    """Process -> hash of the parts that its devices hold, in order; the same for replicas."""
    told: dict[int, list[str]] = defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        places = leaf.sharding.devices_indices_map(leaf.shape)
        for process, devices in devices_of(leaf.sharding.mesh).items():
            here = [places[device] for device in devices]
            told[process].append(f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape} {here}")
    return {
        process: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        for process, lines in told.items()
    }


def devices_of(mesh: Any) -> dict[int, list[Any]]:
    """Process -> its devices in the mesh, in order."""
    found: dict[int, list[Any]] = defaultdict(list)
    for device in sorted(mesh.devices.flat, key=lambda each: each.id):
        found[device.process_index].append(device)
    return found


def parts_of(array: jax.Array, like: Any) -> dict[int, np.ndarray]:
    """What this process holds of an array, as bytes, by the first of its devices that holds it."""
    bits = _to_bits(like.sharding)(array) if _is_key(like) else array
    bits.copy_to_host_async()
    data = {shard.device: shard.data for shard in bits.addressable_shards}
    # On a CPU this is the device's own memory, which a step that would donate it leaves alone while
    # it is held here (a test). As bytes, because NumPy's files know no bfloat16.
    return {
        slot: np.asarray(data[device]).reshape(-1).view(np.uint8)
        for slot, (device, first) in enumerate(_slots(like))
        if slot == first
    }


def array_of(parts: Mapping[int, np.ndarray] | None, like: Any) -> jax.Array:
    """The array of which this process gives these parts; None = zeros, which nobody reads."""
    bits = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    shape = (*like.sharding.shard_shape(like.shape), *bits.shape[len(like.shape) :])

    def part(slot: int) -> np.ndarray:
        if parts is None:
            return np.zeros(shape, bits.dtype)
        return parts[slot].view(bits.dtype).reshape(shape)

    shards = [jax.device_put(part(first), device) for device, first in _slots(like)]
    made = jax.make_array_from_single_device_arrays(bits.shape, like.sharding, shards)
    return _to_keys(like.sharding, _impl(like))(made) if _is_key(like) else made


def moved(array: jax.Array, like: Any, pairs: Pairs) -> jax.Array:
    """What the devices of a process hold of an array goes to those of another one.

    Call it in every process. What is not sent anywhere is lost.
    """
    return _mover(like.sharding, pairs)(array)


@functools.lru_cache(maxsize=64)
def _mover(sharding: NamedSharding, pairs: Pairs) -> Any:
    mesh, spec = sharding.mesh, sharding.spec
    place = {device: number for number, device in enumerate(mesh.devices.flat)}
    own = {i: [place[each] for each in devices] for i, devices in devices_of(mesh).items()}
    steps = [step for one, to in pairs for step in zip(own[one], own[to], strict=True)]
    send = functools.partial(jax.lax.ppermute, axis_name=mesh.axis_names, perm=steps)
    # Replicas of one array may differ afterwards, which `check_vma` would refuse.
    return jax.jit(jax.shard_map(send, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


def _slots(like: Any) -> list[tuple[Any, int]]:
    """This process's devices in order, each with the first of them that holds the same part."""
    places = like.sharding.addressable_devices_indices_map(like.shape)
    devices = sorted(places, key=lambda each: each.id)
    held = [str(places[device]) for device in devices]
    return [(device, held.index(place)) for device, place in zip(devices, held, strict=True)]


def _is_key(x: Any) -> bool:
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def _impl(like: Any) -> Any:
    found: list[Any] = []  # JAX tells it of an array, traced or not, and not of a shape
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return found[0]


@functools.lru_cache(maxsize=8)
def _to_bits(sharding: NamedSharding) -> Any:
    return jax.jit(jax.random.key_data, out_shardings=sharding)


@functools.lru_cache(maxsize=8)
def _to_keys(sharding: NamedSharding, impl: Any) -> Any:
    wrap = functools.partial(jax.random.wrap_key_data, impl=impl)
    return jax.jit(wrap, out_shardings=sharding)
