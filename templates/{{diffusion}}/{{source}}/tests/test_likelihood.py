"""The likelihood of a mixture of Gaussians, against its density in closed form."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ..likelihood import bits_per_dimension, log_likelihood
from ..objectives import COSINE, EDM, LINEAR, Denoiser, Path
from ..samplers import image_keys
from . import oracle

PATHS = {"linear": LINEAR, "cosine": COSINE, "edm": EDM}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
MIXTURE = oracle.mixture()
# Where alpha is above 0 at the greatest time, the prior leaves out the mean of the data.
MIXTURE = replace(MIXTURE, means=MIXTURE.means - MIXTURE.mean())


def nats(
    path: Path,
    x: Any,
    mixture: oracle.Mixture = MIXTURE,
    denoise: Denoiser | None = None,
    first: int = 0,
    **how: Any,
) -> np.ndarray:
    keys = image_keys(jax.random.key(0), jnp.arange(first, first + len(x)))
    denoise = denoise or oracle.denoiser(mixture, path)
    return np.asarray(jax.jit(lambda x: log_likelihood(path, denoise, x, keys, **how))(x))


@each_path
def test_likelihood_is_the_mixtures(path: Path) -> None:
    x = MIXTURE.draw(32)
    expected = MIXTURE.log_density(jnp.asarray(x))
    assert np.std(expected) > 1
    # Measured: 0.0003, and 0.0014 on EDM's path, which is the longest.
    np.testing.assert_allclose(nats(path, x, steps=40), expected, atol=0.005)


def test_likelihood_converges_with_the_fourth_power_of_the_steps() -> None:
    x = MIXTURE.draw(16)
    at = {steps: nats(EDM, x, steps=steps) for steps in (20, 40, 160)}
    coarse, fine = (np.sqrt(np.mean((at[n] - at[160]) ** 2)) for n in (20, 40))
    assert math.log2(coarse / fine) == pytest.approx(4, abs=0.4)


@each_path
def test_likelihood_is_that_of_data_with_the_noise_of_the_least_time(path: Path) -> None:
    """On data that are narrower than that noise, where it shows."""
    level = float(path.sigma(jnp.array(path.least)) / path.alpha(jnp.array(path.least)))
    narrow, widened = (oracle.ball(np.zeros(4), s) for s in (0.001, math.hypot(0.001, level)))
    x = 0.002 * np.random.default_rng(0).normal(size=(4, *oracle.SHAPE)).astype(np.float32)
    found = nats(path, x, narrow, steps=400)
    np.testing.assert_allclose(found, widened.log_density(jnp.asarray(x)), atol=0.05)
    assert np.abs(found - narrow.log_density(jnp.asarray(x))).max() > 1


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_twenty_steps_do_for_narrow_data(path: Path) -> None:
    """Near it the field is steep: steps that are equal in t miss by 0.5 nats, and by 0.8."""
    x = 0.02 * np.random.default_rng(0).normal(size=(8, *oracle.SHAPE)).astype(np.float32)
    expected = oracle.ball(np.zeros(4), math.hypot(0.02, 0.002)).log_density(jnp.asarray(x))
    found = nats(path, x, oracle.ball(np.zeros(4), 0.02), steps=20)
    np.testing.assert_allclose(found, expected, atol=0.02)  # measured: 0.002 and 0.005


def test_random_probes_are_unbiased() -> None:
    x = np.repeat(MIXTURE.draw(1), 2000, axis=0)  # as often with other keys
    exact = nats(LINEAR, x[:1], steps=6)
    stds = []
    for probes in (1, 3):
        drawn = nats(LINEAR, x, steps=6, probes=probes)
        error = drawn.std() / math.sqrt(len(drawn))
        assert abs(drawn.mean() - exact[0]) < 4 * error
        stds.append(drawn.std())
    # The standard error of a standard deviation is about 2 % (1/sqrt(2 * 2000)), and more for one
    # probe, whose distribution has heavier tails.
    assert stds[0] / stds[1] == pytest.approx(math.sqrt(3), rel=0.1)


def test_any_split_of_the_batch_or_the_probes_gives_the_same() -> None:
    x = MIXTURE.draw(6)
    whole = nats(LINEAR, x, steps=4, probes=2)
    np.testing.assert_allclose(
        nats(LINEAR, x[4:], first=4, steps=4, probes=2), whole[4:], atol=1e-5
    )
    exact = nats(LINEAR, x, steps=4)
    np.testing.assert_allclose(nats(LINEAR, x, steps=4, chunk=3), exact, atol=1e-5)


def test_a_denoiser_may_have_a_backward_rule_alone() -> None:
    @jax.custom_vjp
    def through(x: jax.Array) -> jax.Array:
        return x

    through.defvjp(lambda x: (x, None), lambda _, gradient: (gradient,))
    exact = oracle.denoiser(MIXTURE, LINEAR)
    x = MIXTURE.draw(3)
    found = nats(LINEAR, x, denoise=lambda x, t: exact(through(x), t), steps=4)
    np.testing.assert_allclose(found, nats(LINEAR, x, steps=4), atol=1e-6)


def test_bits_of_known_densities() -> None:
    # Uniform over [-1, 1]^D: all levels alike.
    nats = jnp.full((2,), -64 * math.log(2))
    np.testing.assert_allclose(bits_per_dimension(nats, 64, 256), 8.0, rtol=1e-6)
    # A density that is constant over each level's interval, of width 2/17 in x.
    shares = np.random.default_rng(0).dirichlet(np.ones(17))
    nats = jnp.asarray(np.log(shares * 17 / 2), jnp.float32)
    np.testing.assert_allclose(bits_per_dimension(nats, 1, 17), -np.log2(shares), rtol=1e-5)
