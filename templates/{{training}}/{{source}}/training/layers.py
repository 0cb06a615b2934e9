"""Parts of networks: declared parameters, norms, products, rematerialisation. Knows no model.

One call declares a parameter's shape, logical axes, initialiser, decay and label.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from ..contract import State
from ..runtime.sharding import is_spec
from .axes import spec

REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def parameter(
    key: jax.Array, shape: tuple[int, ...], axes: tuple[str | None, ...], *, std: float, label: str
) -> nnx.Param:
    """Normal(0, std) float32 parameter. label: "matrix", "embedding" or "kernel" (convolution)."""
    value = std * jax.random.normal(key, shape, jnp.float32)
    return nnx.Param(value, axes=axes, decay=True, label=label)


def norm_gain(size: int) -> nnx.Param:
    """The gain of a norm: ones, replicated, never decayed."""
    return nnx.Param(jnp.ones((size,), jnp.float32), axes=(None,), decay=False, label="vector")


def rms_norm(x: Float[Array, "*T D"], gain: Float[Array, "... D"]) -> Float[Array, "*T D"]:
    """RMSNorm (arXiv:1910.07467), computed in float32 and returned in x's dtype."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)
    return (wide * inverse * gain).astype(x.dtype)


def linear(x: Float[Array, "... D"], matrix: nnx.Param) -> Float[Array, "... F"]:
    """x @ matrix in x's dtype, as one flat product: batched ones are slow backward on the CPU."""
    flat = x.reshape(-1, x.shape[-1]) @ matrix[...].astype(x.dtype)
    return flat.reshape(*x.shape[:-1], -1)


def remat[**P, T](fn: Callable[P, T], policy: str) -> Callable[P, T]:
    """`fn`, whose intermediate values the backward pass computes again: "none", "dots", "full"."""
    return fn if policy == "none" else jax.checkpoint(fn, policy=REMAT[policy])


def annotation(declared: Any, name: str) -> Any:
    """One annotation of every parameter (axes, decay, label), as a tree of plain dicts."""
    return map_parameters(lambda parameter: getattr(parameter, name), declared)


def map_parameters(fn: Callable[[nnx.Variable], Any], declared: Any) -> Any:
    """Declared parameters -> a tree of plain dicts with what `fn` makes of each."""
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(fn, declared, is_leaf=is_variable))


def state_specs(declared: Any, abstract: State) -> Any:
    """PartitionSpec of every array of a state, from the axes declared beside its parameters."""

    def parameter_spec(parameter: nnx.Variable) -> PartitionSpec:
        stacked = ("layers",) if len(parameter.shape) > len(parameter.axes) else ()
        return spec(*stacked, *parameter.axes)

    return mirror_specs(abstract, map_parameters(parameter_spec, declared))


def mirror_specs(tree: Any, parameter_specs: Any) -> Any:
    """PartitionSpecs of a state: a leaf whose path ends like a parameter's takes its spec."""
    by_path = dict(jax.tree_util.tree_leaves_with_path(parameter_specs, is_leaf=is_spec))

    def find(path: tuple[Any, ...], _: Any) -> PartitionSpec:
        tails = (by_path.get(path[i:]) for i in range(len(path)))
        return next((found for found in tails if found is not None), PartitionSpec())

    return jax.tree_util.tree_map_with_path(find, tree)
