"""Paths, parameterisations and weights against closed forms and the papers' formulas."""

import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ..config import ObjectiveConfig, ObjectiveName
from ..objectives import (
    COSINE,
    EDM,
    LINEAR,
    OBJECTIVES,
    Path,
    Space,
    apply_network,
    combine,
    loss_weight,
    losses,
    make_denoiser,
    separate,
)
from . import oracle

PATHS = {"linear": LINEAR, "cosine": COSINE, "edm": EDM}
SPACES = typing.get_args(Space.__value__)
SIGMA_DATA = 0.6
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
each_objective = pytest.mark.parametrize("name", OBJECTIVES)


def times(path: Path, count: int = 7) -> jax.Array:
    """Inside the range: at the ends, some spaces do not determine x or eps."""
    return path.spaced(jnp.linspace(0.02, 0.98, count))


def pairs(count: int = 7) -> tuple[jax.Array, jax.Array]:
    draws = np.random.default_rng(0).normal(size=(2, count, *oracle.SHAPE))
    return jnp.asarray(draws[0] * SIGMA_DATA), jnp.asarray(draws[1])


def noised(path: Path, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    t = t[:, None, None, None]
    return path.alpha(t) * x + path.sigma(t) * eps


def test_every_objective_has_a_row() -> None:
    assert set(OBJECTIVES) == set(typing.get_args(ObjectiveName.__value__))


@each_path
def test_a_path_runs_from_data_to_noise(path: Path) -> None:
    with jax.enable_x64(True):
        assert path.alpha(jnp.zeros(())) == 1
        assert path.sigma(jnp.zeros(())) == 0
        ends = path.spaced(jnp.array([0.0, 1.0]))
        np.testing.assert_allclose(ends, [path.least, path.greatest], rtol=1e-12)
        t = times(path)
        ratio = path.sigma(t) / path.alpha(t)
        assert (jnp.diff(ratio) > 0).all()
        np.testing.assert_allclose(path.time_at(jnp.log(ratio)), t, rtol=1e-12)
        least = path.sigma(jnp.array(path.least)) / path.alpha(jnp.array(path.least))
        np.testing.assert_allclose(least, 0.002, rtol=3e-3)
        for steps in (1, 2, 9):
            grid = path.grid(steps)
            assert grid.shape == (steps + 1,)
            assert grid[0] == pytest.approx(path.greatest)
            assert grid[-1] == 0
            assert (jnp.diff(grid) < 0).all()


def test_the_formulas_of_the_paths() -> None:
    with jax.enable_x64(True):
        t = jnp.linspace(0.1, 0.9, 5)
        np.testing.assert_allclose([LINEAR.alpha(t), LINEAR.sigma(t)], [1 - t, t])
        angles = np.linspace(0.1, 0.9, 5) * np.pi / 2
        expected = [np.cos(angles), np.sin(angles)]
        np.testing.assert_allclose([COSINE.alpha(t), COSINE.sigma(t)], expected)
        np.testing.assert_allclose([EDM.alpha(t), EDM.sigma(t)], [jnp.ones(5), t])
        np.testing.assert_allclose(math.tan(COSINE.greatest * math.pi / 2), 80)
        np.testing.assert_allclose(LINEAR.grid(4), [1, 0.75, 0.5, 0.25, 0])
        np.testing.assert_allclose(COSINE.grid(2), np.array([1, 0.5, 0]) * COSINE.greatest)
        i, n = np.arange(18), 18  # arXiv:2206.00364, equation 5
        sigmas = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        np.testing.assert_allclose(EDM.grid(18), [*sigmas, 0], rtol=1e-9)
        np.testing.assert_allclose(EDM.condition(t), np.log(t) / 4)
        np.testing.assert_allclose(LINEAR.condition(t), t)


@each_path
def test_spaces_are_what_they_are_called(path: Path) -> None:
    with jax.enable_x64(True):
        (x, eps), t, h = pairs(), times(path), 1e-6
        column = t[:, None, None, None]
        of = {space: combine(path, space, x, eps, t, SIGMA_DATA) for space in SPACES}
        np.testing.assert_array_equal(of["x"], x)
        np.testing.assert_array_equal(of["eps"], eps)
        np.testing.assert_allclose(of["score"], -eps / path.sigma(column))
        slope = (noised(path, x, eps, t + h * t) - noised(path, x, eps, t - h * t)) / (2 * h)
        np.testing.assert_allclose(of["v"] * column, slope, rtol=1e-7, atol=1e-8)
        # EDM's, of x_t / alpha and its noise level: x = c_skip x_t + c_out F.
        level = path.sigma(column) / path.alpha(column)
        c_skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
        c_out = level * SIGMA_DATA / jnp.sqrt(level**2 + SIGMA_DATA**2)
        expected = (x - c_skip * (x + level * eps)) / c_out
        np.testing.assert_allclose(of["F"], expected, rtol=1e-7, atol=1e-8)


@each_path
@pytest.mark.parametrize("source", SPACES)
def test_predictions_go_round(path: Path, source: Space) -> None:
    with jax.enable_x64(True):
        (x_t, prediction), t = pairs(), times(path)
        estimates = separate(path, source, x_t, prediction, t, SIGMA_DATA)
        np.testing.assert_allclose(noised(path, *estimates, t), x_t, rtol=1e-8, atol=1e-9)
        for target in SPACES:
            there = combine(path, target, *estimates, t, SIGMA_DATA)
            back = separate(path, target, x_t, there, t, SIGMA_DATA)
            again = combine(path, source, *back, t, SIGMA_DATA)
            np.testing.assert_allclose(again, prediction, rtol=1e-7, atol=1e-8)


@each_path
def test_the_score_of_a_mixture_is_its_denoiser(path: Path) -> None:
    with jax.enable_x64(True):
        mixture, x_t = oracle.mixture(), pairs()[0]

        @jax.jit
        @jax.grad
        def score_of(x: jax.Array, t: jax.Array) -> jax.Array:
            return mixture.noised(path, t).log_density(x).sum()

        estimates = jax.jit(lambda x_t, t: oracle.estimates(mixture, path, x_t, t))
        for t in times(path):
            score = score_of(x_t, t)
            found = separate(path, "score", x_t, score, t, SIGMA_DATA)
            expected = estimates(x_t, t)
            # x_hat from a score takes a difference of numbers 80 times as large, at most.
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-7, atol=1e-8)
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-7, atol=1e-8)


def test_edm_preconditioning_is_the_papers() -> None:
    with jax.enable_x64(True):
        config = ObjectiveConfig(name="edm", sigma_data=SIGMA_DATA)
        x_t = pairs()[0]
        weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)))

        def network(x: jax.Array, noise: jax.Array) -> jax.Array:
            return jnp.sin(x.reshape(-1, 4) @ weights + noise[:, None]).reshape(x.shape)

        for sigma in (0.002, 0.3, 80.0):
            root = math.sqrt(sigma**2 + SIGMA_DATA**2)
            c_skip, c_out = SIGMA_DATA**2 / root**2, sigma * SIGMA_DATA / root
            returned = network(x_t / root, jnp.full(len(x_t), math.log(sigma) / 4))
            x_hat, eps_hat = make_denoiser(config, network)(x_t, jnp.float64(sigma))
            # float32: what `apply_network` makes of the prediction.
            np.testing.assert_allclose(x_hat, c_skip * x_t + c_out * returned, atol=1e-6)
            np.testing.assert_allclose(x_hat + sigma * eps_hat, x_t, atol=1e-9)


@each_objective
def test_a_network_sees_scaled_input_and_its_condition(name: ObjectiveName) -> None:
    config = ObjectiveConfig(name=name, sigma_data=SIGMA_DATA)
    path = OBJECTIVES[name].path
    (x, eps), t = pairs(4096), path.spaced(jnp.linspace(0.02, 0.98, 4096))
    x_t, seen = noised(path, x, eps, t), []

    def network(x: jax.Array, noise: jax.Array) -> jax.Array:
        seen.extend([x, noise])
        return x.astype(jnp.bfloat16)

    assert apply_network(config, network, x_t, t).dtype == jnp.float32
    np.testing.assert_array_equal(seen[1], path.condition(t))
    if name == "edm":  # unit variance in every eighth of the noise levels: 2048 numbers each
        stds = seen[0].reshape(8, -1).std(1)
        np.testing.assert_allclose(stds, 1, atol=4 / math.sqrt(2 * 2048))
    else:
        np.testing.assert_array_equal(seen[0], x_t)
    apply_network(config, network, x_t, t[7])  # one time for all
    np.testing.assert_array_equal(seen[3], jnp.full(4096, path.condition(t[7])))


def linear_network(weights: jax.Array) -> Any:
    return lambda x, noise: (x.reshape(-1, 4) @ weights).reshape(x.shape)


def test_x_prediction_under_a_v_loss_has_the_gradient_of_the_v_loss() -> None:
    config = ObjectiveConfig(name="flow-x")
    (x, eps), t = pairs(), jnp.array([0.002, 0.01, 0.04, 0.06, 0.3, 0.8, 1.0])
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)))

    def explicit(weights: jax.Array) -> jax.Array:
        column = t[:, None, None, None]
        x_t = (1 - column) * x + column * eps
        x_hat = linear_network(weights)(x_t, t)
        least = jnp.maximum(column, 0.05)  # JiT's, in the velocity that is learned and its target
        error = (x_t - x_hat) / least - (x_t - x) / least
        return jnp.mean(error**2, (1, 2, 3))

    def ours(weights: jax.Array) -> jax.Array:
        return losses(config, linear_network(weights), x, eps, t)

    np.testing.assert_allclose(ours(weights), explicit(weights), rtol=1e-5)
    expected = jax.jacobian(explicit)(weights)
    np.testing.assert_allclose(jax.jacobian(ours)(weights), expected, rtol=1e-4, atol=1e-4)


@each_objective
@pytest.mark.parametrize("weight", ["flat", "min-snr", "edm"])
def test_a_weight_means_the_same_in_every_space(name: ObjectiveName, weight: Any) -> None:
    """The loss, computed from x_hat, and from a second formula of each weight."""
    with jax.enable_x64(True):
        config = ObjectiveConfig(name=name, weight=weight, sigma_data=SIGMA_DATA)
        row = OBJECTIVES[name]
        path, (x, eps), t = row.path, pairs(), times(row.path)
        weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32)
        network = linear_network(weights)
        x_t = noised(path, x, eps, t)
        prediction = apply_network(config, network, x_t, t)
        estimates = separate(path, row.predicts, x_t, prediction, t, SIGMA_DATA)
        level = path.sigma(t) / path.alpha(t)
        in_x = {
            "min-snr": jnp.minimum(level**-2, 5.0),
            "edm": (level**2 + SIGMA_DATA**2) / (level * SIGMA_DATA) ** 2,
        }
        if weight == "flat":
            space, factor = row.loss, jnp.where((name == "flow-x") & (t < 0.05), (t / 0.05) ** 2, 1)
        else:
            space, factor = "x", in_x[weight]
        error = combine(path, space, *estimates, t, SIGMA_DATA) - combine(
            path, space, x, eps, t, SIGMA_DATA
        )
        expected = factor * jnp.mean(error**2, (1, 2, 3))
        found = losses(config, network, x, eps, t)
        np.testing.assert_allclose(found, expected, rtol=1e-5)  # predictions are float32


def test_min_snr_weights_are_the_papers() -> None:
    """arXiv:2303.09556, section 3.4: for x, eps and v of a variance-preserving path."""

    def weight(name: ObjectiveName, t: jax.Array) -> jax.Array:
        return loss_weight(ObjectiveConfig(name=name, weight="min-snr", min_snr_gamma=3.0), t)

    t = jnp.linspace(0.05, 0.95, 9)
    snr = 1 / jnp.tan(t * jnp.pi / 2) ** 2
    assert ((snr < 3).any(), (snr > 3).any()) == (True, True)
    clipped = jnp.minimum(snr, 3.0)
    np.testing.assert_allclose(weight("ddpm-eps", t), clipped / snr, rtol=1e-5)
    v = clipped / (snr + 1) / (math.pi / 2) ** 2  # our v is pi/2 times the paper's
    np.testing.assert_allclose(weight("ddpm-v", t), v, rtol=1e-5)
    snr = ((1 - t) / t) ** 2
    np.testing.assert_allclose(weight("flow-x", t), jnp.minimum(snr, 3.0), rtol=1e-5)


def test_a_flat_loss_of_f_has_edms_weight() -> None:
    sigma = EDM.spaced(jnp.linspace(0, 1, 9))
    for weight in ("flat", "edm"):
        config = ObjectiveConfig(name="edm", weight=weight)
        np.testing.assert_array_equal(loss_weight(config, sigma), jnp.ones(9))
    root = jnp.sqrt(sigma**2 + 0.5**2)
    c_out, weight = sigma * 0.5 / root, root**2 / (sigma * 0.5) ** 2
    np.testing.assert_allclose(c_out**2 * weight, 1, rtol=1e-5)  # so the paper says


@each_objective
def test_the_target_has_no_loss(name: ObjectiveName) -> None:
    config, row = ObjectiveConfig(name=name), OBJECTIVES[name]
    (x, eps), t = pairs(), times(row.path)
    target = combine(row.path, row.predicts, x, eps, t, config.sigma_data)
    found = losses(config, lambda x, noise: target + jnp.arange(7)[:, None, None, None], x, eps, t)
    expected = loss_weight(config, t) * jnp.arange(7) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)
