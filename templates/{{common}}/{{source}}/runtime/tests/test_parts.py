"""An array comes back from the parts that each process holds of it, which have names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ...run_config import MeshConfig
from ..parts import array_of, names_of_parts, parts_of
from ..sharding import make_mesh


@pytest.mark.parametrize("spec", [P(), P("data"), P(("data", "fsdp")), P(None, "fsdp")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8", "bool"])
def test_an_array_comes_back_from_its_parts(spec: P, dtype: str) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    values = np.arange(8 * 12).reshape(8, 12) % 7
    like = jax.ShapeDtypeStruct((8, 12), dtype, sharding=NamedSharding(mesh, spec))
    array = jax.device_put(values.astype(dtype), like.sharding)
    parts = parts_of(array, like)
    held = {str(place) for place in like.sharding.devices_indices_map((8, 12)).values()}
    assert len(parts) == len(held), "each part is kept once"
    back = array_of(parts, like)
    assert back.sharding == array.sharding
    np.testing.assert_array_equal(np.asarray(back), np.asarray(array))


def test_numbers_and_keys_come_back() -> None:
    mesh = make_mesh(MeshConfig())
    for spec, array in (
        (P(), jnp.float32(3.5)),
        (P(), jax.random.key(7)),
        (P("data"), jax.random.split(jax.random.key(7, impl="rbg"), 8)),
    ):
        like = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))
        array = jax.device_put(array, like.sharding)
        parts = parts_of(array, like)
        back = array_of(parts, like)
        assert (back.dtype, back.sharding) == (array.dtype, array.sharding)
        bits = (
            jax.random.key_data if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else jnp.asarray
        )
        np.testing.assert_array_equal(bits(back), bits(array))


def test_a_step_that_donates_an_array_leaves_its_parts() -> None:
    mesh = make_mesh(MeshConfig())
    sharding = NamedSharding(mesh, P("data"))
    like = jax.ShapeDtypeStruct((8, 100_000), "float32", sharding=sharding)
    array = jax.jit(lambda: jnp.ones(like.shape), out_shardings=sharding)()
    step = jax.jit(lambda x: 2 * x + 1, donate_argnums=0, out_shardings=sharding)
    for _ in range(5):
        parts = parts_of(array, like)
        first = float(array[0, 0])
        array = jax.block_until_ready(step(array))
        assert all((part.view(np.float32) == first).all() for part in parts.values())


def test_parts_are_named_by_what_they_are() -> None:
    def names(spec: P, size: int = 8, **mesh: int) -> set[str]:
        sharding = NamedSharding(make_mesh(MeshConfig(**mesh)), spec)
        like = jax.ShapeDtypeStruct((size,), "float32", sharding=sharding)
        return {*names_of_parts({"w": like}).values()}

    assert names(P("data")) == names(P(("data", "fsdp")), data=2, fsdp=4)
    assert len({*names(P("data")), *names(P()), *names(P("data"), 16)}) == 3
