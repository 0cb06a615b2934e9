"""Replicates, densities and leave-one-out of a linear model whose posterior is known exactly."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from scipy.stats import multivariate_normal

from .. import simulated
from ..loo import bad_rows, leave_one_out, pit, pit_curve, ranked, with_exact
from ..settings import DataConfig
from ..simulated import check_statistics, likelihoods, replicates, simulate, thinned
from ..table import Prepared, prepare

ROWS, NOISE, PRIOR = 60, 0.7, 2.0
COLUMNS = {"x": "predictors", "y": "real"}
RNG = np.random.default_rng(1)
X = RNG.normal(size=ROWS)
TABLE = {"a": X, "y": 1.5 * (X - X.mean()) / X.std() + NOISE * RNG.normal(size=ROWS)}
PREPARED = prepare({n: v.tolist() for n, v in TABLE.items()}, COLUMNS, DataConfig())
DESIGN, Y = PREPARED.arrays["x"].astype(float), PREPARED.arrays["y"].astype(float)


def linear(x: Any, sizes: Any, y: Any = None, noise: float = NOISE) -> None:
    with numpyro.plate("predictor", sizes["predictor"]):
        slope = numpyro.sample("slope", dist.Normal(0, PRIOR))
    mean = numpyro.deterministic("mean", x @ slope)
    with numpyro.plate("row", sizes["row"]):
        numpyro.sample("y", dist.Normal(mean, noise), obs=y)


def module_of(model: Any) -> Any:
    return SimpleNamespace(model=model, OUTCOME="y", COLUMNS=COLUMNS)


def posterior_of(design: np.ndarray, y: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    covariance = np.linalg.inv(design.T @ design / noise**2 + np.eye(design.shape[1]) / PRIOR**2)
    return covariance @ design.T @ y / noise**2, covariance


def exact_draws(prepared: Prepared = PREPARED, noise: float = NOISE) -> xarray.Dataset:
    """Independent draws of the posterior: 4 chains of 500."""
    design, y = prepared.arrays["x"].astype(float), prepared.arrays["y"].astype(float)
    slope = np.random.default_rng(2).multivariate_normal(*posterior_of(design, y, noise), (4, 500))
    arrays = {
        "slope": (("chain", "draw", "predictor"), slope.astype(np.float32)),
        "mean": (("chain", "draw", "row"), (slope @ design.T).astype(np.float32)),
    }
    return xarray.Dataset(arrays, {"chain": range(4), "draw": range(500)})


def tree_of(noise: float = NOISE) -> xarray.DataTree:
    draws = exact_draws(noise=noise)
    model = functools.partial(linear, noise=noise)
    groups = simulate(module_of(model), PREPARED, draws, 0)
    return xarray.DataTree.from_dict({**groups, "posterior": draws})


def density(y: np.ndarray, mean: np.ndarray, variance: np.ndarray | float) -> np.ndarray:
    return -0.5 * ((y - mean) ** 2 / variance + np.log(2 * np.pi * variance))


@pytest.fixture(scope="module")
def right() -> xarray.DataTree:
    return tree_of()


def test_groups_agree_with_closed_forms(right: xarray.DataTree) -> None:
    draws = right["posterior"].to_dataset()
    expected = density(Y, draws["mean"].values.astype(float), NOISE**2)
    np.testing.assert_allclose(right["log_likelihood"]["y"].values, expected, rtol=1e-3, atol=1e-3)

    mean, covariance = posterior_of(DESIGN, Y, NOISE)
    variance = NOISE**2 + np.einsum("ni,ij,nj->n", DESIGN, covariance, DESIGN)
    made = right["posterior_predictive"]["y"].values.reshape(-1, ROWS)
    z = (made.mean(0) - DESIGN @ mean) / np.sqrt(variance / len(made))
    assert np.abs(z).max() < 4.5
    assert np.abs(made.var(0) / variance - 1).max() < 4.5 * np.sqrt(2 / len(made))
    assert np.abs(np.corrcoef(made[:, 0], made[:, 1])[0, 1]) < 0.1, "rows have noise of their own"

    before = right["prior_predictive"]["y"].values[0]
    of_prior = NOISE**2 + PRIOR**2 * DESIGN[:, 0] ** 2
    assert np.abs(before.var(0) / of_prior - 1).max() < 5 * np.sqrt(2 / len(before))
    assert right["prior"]["slope"].shape == (1, 1000, 1)
    np.testing.assert_array_equal(right["observed_data"]["y"], PREPARED.arrays["y"])
    np.testing.assert_array_equal(right["constant_data"]["x"], PREPARED.arrays["x"])


def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = functools.partial(linear, sizes=PREPARED.sizes)
    inputs = {"x": PREPARED.arrays["x"]}
    draws = exact_draws().isel(draw=slice(7))
    found = []
    for draws_a_block in (1, 3, 1000):
        monkeypatch.setattr(simulated, "BLOCK", draws_a_block * 4 * ROWS)
        key = jax.random.key(5)
        blocks = [*replicates(model, "y", inputs, draws, key)]
        assert [start for start, _ in blocks] == [*range(0, 7, min(draws_a_block, 7))]
        densities = likelihoods(model, "y", PREPARED.arrays, draws)
        parts = [[b for _, b in blocks], [b for _, b in densities]]
        found.append([np.concatenate(part, 1) for part in parts])
    for other in found[1:]:
        np.testing.assert_array_equal(other[0], found[0][0])
        np.testing.assert_array_equal(other[1], found[0][1])
    assert len(np.unique(found[0][0])) == 4 * 7 * ROWS, "no two draws share a key"


def test_what_belongs_to_a_row_is_drawn_anew_for_other_rows() -> None:
    def with_effects(sizes: Any, y: Any = None) -> None:
        with numpyro.plate("row", sizes["row"]):
            effect = numpyro.sample("effect", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(effect, 1e-3), obs=y)

    arrays = {"effect": (("chain", "draw", "row"), np.full((2, 100, 5), 7.0, np.float32))}
    draws, model = xarray.Dataset(arrays), functools.partial(with_effects, sizes={"row": 5})
    for new_rows, mean, spread in ((False, 7, 0), (True, 0, 1)):
        # The columns tell the number of rows.
        columns = {"x": np.zeros((5, 0))}
        of = lambda x, y=None: model(y=y)  # noqa: E731
        (_, made), *_ = replicates(of, "y", columns, draws, jax.random.key(0), new_rows=new_rows)
        assert made.mean() == pytest.approx(mean, abs=0.2)
        assert made.std() == pytest.approx(spread, abs=0.1)


def test_draws_are_thinned_evenly() -> None:
    draws = exact_draws()
    assert thinned(draws, 10**9).sizes["draw"] == 500
    found = thinned(draws, 400)
    assert found.sizes["draw"] == 100
    assert found.draw.values[[0, 1, -1]].tolist() == [0, 5, 495]
    assert thinned(draws, 0).sizes["draw"] == 2


def test_leave_one_out_agrees_with_fits_without_each_row(right: xarray.DataTree) -> None:
    exact = []
    for row in range(ROWS):
        others = np.arange(ROWS) != row
        mean, covariance = posterior_of(DESIGN[others], Y[others], NOISE)
        variance = NOISE**2 + DESIGN[row] @ covariance @ DESIGN[row]
        exact.append(density(Y[row], DESIGN[row] @ mean, variance))
    score = leave_one_out(right)
    assert not bad_rows(score).size
    np.testing.assert_allclose(score.elpd_i, exact, atol=0.03)
    assert score.elpd == pytest.approx(sum(exact), abs=0.1)
    assert 0.5 < score.p < 2  # one slope

    mended = with_exact(score, {3: exact[3] - 10, 5: exact[5]})
    assert mended.elpd == pytest.approx(sum(exact) - 10, abs=0.1)
    assert mended.elpd_i.values[3] == pytest.approx(exact[3] - 10)
    assert mended.p == pytest.approx(score.p + 10, abs=0.1)
    assert mended.se == pytest.approx(np.sqrt(ROWS * mended.elpd_i.values.var(ddof=1)))
    assert score.elpd == pytest.approx(sum(exact), abs=0.1), "the first one is left as it is"


def test_a_row_with_a_bad_k_hat_is_named() -> None:
    table = dict(TABLE, a=TABLE["a"].copy(), y=TABLE["y"].copy())
    table["a"][7], table["y"][7] = 300.0, -60.0  # by itself it decides the slope
    prepared = prepare({n: v.tolist() for n, v in table.items()}, COLUMNS, DataConfig())
    draws = exact_draws(prepared, 0.05)
    model = functools.partial(linear, noise=0.05)
    groups = simulate(module_of(model), prepared, draws, 0)
    score = leave_one_out(xarray.DataTree.from_dict({**groups, "posterior": draws}))
    assert 7 in bad_rows(score)
    assert 7 not in bad_rows(with_exact(score, {7: 0.0}))
    score.pareto_k.values[:4] = 0.1, 0.69, 0.71, np.nan
    assert bad_rows(score)[:2].tolist() == [2, 3]


def test_weights(right: xarray.DataTree) -> None:
    score, worse = leave_one_out(right), leave_one_out(tree_of(noise=3.0))
    found = ranked({"one": score, "same": score, "worse": worse})
    assert [*found][-1] == "worse"
    weights = {name: row["weight"] for name, row in found.items()}
    assert weights["one"] + weights["same"] == pytest.approx(1, abs=0.01)
    assert weights["worse"] < 0.01
    difference = worse.elpd_i.values - score.elpd_i.values
    assert found["worse"]["elpd_diff"] == pytest.approx(difference.sum(), rel=1e-4)
    error = np.sqrt(ROWS * difference.var())
    assert found["worse"]["dse"] == pytest.approx(error, rel=0.02)
    assert found["one"]["elpd_diff"] == found["same"]["elpd_diff"] == 0


def test_draws_of_a_guide_are_weighted(right: xarray.DataTree) -> None:
    mean, covariance = posterior_of(DESIGN, Y, NOISE)
    guide = mean + 0.5 * np.sqrt(np.diag(covariance)), 1.3 * covariance
    slope = np.random.default_rng(3).multivariate_normal(*guide, (1, 4000))
    exact, drawn = multivariate_normal(mean, covariance), multivariate_normal(*guide)
    weights = 7 + exact.logpdf(slope) - drawn.logpdf(slope)  # the evidence is unknown
    draws = xarray.Dataset(
        {
            "slope": (("chain", "draw", "predictor"), slope.astype(np.float32)),
            "mean": (("chain", "draw", "row"), (slope @ DESIGN.T).astype(np.float32)),
        },
        {"chain": range(1), "draw": range(4000)},
    )
    groups = {**simulate(module_of(linear), PREPARED, draws, 0), "posterior": draws}
    stats = xarray.Dataset({"log_weight": (("chain", "draw"), weights.reshape(1, -1))})
    unweighted = xarray.DataTree.from_dict(groups)
    weighted = xarray.DataTree.from_dict(
        groups | {"sample_stats": stats.assign_coords(draws.coords)}
    )
    wanted, pits = leave_one_out(right).elpd_i.values, pit(right)
    assert abs(leave_one_out(weighted).elpd_i.values - wanted).max() < 0.05
    assert abs(leave_one_out(unweighted).elpd_i.values - wanted).max() > 0.2
    assert abs(pit(weighted) - pits).max() < 0.04 < abs(pit(unweighted) - pits).max()


@pytest.mark.parametrize(("noise", "is_right"), [(NOISE, True), (0.3, False), (2.5, False)])
def test_loo_pit_is_uniform_for_the_right_model_alone(noise: float, is_right: bool) -> None:
    at, curve, lower, upper = pit_curve(pit(tree_of(noise)))
    assert at[[0, -1]].tolist() == [0, 1]
    assert ((lower <= curve) & (curve <= upper)).all() == is_right


def test_statistics_by_kind() -> None:
    observed = np.array([0, 0, 3, 1])
    replicated = np.array([[[0, 0, 3, 1], [1, 1, 5, 1], [0, 0, 0, 0], [1, 2, 1, 2]]])
    found = check_statistics("count of trials", observed, replicated)
    assert found["mean"] == {"data": 1, "replicates": pytest.approx(4.5 / 4), "p": 0.625}
    assert found["share of zeros"] == {"data": 0.5, "replicates": 0.375, "p": 0.375}
    assert found["largest"]["p"] == pytest.approx(0.25 + 0.125)
    assert [*check_statistics("binary", observed, replicated)] == ["mean"]
    assert "share of zeros" not in check_statistics("real", observed, replicated)


def test_a_check_finds_what_the_model_does_not_make() -> None:
    counts = jnp.concatenate([jnp.zeros(50, int), jnp.full(50, 6)])
    made = np.random.default_rng(0).poisson(3, (200, 100))
    found = check_statistics("count", np.asarray(counts), made)
    assert found["share of zeros"]["p"] < 0.01
    assert found["deviation"]["p"] < 0.01
