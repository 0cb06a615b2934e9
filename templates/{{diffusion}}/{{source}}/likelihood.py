"""Exact log-likelihood of images under the probability-flow ODE (arXiv:2011.13456, section 4.3).

Trains nothing, and knows neither networks nor files.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .objectives import Denoiser, Images, Path, rate
from .samplers import Scalar, velocity

type PerImage = Float[Array, " B"]
type Ends = tuple[Images, PerImage]
"""x and what it has gathered on the way."""


def log_likelihood(
    path: Path,
    denoise: Denoiser,
    x: Images,
    keys: Key[Array, " B"],
    *,
    steps: int = 20,
    probes: int = 0,
    chunk: int = 16,
) -> PerImage:
    """Nats of each image: log density of the prior at the end of the ODE, plus the divergence.

    RK4 in `steps` steps, equal in the root of the sampler's spacing: near the data, where images
    lie on levels, the field is steep. It starts at the path's least time, not at 0,
    where eps_hat is undefined: what is returned is the log density of the data with noise of 0.002
    added, a quarter of an 8-bit level. The prior N(0, sigma^2) leaves out what the path keeps of
    the data: nothing on the linear path, on the others an error of up to |E[x]| / 80 nats an image
    (one standard deviation), whose mean over the images is about 0.

    probes: of Hutchinson's estimate of the divergence, which is unbiased; 0 = the exact one, as
    dear as height * width * channels probes. chunk: probes at once. keys: one an image, of its
    probes. The denoiser is differentiated backward, as cuDNN's attention and custom gradients
    have no forward rule.
    """
    shape, dims = x.shape, math.prod(x.shape[1:])

    def time(u: Scalar) -> Scalar:
        return path.spaced(u**2)

    def probe(index: Array) -> Images:
        if not probes:
            return jnp.broadcast_to(jax.nn.one_hot(index, dims).reshape(shape[1:]), shape)
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        return jax.vmap(lambda key: jax.random.rademacher(key, shape[1:], x.dtype))(folded)

    def rates(state: Ends, u: Scalar) -> Ends:
        """Of x and of the integral of the divergence, with respect to u."""

        def field(x: Images) -> Images:
            return rate(time, u) * velocity(path, *denoise(x, time(u)), time(u))

        slope, pull = jax.vjp(field, state[0])

        def along(index: Array) -> PerImage:
            direction = probe(index)
            return jnp.sum(pull(direction)[0] * direction, axis=(1, 2, 3))

        traces = jax.lax.map(along, jnp.arange(probes or dims), batch_size=chunk)
        return slope, traces.sum(0) / (probes or 1)

    alpha = path.alpha(jnp.asarray(path.least))  # the density of alpha x is alpha^-dims that of x
    start = alpha * x, jnp.full(shape[:1], dims * jnp.log(alpha))
    end, divergence = runge_kutta(rates, start, steps)
    sigma = path.sigma(jnp.asarray(path.greatest))
    prior = jax.scipy.stats.norm.logpdf(end, scale=sigma).sum((1, 2, 3))
    return prior + divergence


def runge_kutta(rates: Callable[[Ends, Scalar], Ends], state: Ends, steps: int) -> Ends:
    """The classical method of order 4, from 0 to 1 in equal steps."""
    stages = jnp.array([0, 0.5, 0.5, 1]), jnp.array([1, 2, 2, 1]) / 6

    def moved(state: Ends, by: Scalar, slope: Ends) -> Ends:
        return jax.tree.map(lambda x, y: x + by * y, state, slope)

    def step(state: Ends, u: Scalar) -> tuple[Ends, None]:
        # A scan over the stages: the network is compiled once, not four times.
        def stage(carry: tuple[Ends, Ends], row: tuple[Scalar, Scalar]) -> tuple[Any, None]:
            slope, end = carry
            slope = rates(moved(state, row[0] / steps, slope), u + row[0] / steps)
            return (slope, moved(end, row[1] / steps, slope)), None

        still = jax.tree.map(jnp.zeros_like, state)
        return jax.lax.scan(stage, (still, state), stages)[0][1], None

    return jax.lax.scan(step, state, jnp.arange(steps) / steps)[0]


def bits_per_dimension(nats: PerImage, dims: int, levels: int) -> PerImage:
    """Bits a number of images on `levels` levels, from `log_likelihood` of what is dequantised.

    That is x = 2 (level + U) / levels - 1 with U uniform in [0, 1): the mean over U is an upper
    bound of the bits that the levels themselves take (arXiv:1511.01844, section 3.1).
    """
    return -(nats / dims + math.log(2 / levels)) / math.log(2)
