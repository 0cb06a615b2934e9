"""The low-rank metric of NUTS, from draws and their gradients. Draws nothing itself.

The inverse mass matrix that brings the gradients of a density nearest to those of a standard normal
one (Fisher divergence, arXiv:2603.18845). Of a normal density it is nearly the covariance, once
there are more draws than parameters. It is a diagonal and a correction of low rank; NumPyro takes
it as a dense matrix, so that it pays up to some thousand parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpyro.infer.hmc_util import build_adaptation_schedule

CUTOFF = 2.0  # a direction that the diagonal scales wrongly by less is left as it is
PRIOR_DRAWS = 1.0  # that weigh for the diagonal, so that few draws do not bend it
type Moments = dict[str, Array]
"""Number, means and sums of squares and products of draws and gradients."""


def no_moments(size: int) -> Moments:
    """Of `size` parameters and no draw."""
    zeros = {"mean": jnp.zeros((2, size)), "squares": jnp.zeros((2, size, size))}
    return {"count": jnp.zeros(())} | zeros


def with_draw(moments: Moments, z: Float[Array, " D"], gradient: Float[Array, " D"]) -> Moments:
    """Welford's update."""
    new, count = jnp.stack([z, gradient]), moments["count"] + 1
    before = new - moments["mean"]
    mean = moments["mean"] + before / count
    products = before[:, :, None] * (new - mean)[:, None, :]
    return {"count": count, "mean": mean, "squares": moments["squares"] + products}


def inverse_mass(moments: Moments) -> Float[Array, "D D"]:
    """The metric that the moments of a window ask for; the identity where they ask for nonsense."""
    covariances = moments["squares"] / jnp.maximum(moments["count"] - 1, 1)
    variances = jax.vmap(jnp.diagonal)(covariances)
    # The scale at which position and gradient have the same variance.
    scale = jnp.clip((variances[0] / variances[1]) ** 0.25, 1e-10, 1e10)
    both = jnp.stack([jnp.outer(scale, scale) ** -1, jnp.outer(scale, scale)]) * covariances
    size, count = scale.size, moments["count"]
    # Scaled, both diagonals are the same; shrunk towards it, not towards 1.
    share = count / (count + PRIOR_DRAWS)
    both = share * both + (1 - share) * jax.vmap(jnp.diag)(jax.vmap(jnp.diagonal)(both))
    value, vector = jnp.linalg.eigh(_geometric_mean(*both))
    far = (value > CUTOFF) | (value < 1 / CUTOFF)
    correction = (vector * jnp.where(far, value - 1, 0.0)) @ vector.T
    found = jnp.outer(scale, scale) * (jnp.eye(size) + correction)
    return jnp.where(jnp.isfinite(found).all(), found, jnp.eye(size))


def _geometric_mean(draws: Float[Array, "D D"], gradients: Float[Array, "D D"]) -> Array:
    """A with A gradients A = draws: draws^½ (draws^½ gradients draws^½)^-½ draws^½."""
    root = _power(draws, 0.5)
    return root @ _power(root @ gradients @ root, -0.5) @ root


def _power(matrix: Float[Array, "D D"], power: float) -> Float[Array, "D D"]:
    value, vector = jnp.linalg.eigh(matrix)
    least = value[-1] * 1e-6 + 1e-12  # rounding
    return (vector * jnp.maximum(value, least) ** power) @ vector.T


def window_ends(warmup: int) -> tuple[int, ...]:
    """The last draw before NumPyro adapts its metric, and those after which it changes it."""
    return tuple(window.end for window in build_adaptation_schedule(warmup)[:-1])


def adapt(
    state: Any, moments: Moments, number: Array, ends: Int[Array, " window"]
) -> tuple[Any, Moments]:
    """NumPyro's state after draw `number` and the moments with it; at an end, with a new metric.

    Moments start anew at every end; at the first, they are of a chain that has not arrived, and
    give no metric. The number is the same in all chains, so that those that run together compute
    no metric but at the ends. The step size adapts to it during the next window.
    """
    if not ends.size:  # a warm-up of a few draws, in which NumPyro adapts no metric either
        return state, moments
    z, gradient = (ravel(tree) for tree in (state.z, state.z_grad))
    moments = with_draw(moments, z, gradient)

    def renew() -> tuple[Any, Moments]:
        new = adapted(state, inverse_mass(moments))
        has_arrived = number > ends[0]
        kept = jax.tree.map(lambda a, b: jnp.where(has_arrived, a, b), new, state)
        return kept, no_moments(z.size)

    at_end = jnp.isin(number, ends)
    return jax.lax.cond(at_end, renew, lambda: (state, moments))


def ravel(tree: dict[str, Array]) -> Float[Array, " D"]:
    """In NumPyro's order of a dense metric."""
    return jnp.concatenate([tree[name].reshape(-1) for name in sorted(tree)])


def adapted(state: Any, inverse: Float[Array, "D D"]) -> Any:
    """A state of NumPyro's HMC with another inverse mass matrix, if that is one."""
    # The square root of the mass matrix, as NumPyro makes it.
    upper = jnp.linalg.cholesky(inverse[::-1, ::-1])[::-1, ::-1].T
    root = jax.scipy.linalg.solve_triangular(upper, jnp.eye(len(inverse)), lower=True)
    old = state.adapt_state

    def like(before: Any, matrix: Array) -> Any:
        return jax.tree.map(lambda x: jnp.where(jnp.isfinite(root).all(), matrix, x), before)

    return state._replace(
        adapt_state=old._replace(
            inverse_mass_matrix=like(old.inverse_mass_matrix, inverse),
            mass_matrix_sqrt=like(old.mass_matrix_sqrt, root),
            mass_matrix_sqrt_inv=like(old.mass_matrix_sqrt_inv, upper),
        )
    )
