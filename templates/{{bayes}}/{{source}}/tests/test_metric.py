"""The metric of a normal density is its covariance, and a correlated one takes fewer gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from .. import metric
from ..metric import inverse_mass, no_moments, ravel, window_ends, with_draw
from .small import run, sampler_of

SIZE = 8


def covariance(seed: int = 0) -> np.ndarray:
    """Two directions of 8 that hold almost all of the variance, and scales from 1/30 to 30."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(SIZE, 2))
    scale = 10 ** random.uniform(-1.5, 1.5, SIZE)
    return np.outer(scale, scale) * (directions @ directions.T + 0.005 * np.eye(SIZE))


def moments_of(draws: int, true: np.ndarray) -> metric.Moments:
    random, mean = np.random.default_rng(1), np.arange(SIZE)
    z = random.multivariate_normal(mean, true, size=draws)
    gradients = np.linalg.solve(true, (z - mean).T).T

    def add(moments, pair):
        return with_draw(moments, *pair), None

    pairs = jnp.asarray(z, jnp.float32), jnp.asarray(gradients, jnp.float32)
    return jax.lax.scan(add, no_moments(SIZE), pairs)[0]


def spread_of(found: np.ndarray, true: np.ndarray) -> float:
    """Largest over smallest scale of the density as the metric sees it; 1 is perfect."""
    values = np.linalg.eigvals(np.linalg.solve(np.asarray(found, float), true)).real
    return float(values.max() / values.min())


def test_moments_are_those_of_numpy() -> None:
    moments = moments_of(40, covariance())
    random = np.random.default_rng(1)
    z = random.multivariate_normal(np.arange(SIZE), covariance(), size=40)
    assert moments["count"] == 40
    np.testing.assert_allclose(moments["squares"][0] / 39, np.cov(z.T), rtol=1e-3, atol=1e-3)


def test_a_few_draws_tell_the_covariance_of_a_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric, "PRIOR_DRAWS", 0.0)
    monkeypatch.setattr(metric, "CUTOFF", 1.0)
    for seed in range(3):
        true = covariance(seed)
        assert spread_of(inverse_mass(moments_of(SIZE + 4, true)), true) < 1.05


def test_it_is_far_nearer_than_the_diagonal_and_never_nonsense() -> None:
    true = covariance()
    found = inverse_mass(moments_of(100, true))
    np.testing.assert_allclose(found, np.asarray(found).T, rtol=1e-3, atol=1e-4)
    assert spread_of(found, true) < 0.02 * spread_of(np.diag(np.diag(true)), true)
    for few in (0, 1, 2):
        found = inverse_mass(moments_of(few, true))
        assert (np.linalg.eigvalsh(np.asarray(found, float)) > 0).all(), few
    np.testing.assert_array_equal(inverse_mass(no_moments(SIZE)), np.eye(SIZE))


def test_windows_are_numpyros() -> None:
    assert window_ends(1000) == (74, 99, 149, 249, 449, 949)
    assert all(end < 50 for end in window_ends(50))


def correlated(sizes):
    root = np.linalg.cholesky(covariance()).astype(np.float32)
    numpyro.sample("a", dist.MultivariateNormal(jnp.zeros(SIZE), scale_tril=root))
    numpyro.sample("scale", dist.HalfNormal(1.0))


@pytest.mark.parametrize("layout", ["map", "vmap"])
def test_a_correlated_density_takes_fewer_gradients(layout: str) -> None:
    @functools.cache
    def leapfrogs(name: str) -> float:
        _, metrics = run(sampler_of(correlated, {}, metric=name, layout=layout), 6)
        return float(np.mean([m["leapfrogs"] for m in metrics[4:]]))

    assert leapfrogs("low_rank") < 0.25 * leapfrogs("diagonal")


def test_the_order_is_numpyros() -> None:
    tree = {"b": jnp.arange(2.0), "a": jnp.full((1, 2), 7.0)}
    np.testing.assert_array_equal(ravel(tree), [7, 7, 0, 1])
