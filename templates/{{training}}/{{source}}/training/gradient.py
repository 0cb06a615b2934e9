"""Gradient of a batch that is split into micro-batches. Updates nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

type Sums = dict[str, Float[Array, ""]]
type LossFn = Callable[[PyTree, PyTree], tuple[Float[Array, ""], Sums]]
"""(parameters, micro-batch) -> (objective summed over its parts, {"weight": how many, ...sums})."""


def mean_gradient(loss_fn: LossFn, parameters: PyTree, batch: PyTree) -> tuple[Sums, PyTree]:
    """Means over all micro-batches (the leading axis of `batch`), and the objective's gradient.

    Sums and weights are added up before the one division: any split of a batch gives the same
    gradient, however unevenly its weights fall.
    """
    grad_fn = jax.grad(loss_fn, has_aux=True)

    def add(total: Any, micro_batch: PyTree) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grad_fn(parameters, micro_batch)), None

    first = jax.tree.map(lambda x: x[0], batch)
    if jax.tree.leaves(batch)[0].shape[0] == 1:
        gradient, sums = grad_fn(parameters, first)
    else:  # from zeros: a first part outside the scan would compile the model twice
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(grad_fn, parameters, first))
        (gradient, sums), _ = jax.lax.scan(add, zeros, batch)
    weight = jnp.maximum(sums.pop("weight"), 1.0)
    return jax.tree.map(lambda x: x / weight, (sums, gradient))
