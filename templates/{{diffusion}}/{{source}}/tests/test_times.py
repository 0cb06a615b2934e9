"""The times that are trained on: their strata, their distribution and their range."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

from ..config import ObjectiveConfig, ObjectiveName
from ..objectives import EDM, OBJECTIVES, sample_times


def quantiles(config: ObjectiveConfig, t: jax.Array) -> np.ndarray:
    """The part of all times that are less than t, by the definition in words."""
    path = OBJECTIVES[config.name].path
    if config.times == "uniform":
        root = 1 / 7 if path is EDM else 1
        low, high = path.least**root, path.greatest**root
        return (np.asarray(t, np.float64) ** root - low) / (high - low)
    t = np.asarray(t, np.float64)
    log_ratio = np.log(np.asarray(path.sigma(t)) / np.asarray(path.alpha(t)))
    mean, std = {"edm": (-1.2, 1.2)}.get(config.name, (0.0, 1.0))  # as published
    return norm.cdf(log_ratio, config.time_mean or mean, config.time_std or std)


each_way = pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig(name="flow-v", time_mean=0.4, time_std=0.8),
        ObjectiveConfig(name="edm"),
        ObjectiveConfig(name="ddpm-v"),
        ObjectiveConfig(name="flow-v", times="uniform"),
        ObjectiveConfig(name="edm", times="uniform"),
        ObjectiveConfig(name="ddpm-eps", times="uniform"),
    ],
    ids=lambda config: f"{config.name}-{config.times}",
)


@each_way
def test_stratified_times_hit_every_stratum_once(config: ObjectiveConfig) -> None:
    t = sample_times(config, jax.random.key(3), 64)
    # float32 times near t = 1 do not resolve the last bits of a quantile.
    strata = np.floor(64 * quantiles(config, t) + 1e-4).astype(int)
    np.testing.assert_array_equal(np.sort(strata), np.arange(64))
    # Not in the order of the images: a rank correlation of 0, with a standard error of 1/8.
    assert abs(np.corrcoef(strata, np.arange(64))[0, 1]) < 0.5
    again = sample_times(config, jax.random.key(4), 64)
    assert (np.floor(64 * quantiles(config, again)) != strata).sum() > 32
    within = np.sort(64 * quantiles(config, t)) % 1  # spread over the stratum, not at its middle
    assert kstest(within, "uniform").pvalue > 1e-3


@each_way
def test_times_have_the_distribution_of_the_settings(config: ObjectiveConfig) -> None:
    config = replace(config, stratified=False)
    t = sample_times(config, jax.random.key(0), 4096)
    assert kstest(quantiles(config, t), "uniform").pvalue > 1e-3
    strata = np.floor(4096 * quantiles(config, t))
    assert len(np.unique(strata)) < 3000  # independent draws leave 1/e of them out


def test_logit_normal_times_are_what_they_are_called() -> None:
    flow = ObjectiveConfig(name="flow-v", time_mean=0.4, time_std=0.8)
    logit = jax.scipy.special.logit(sample_times(flow, jax.random.key(0), 4096))
    edm = ObjectiveConfig(name="edm")
    log_sigma = jnp.log(sample_times(edm, jax.random.key(0), 4096))
    # Strata leave far less error than 1/sqrt(4096); most is in the two tails.
    np.testing.assert_allclose([logit.mean(), logit.std()], [0.4, 0.8], atol=2e-3)
    np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=2e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_times_stay_in_the_range_of_the_path(name: ObjectiveName) -> None:
    path = OBJECTIVES[name].path
    for mean, end in ((-30.0, path.least), (30.0, path.greatest)):
        t = sample_times(ObjectiveConfig(name=name, time_mean=mean), jax.random.key(0), 8)
        np.testing.assert_array_equal(t, jnp.full(8, end, jnp.float32))
