"""Guidance against closed forms: what it extrapolates, where it acts, and what it never asks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..objectives import LINEAR, Path
from ..samplers import draw_noise, guided, image_keys, mix
from . import oracle
from .test_samplers import MIXTURE, PATHS, each_path, run

OTHER = oracle.mixture(seed=1)


@each_path
def test_guidance_extrapolates_both_estimates(path: Path) -> None:
    strong, weak = (jax.jit(oracle.denoiser(of, path)) for of in (MIXTURE, OTHER))
    x = draw_noise(image_keys(jax.random.key(0), jnp.arange(8)), oracle.SHAPE)
    t = path.time_at(jnp.array(0.3))
    found = guided(strong, weak, 2.5, 0.0, 1.0, path)(x, t)
    for i in (0, 1):
        expected = weak(x, t)[i] + 2.5 * (strong(x, t)[i] - weak(x, t)[i])
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    np.testing.assert_allclose(mix(path, *found, t), x, atol=1e-5)
    np.testing.assert_allclose(guided(strong, weak, 0.0, 0.0, 1.0, path)(x, t)[0], weak(x, t)[0])


def test_guidance_of_gaussians_samples_their_extrapolation() -> None:
    """Two Gaussians of equal covariance: the guided ODE is that of a third one in between."""
    means = np.array([[0.2, -0.1, 0.4, 0.0], [0.5, 0.3, 0.1, -0.2]])
    weak, strong = (oracle.ball(mean, 0.3) for mean in means)
    beyond = oracle.ball(means[0] + 1.7 * (means[1] - means[0]), 0.3)
    of = functools.partial(oracle.denoiser, path=LINEAR)
    found = run("heun", LINEAR, 10, denoise=guided(of(strong), of(weak), 1.7, 0, 1, LINEAR))
    np.testing.assert_allclose(found, run("heun", LINEAR, 10, denoise=of(beyond)), atol=1e-5)


def test_guidance_of_1_is_the_conditional_prediction() -> None:
    strong = oracle.denoiser(MIXTURE, LINEAR)

    def never(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise AssertionError("the weak network was evaluated")

    found = run("heun", LINEAR, 5, denoise=guided(strong, never, 1.0, 0.0, 1.0, LINEAR))
    np.testing.assert_array_equal(found, run("heun", LINEAR, 5))


@each_path
def test_guidance_acts_within_its_interval(path: Path) -> None:
    asked = []
    strong = jax.jit(oracle.denoiser(MIXTURE, path))

    def weak(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda t: asked.append(float(t)), t)
        return oracle.estimates(OTHER, path, x, t)

    denoise = jax.jit(guided(strong, weak, 3.0, 0.35, 0.7, path))
    x = draw_noise(image_keys(jax.random.key(0), jnp.arange(8)), oracle.SHAPE)
    for share in (0.1, 0.34, 0.36, 0.5, 0.69, 0.71, 0.99):  # of noise: on every path the same
        t = path.time_at(jnp.log(share / (1 - share)))
        for found, alone in zip(denoise(x, t), strong(x, t), strict=True):
            is_strong = np.allclose(found, alone, atol=1e-5)
            assert is_strong == (not 0.35 <= share <= 0.7)
    jax.effects_barrier()
    assert len(asked) == 3
    asked.clear()
    run("euler", path, 12, denoise=denoise)
    jax.effects_barrier()
    grid = path.grid(12)[:-1]
    share = path.sigma(grid) / (path.alpha(grid) + path.sigma(grid))
    expected = grid[(share >= 0.35) & (share <= 0.7)]
    assert len(expected) > 0
    np.testing.assert_allclose(sorted(asked, reverse=True), expected, rtol=1e-6)


def test_guidance_acts_at_both_ends_of_a_whole_interval() -> None:
    for path in PATHS.values():
        denoise = guided(
            oracle.denoiser(MIXTURE, path), oracle.denoiser(OTHER, path), 2.0, 0.0, 1.0, path
        )
        x = draw_noise(image_keys(jax.random.key(0), jnp.arange(8)), oracle.SHAPE)
        for t in (path.least, path.greatest):
            plain = oracle.estimates(MIXTURE, path, x, jnp.array(t))[0]
            assert (denoise(x, jnp.array(t))[0] != plain).any()
