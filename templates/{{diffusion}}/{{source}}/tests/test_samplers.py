"""Samplers against a mixture of Gaussians, whose denoiser is known in closed form."""

import functools
import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import samplers
from ..config import SampleConfig
from ..objectives import COSINE, EDM, LINEAR, Denoiser, Path
from ..samplers import SAMPLERS, Problem, draw_noise, image_keys, sample
from . import oracle

PATHS = {"linear": LINEAR, "cosine": COSINE, "edm": EDM}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
MIXTURE = oracle.mixture()


def run(
    sampler: Any,
    path: Path,
    steps: int,
    count: int = 16,
    denoise: Denoiser | None = None,
    **how: Any,
) -> np.ndarray:
    keys = image_keys(jax.random.key(0), jnp.arange(count))
    config = SampleConfig(sampler=sampler, sampler_steps=steps)
    denoise = denoise or oracle.denoiser(MIXTURE, path)
    call = jax.jit(lambda noise: sample(config, path, denoise, noise, keys, **how))
    return np.asarray(call(draw_noise(keys, oracle.SHAPE)))


def test_every_sampler_has_a_row() -> None:
    choices = typing.get_type_hints(SampleConfig)["sampler"]
    assert set(SAMPLERS) == set(typing.get_args(getattr(choices, "__value__", choices)))


def rms(left: Any, right: Any) -> float:
    return float(np.sqrt(np.mean((left - right) ** 2)))


@functools.cache
def truth(name: str) -> np.ndarray:
    return run("heun", PATHS[name], 4096)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpm++", 2)])
def test_order_of_convergence(name: str, sampler: str, order: float) -> None:
    """The error falls as steps^-order. Measured: Euler 0.98 to 1.01, Heun 1.99 to 2.09."""
    steps = (128, 512) if sampler == "dpm++" else (32, 128)
    if sampler == "dpm++" and name != "edm":
        # Near t = 0 and 1 these grids do not grow finer in the log of signal over noise, in which
        # DPM++ extrapolates: its error is log(steps) / steps^2.
        order = 1.55
    coarse, fine = (rms(run(sampler, PATHS[name], n), truth(name)) for n in steps)
    assert math.log(coarse / fine, 4) == pytest.approx(order, abs=0.15)


def test_adaptive_steps_reach_the_same_images() -> None:
    # Both rates of the cosine path differ from 0. The default tolerance is 1e-4 a step, relative
    # and absolute; errors add up over steps, and from the least time of 0.002 on it is one step
    # of Euler's.
    assert rms(run("adaptive", COSINE, 7), truth("cosine")) < 5e-4


@each_path
@pytest.mark.parametrize("sampler", ["heun", "churn"])  # above, the others go to Heun's images
def test_images_have_the_moments_of_the_mixture(path: Path, sampler: str, monkeypatch: Any) -> None:
    # EDM's 1.003 makes up for networks that take away too much; here nothing does.
    exact = functools.partial(samplers.run_steps, functools.partial(samplers.churn, noise=1.0))
    monkeypatch.setitem(SAMPLERS, "churn", exact)
    # So many steps that the error of a step is lost in that of the count.
    count = 6_000
    x = run(sampler, path, {"heun": 60, "churn": 240}[sampler], count).reshape(count, oracle.DIMS)
    centred = x - MIXTURE.mean()
    products = centred[:, :, None] * centred[:, None]
    # 14 figures at 4 standard errors: one in 1,100 seeds fails by chance; the seed is fixed.
    for found, expected in ((x, MIXTURE.mean()), (products, MIXTURE.covariance())):
        error = np.abs(found.mean(0) - expected) / (found.std(0) / math.sqrt(count))
        assert error.max() < 4, error
    # How dense the mixture is where the images are.
    own, known = (MIXTURE.log_density(jnp.asarray(y)) for y in (x, MIXTURE.draw(count)))
    assert abs(own.mean() - known.mean()) < 4 * math.sqrt(2) * known.std() / math.sqrt(count)


def churned(
    path: Path, level: float, count: int = 2, index: int = 0, amount: float = 40.0, **how: float
) -> tuple[np.ndarray, float]:
    """What the denoiser is asked about first, from pure noise of a level: x_t and sigma / alpha."""
    asked = []

    def denoise(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        asked.append((x, path.sigma(t) / path.alpha(t)))
        return x, x

    now = path.time_at(jnp.log(level))
    keys = image_keys(jax.random.key(0), jnp.arange(count))
    x = path.sigma(now) * draw_noise(keys, oracle.SHAPE)
    problem = Problem(path, denoise, jnp.array([now, now, 0.0]), keys, amount)
    samplers.churn(problem, jnp.array(index), x, x, **how)
    return np.asarray(asked[0][0]), float(asked[0][1])


@each_path
def test_churn_raises_the_noise_of_x_to_that_of_a_time(path: Path) -> None:
    x, level = churned(path, 2.0, 50_000, amount=0.5, noise=1.0)
    assert level == pytest.approx(2 * (1 + 0.5 / 2), rel=1e-4)  # S_churn / N of two steps
    sigma = float(path.sigma(path.time_at(jnp.log(level))))
    assert x.std() == pytest.approx(sigma, rel=4 / math.sqrt(2 * x.size))


def test_churn_keeps_to_edms_limits() -> None:
    assert churned(EDM, 2.0)[1] == pytest.approx(2 * math.sqrt(2), rel=1e-4)
    noise = draw_noise(image_keys(jax.random.key(0), jnp.arange(2)), oracle.SHAPE)
    for level in (0.04, 60.0):
        x, unchanged = churned(EDM, level)
        assert unchanged == pytest.approx(level, rel=1e-4)
        np.testing.assert_allclose(x, level * noise, rtol=1e-5)


def test_churn_draws_anew_for_each_step_and_image() -> None:
    # What is kept of the noise is the same in both steps.
    first, second, silent = (
        churned(EDM, 2.0, index=index, noise=noise)[0].ravel()
        for index, noise in ((0, 1.003), (1, 1.003), (0, 0.0))
    )
    noise = draw_noise(image_keys(jax.random.key(0), jnp.arange(2)), oracle.SHAPE)
    # Two images and two steps have four draws: no two are proportional, nor to the first noise.
    draws = np.stack([first - silent, second - silent, np.ravel(noise)]).reshape(6, 4)
    draws /= np.linalg.norm(draws, axis=1, keepdims=True)
    assert np.abs(draws @ draws.T - np.eye(6)).max() < 0.999
    np.testing.assert_allclose(silent, 2.0 * np.ravel(noise), rtol=1e-6)


@each_sampler
def test_no_sampler_asks_about_t_0_and_the_trajectory_ends_at_the_image(sampler: str) -> None:
    exact = oracle.denoiser(MIXTURE, LINEAR)

    def denoise(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_hat, eps_hat = exact(x, t)
        return x_hat, jnp.where(t > 0, eps_hat, jnp.nan)

    estimates = run(sampler, LINEAR, 6, denoise=denoise, keep=True)
    assert estimates.shape == (6, 16, *oracle.SHAPE)
    np.testing.assert_allclose(estimates[-1], run(sampler, LINEAR, 6), atol=1e-5)
    # The estimate from nothing but noise, which is also what one step gives.
    x = draw_noise(image_keys(jax.random.key(0), jnp.arange(16)), oracle.SHAPE)
    np.testing.assert_allclose(estimates[0], exact(x, jnp.array(1.0))[0], atol=1e-5)
    if sampler != "adaptive":
        np.testing.assert_allclose(run(sampler, LINEAR, 1), estimates[0], atol=1e-5)


def test_heun_is_edms_algorithm_1() -> None:
    denoise, t = jax.jit(oracle.denoiser(MIXTURE, EDM)), EDM.grid(8)
    keys = image_keys(jax.random.key(0), jnp.arange(16))
    x = t[0] * draw_noise(keys, oracle.SHAPE)
    for i in range(8):
        d = (x - denoise(x, t[i])[0]) / t[i]
        new = x + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            d_new = (new - denoise(new, t[i + 1])[0]) / t[i + 1]
            new = x + (t[i + 1] - t[i]) * (d / 2 + d_new / 2)
        x = new
    np.testing.assert_allclose(run("heun", EDM, 8), x, atol=1e-4)  # from numbers of about 80


def test_euler_on_the_cosine_path_is_ddim() -> None:
    """Exact for data that are all alike, where Euler's step in t is not."""
    x, t = jnp.full((1, *oracle.SHAPE), 0.3), jnp.array([0.9, 0.2])
    denoise = jax.jit(oracle.denoiser(oracle.ball(np.full(4, 0.5), 1e-6), COSINE))
    problem = Problem(COSINE, denoise, t, image_keys(jax.random.key(0), jnp.arange(1)))
    found, x_hat = samplers.euler(problem, jnp.array(0), x, x)
    eps = (x - 0.5 * COSINE.alpha(t[0])) / COSINE.sigma(t[0])
    expected = 0.5 * COSINE.alpha(t[1]) + COSINE.sigma(t[1]) * eps
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(x_hat, 0.5, rtol=1e-5)


def test_dpm_steps_are_the_papers() -> None:
    """arXiv:2211.01095, algorithm 2, in its own letters, on times that are not evenly spaced."""
    t = jnp.array([0.95, 0.7, 0.55, 0.2, 0.0])
    denoise = jax.jit(oracle.denoiser(MIXTURE, COSINE))
    keys = image_keys(jax.random.key(0), jnp.arange(3))
    problem = Problem(COSINE, denoise, t, keys)
    x = draw_noise(keys, oracle.SHAPE)
    lam = jnp.log(COSINE.alpha(t) / COSINE.sigma(t))
    last = jnp.zeros_like(x)
    for i in range(3):
        theirs = denoise(x, t[i])[0]
        h = lam[i + 1] - lam[i]
        combined = theirs
        if i:
            r = (lam[i] - lam[i - 1]) / h
            combined = (1 + 1 / (2 * r)) * theirs - 1 / (2 * r) * last
        expected = COSINE.sigma(t[i + 1]) / COSINE.sigma(t[i]) * x
        expected -= COSINE.alpha(t[i + 1]) * (jnp.exp(-h) - 1) * combined
        found, x_hat = samplers.dpm_solver(problem, jnp.array(i), x, last)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_array_equal(x_hat, theirs)
        x, last = found, x_hat


def test_noise_and_images_depend_on_the_index_alone() -> None:
    key, indices = jax.random.key(5), jnp.arange(8, 24)
    keys = image_keys(key, indices)
    whole = draw_noise(keys, oracle.SHAPE)
    parts = [draw_noise(image_keys(key, part), oracle.SHAPE) for part in (indices[:5], indices[5:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(np.unique(np.asarray(whole))) == whole.size
    many = draw_noise(image_keys(key, jnp.arange(20_000)), oracle.SHAPE)
    assert abs(many.mean()) < 4 / math.sqrt(many.size)
    assert abs(many.std() - 1) < 4 / math.sqrt(2 * many.size)

    config = SampleConfig(sampler="churn", sampler_steps=4)
    denoise = oracle.denoiser(MIXTURE, LINEAR)

    @jax.jit
    def images(indices: jax.Array) -> jax.Array:
        keys = image_keys(key, indices)
        return sample(config, LINEAR, denoise, draw_noise(keys, oracle.SHAPE), keys)

    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(indices, NamedSharding(mesh, PartitionSpec("data")))
    assert len(images(spread).sharding.device_set) == 8
    np.testing.assert_allclose(images(spread), images(indices), atol=1e-6)
    np.testing.assert_allclose(images(indices[:4]), images(indices)[:4], atol=1e-6)
