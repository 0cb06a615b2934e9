"""Guides that must be exact, minibatches that must be unbiased, and guides that must be refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
import xarray
from jax.flatten_util import ravel_pytree

from .. import models
from ..config import Config
from ..errors import UserError
from ..fit_nuts import nuts_method
from ..fit_svi import svi_method
from ..posterior.diagnosis import Verdict, judge_guide, settling
from ..posterior.settings import DataConfig
from ..posterior.table import prepare
from ..run_config import MeshConfig
from ..runtime.compiled import abstract_state, jit_step
from ..runtime.guards import CompileCount
from ..runtime.sharding import make_mesh
from ..svi import _made, _update_of, batch_at, check_start, whole_table
from .small import draws_of, driven, fit_of, workload_of

RANDOM = np.random.default_rng(1)
ROWS = 23  # no multiple of any number of devices
X = RANDOM.normal(size=(ROWS, 2)).astype(np.float32) @ np.array([[1, 0.8], [0, 0.6]], np.float32)
Y = (X @ [1.0, -2.0] + 3 + RANDOM.normal(size=ROWS)).astype(np.float32)
LINE = {"x": X, "y": Y}


def line(x, y, sizes):
    """Conjugate: a normal posterior, whose two slopes are correlated."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    with numpyro.plate("predictor", 2):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", sizes["row"]):
        mean = numpyro.deterministic("mean", intercept + x @ slope)
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def twins(x, sizes):
    """Two quantities that are nearly one; the rows say nothing."""
    first = numpyro.sample("first", dist.Normal(0.0, 1.0))
    numpyro.sample("second", dist.Normal(first, 0.05))


def tail(x, sizes):
    numpyro.sample("far", dist.StudentT(2.0, 0.0, 1.0))


def flips(heads, sizes):
    p = numpyro.sample("p", dist.Beta(2.0, 3.0))
    with numpyro.plate("row", sizes["row"]):
        numpyro.sample("heads", dist.Binomial(4, p), obs=heads)


def flat(y, sizes):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", sizes["row"]):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def verdict_of(draws: dict[str, np.ndarray]) -> Verdict:
    posterior = {
        name: (("chain", "draw", *[f"{name} {i}" for i in range(1, x.ndim)]), x[None])
        for name, x in draws.items()
        if name.startswith("posterior/")
    }
    weights = draws["sample_stats/log_weight"][None]
    return judge_guide(xarray.Dataset(posterior), weights, settling(np.zeros(8)))


@pytest.mark.parametrize("guide", ["multivariate", "laplace", "low_rank", "flow"])
def test_a_normal_posterior_is_found(guide: str) -> None:
    draws, losses, _ = draws_of(fit_of(line, LINE, guide=guide, steps=60, particles=4))
    design, prior = np.c_[np.ones(ROWS), X], np.diag([25.0, 4.0, 4.0])
    covariance = np.linalg.inv(np.linalg.inv(prior) + design.T @ design)
    deviation = np.sqrt(np.diag(covariance))
    found = np.c_[draws["posterior/intercept"], draws["posterior/slope"]]
    close = 0.1 if guide in ("multivariate", "laplace") else 0.3
    assert np.abs((found.mean(0) - covariance @ design.T @ Y) / deviation).max() < close
    assert np.abs((np.cov(found.T) - covariance) / np.outer(deviation, deviation)).max() < close
    # Of an exact guide every weight is the evidence.
    evidence = scipy.stats.multivariate_normal(cov=design @ prior @ design.T + np.eye(ROWS))
    weights = draws["sample_stats/log_weight"]
    assert weights.mean() == pytest.approx(evidence.logpdf(Y), abs=close / 4)
    assert draws["posterior/mean"].shape == (4000, ROWS)
    assert verdict_of(draws).is_good
    if guide != "laplace":  # whose loss is that of a point
        assert losses[-1] == pytest.approx(-evidence.logpdf(Y), abs=close / 2)


def test_a_beta_posterior_is_found() -> None:
    heads = np.array([4, 3, 2, 3, 2])
    draws, *_ = draws_of(fit_of(flips, {"heads": heads}, guide="normal"))
    exact = scipy.stats.beta(2 + 14, 3 + 6)
    p, weights = draws["posterior/p"], draws["sample_stats/log_weight"]
    assert p.mean() == pytest.approx(exact.mean(), abs=0.01)
    assert p.std() == pytest.approx(exact.std(), rel=0.05)
    by_weight = np.average(p, weights=np.exp(weights - weights.max()))
    assert by_weight == pytest.approx(exact.mean(), abs=0.005)
    evidence = np.log(scipy.special.comb(4, heads)).sum()
    evidence += scipy.special.betaln(16, 9) - scipy.special.betaln(2, 3)
    assert weights.mean() == pytest.approx(evidence, abs=0.02)


@pytest.mark.parametrize(
    ("model", "guide", "is_good"),
    [
        (twins, "normal", False),
        (twins, "multivariate", True),
        (tail, "multivariate", False),
    ],
)
def test_a_guide_that_misses_is_refused(model, guide: str, is_good: bool) -> None:
    draws, *_ = draws_of(fit_of(model, {"x": X}, guide=guide))
    verdict = verdict_of(draws)
    assert verdict.is_good is is_good, verdict.figures
    if not is_good:
        assert "the guide misses the posterior" in verdict.words()
        assert next(iter(verdict.rows)) in verdict.words()


def gradient(fit, batch, number: int) -> np.ndarray:
    """Of the ELBO of one update, by the parameters of the guide; the noise is always the same."""
    key = jax.random.key(3)

    @jax.jit
    def of(batch):
        svi, data = _made(fit, key, batch), _update_of(batch, number)
        start = svi.constrain_fn(workload_of(fit).init(key)["params"])
        return jax.grad(lambda p: svi.loss.loss(key, p, svi.model, svi.guide, *data))(start)

    return ravel_pytree(of(batch))[0]


def test_minibatches_of_an_epoch_have_the_gradient_of_the_table() -> None:
    columns = {name: column[:20] for name, column in LINE.items()}
    fit = fit_of(line, columns, batch_rows=5, chunk=4, devices=2)
    batch = batch_at(fit, 40)  # the third epoch
    assert sorted(np.asarray(batch[0]["y"])[:, :5].ravel()) == sorted(Y[:20])
    parts = [gradient(fit, batch, number) for number in range(4)]
    whole = gradient(fit, whole_table(fit), 0)
    np.testing.assert_allclose(np.mean(parts, axis=0), whole, rtol=2e-5, atol=1e-3)
    assert np.abs(parts[0] - whole).max() > 1


def test_each_row_is_seen_as_often_and_the_cursor_alone_decides() -> None:
    fit = fit_of(line, LINE, batch_rows=7, chunk=10)
    seen = [np.asarray(batch_at(fit, cursor)[0]["y"]) for cursor in range(0, 23 * 70, 70)]
    values, counts = np.unique(np.concatenate(seen), return_counts=True)
    assert len(values) == ROWS
    assert {*counts} == {70}
    again = fit_of(line, LINE, batch_rows=7, chunk=10)
    np.testing.assert_array_equal(np.asarray(batch_at(again, 140)[0]["y"]), seen[2])
    first, second = np.concatenate(seen).ravel()[: 2 * ROWS].reshape(2, ROWS)
    assert sorted(first) == sorted(second)
    assert (first != second).any(), "each epoch has an order of its own"


@pytest.mark.parametrize("batch_rows", [0, 9])
def test_eight_devices_are_as_one(batch_rows: int) -> None:
    found = []
    for devices in (1, 8):
        fit = fit_of(line, LINE, devices=devices, steps=3, batch_rows=batch_rows, draws=100)
        found.append(draws_of(fit))
    (one, losses, _), (eight, others, _) = found
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    assert one["posterior/mean"].shape == (100, ROWS)
    for name, draws in one.items():
        np.testing.assert_allclose(eight[name], draws, rtol=1e-3, atol=1e-3, err_msg=name)
    batch, weights = batch_at(fit, 0)
    assert batch["x"].sharding.shard_shape(batch["x"].shape)[1] == -(-(batch_rows or ROWS) // 8)
    assert np.asarray(weights).sum(1) == pytest.approx(ROWS)


def test_one_compilation() -> None:
    fit = fit_of(line, LINE, batch_rows=5, devices=2, guide="normal")
    counter = CompileCount()
    workload = workload_of(fit)
    with jax.set_mesh(fit.mesh):
        _, shardings = abstract_state(workload, 0, fit.mesh)
        assert counter.count == 0, "the guide is primed without compiling"
        state = jax.jit(lambda: workload.init(jax.random.key(0)), out_shardings=shardings)()
        step = jit_step(workload, shardings, fit.mesh)
        before = counter.count
        for number in range(3):
            state, *_ = step(state, workload.batch(number * workload.stride))
        assert counter.count == before + 1
        program = step.lower(state, workload.batch(0)).compile().as_text()
    found = re.findall(r"\b(all-reduce|all-gather|all-to-all|collective-permute)\(", program)
    assert {*found} == {"all-reduce"}, "gradients cross devices, rows do not"


def test_seeds_differ() -> None:
    fit = fit_of(line, LINE, steps=2, draws=100)
    first, second = (draws_of(fit, seed)[0]["posterior/slope"] for seed in (0, 1))
    assert not np.isin(first, second).any()


def test_what_is_not_finite_shows_in_the_loss() -> None:
    def steep(y, sizes):
        """The density is finite, and its gradient not."""
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", sizes["row"]):
            numpyro.sample("y", dist.Normal(mu, 1 + jnp.sqrt(0 * mu)), obs=y)

    hole = {"y": np.where(np.arange(ROWS) == 3, np.nan, Y)}
    for model, columns in ((steep, {"y": Y}), (flat, hole)):
        fit = fit_of(model, columns, chunk=1, guide="normal")
        ((_, metrics, _),) = driven(workload_of(fit), fit.mesh, 1)
        assert np.isnan(metrics["loss"])
    fit = fit_of(flat, {"y": Y}, chunk=1, guide="normal")
    ((_, metrics, _),) = driven(workload_of(fit), fit.mesh, 1)
    assert np.isfinite(metrics["loss"])


def test_rows_that_do_not_stand_for_others_are_not_split() -> None:
    def each(y, sizes):
        with numpyro.plate("row", sizes["row"]):
            effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(effect, 1.0), obs=y)

    def sums(y, sizes):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("sum", dist.Normal(mu, 1.0), obs=y.sum())

    def centred(y, sizes):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        with numpyro.plate("row", sizes["row"]):
            numpyro.sample("y", dist.Normal(0.0, scale), obs=y - y.mean())

    def around(y, sizes):
        mu = numpyro.sample("mu", dist.Normal(y.mean(), 1.0))
        with numpyro.plate("row", sizes["row"]):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    for model, words in (
        (each, "effect is sampled for each row"),
        (sums, "sum is observed"),
        (centred, "density of y in a row depends on other rows"),
        (around, "density of y in a row depends on other rows"),
    ):
        with pytest.raises(UserError, match=words):
            fit_of(model, {"y": Y}, batch_rows=5)
        fit = fit_of(model, {"y": Y}, devices=2, batch_rows=ROWS)
        columns, weights = batch_at(fit, 0)
        assert columns["y"].sharding.is_fully_replicated
        assert weights.shape == (1, ROWS)


def test_a_model_without_a_start_is_refused_and_the_site_named() -> None:
    def impossible(y, sizes):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", sizes["row"]):
            numpyro.sample("height", dist.Uniform(0.0, 1.0), obs=y)
            numpyro.sample("weight", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(UserError, match=r"the factors of height\nexpected"):
        check_start(fit_of(impossible, {"y": np.array([2.0, 0.3], np.float32)}))
    check_start(fit_of(impossible, {"y": np.array([0.2, 0.3], np.float32)}))
    with pytest.raises(UserError, match="one parameter"):
        fit_of(tail, {"x": X}, guide="flow")


@pytest.mark.parametrize("name", ["partial", "neural_network"])
def test_both_methods_give_the_same_quantities(name: str) -> None:
    model = models.load(name)
    table = prepare(model.example(), model.COLUMNS, DataConfig())
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    found = [
        {
            path: (array.shape[2:], array.dtype)
            for path, array in method(Config(), model, table, mesh, {}).outputs.items()
            if path.startswith("posterior")
        }
        for method in (nuts_method, svi_method)
    ]
    assert found[0] == found[1]
