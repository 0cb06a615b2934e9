"""Accumulating gradients changes nothing, however unevenly the weights fall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from ..gradient import Sums, mean_gradient


def loss_fn(parameters: Array, rows: Array) -> tuple[Array, Sums]:
    """Squared error of the rows that count, as many in each part as their last column says."""
    counted = rows[:, 2]
    loss = (counted * (rows[:, :2] @ parameters - 1) ** 2).sum()
    return 2 * loss, {"loss": loss, "weight": counted.sum()}


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_accumulation_equals_one_large_batch(parts: int) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    rows[:, 2] = [1, 1, 1, 1, 0, 1, 0, 0]  # the last of four parts weighs nothing
    weights = jnp.array([0.5, -2.0])
    means, gradient = mean_gradient(loss_fn, weights, rows.reshape(parts, -1, 3))
    counted = rows[rows[:, 2] == 1, :2]
    errors = counted @ np.asarray(weights) - 1
    np.testing.assert_allclose(means["loss"], (errors**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 4 * (errors[:, None] * counted).mean(0), rtol=1e-5)
    assert set(means) == {"loss"}


def test_accumulation_compiles_the_model_once() -> None:
    def program(parts: int) -> str:
        rows = jnp.ones((parts, 8 // parts, 3))
        return jax.jit(mean_gradient, static_argnums=0).lower(loss_fn, jnp.ones(2), rows).as_text()

    assert program(4).count("dot_general") == program(1).count("dot_general") > 0
    assert ("while" in program(4), "while" in program(1)) == (True, False)


def test_nothing_that_counts_is_no_gradient() -> None:
    _, gradient = mean_gradient(loss_fn, jnp.ones(2), jnp.zeros((2, 3, 3)))
    assert not jax.tree.reduce(jnp.logical_or, jax.tree.map(jnp.any, gradient))
