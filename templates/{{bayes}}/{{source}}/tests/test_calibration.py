"""Ranks are uniform where model and sampler are right, and where one is wrong they are refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ..calibrated import draw_curves, make_calibration, read_calibration, settings_of
from ..calibration import (
    AT_ONCE,
    RANKS,
    Subject,
    calibrate_step,
    fit_by_nuts,
    fit_by_svi,
    init_state,
    judge_ranks,
)
from ..config import Config, SviConfig, demo
from ..errors import UserError
from ..run_config import MeshConfig
from ..runtime import loop
from ..runtime.sharding import make_mesh
from ..svi import make_fit
from .small import sampler_of

ROWS = 5
PLACES = {"y": np.zeros(ROWS, np.float32)}


def normals(y=None, sizes=None, fitted_sd=2.0, seen=True):
    """`fitted_sd` other than 2 is an error that only the fit makes, and so is not `seen`."""
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    given = y if seen else None
    with numpyro.plate("row", ROWS):
        if seen or y is None:
            numpyro.sample("y", dist.Normal(mu, 2.0 if y is None else fitted_sd), obs=given)
        else:  # its density is there, and says nothing about mu
            numpyro.sample("y", dist.Normal(jax.lax.stop_gradient(mu) * 0, 2.0), obs=y)


def correlated(y=None, sizes=None):
    """Data know the sum of a and b alone: independent normals are too narrow."""
    a, b = (numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
    with numpyro.plate("row", ROWS):
        numpyro.sample("y", dist.Normal(a + b, 0.5), obs=y)


def ranks_of(
    model, steps: int = 25, devices: int = 1, guide: str = "", judged: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    options = {"chains": AT_ONCE, "warmup": 300, "chunk": 300, "devices": devices}
    sampler = sampler_of(model, PLACES, **options)
    fit = partial(fit_by_nuts, sampler)
    if guide:
        settings = SviConfig(guide=guide, learning_rate=0.1, draws=RANKS - 1)
        sizes = {"row": ROWS}
        fit = partial(fit_by_svi, make_fit(settings, 10, 0, model, PLACES, sizes, sampler.mesh))
    subject = Subject(sampler.kernel.model, "y", fit, sampler.mesh, judged, sampler.together)
    step, kept = jax.jit(partial(calibrate_step, subject)), []
    state = init_state(jax.random.key(3))
    with jax.set_mesh(sampler.mesh):
        for _ in range(steps):
            state, metrics, ranks = step(state, PLACES)
            kept.append(jax.device_get(ranks))
            assert metrics.get("diverging", 0) < 0.02
    return {name: np.concatenate([k[name] for k in kept]) for name in kept[0]}


def test_the_right_model_passes_and_wrong_ones_do_not() -> None:
    ranks = ranks_of(normals)
    right = judge_ranks(ranks)
    assert right.simulations == 200
    assert {*right.curves} == {"mu", "log_likelihood"}
    assert all(r.min() >= 0 and r.max() < RANKS for r in ranks.values())
    assert not right.failed, right.words()
    assert "uniform" in right.words()
    for sd in (1.0, 4.0):  # too narrow, too wide
        wrong = judge_ranks(ranks_of(partial(normals, fitted_sd=sd)))
        assert "mu" in wrong.failed
        assert "NOT CALIBRATED" in wrong.words()


def test_data_that_are_ignored_are_noticed_by_the_likelihood_alone() -> None:
    wrong = judge_ranks(ranks_of(partial(normals, seen=False)))
    assert {*wrong.failed} == {"log_likelihood"}


def test_a_guide_that_can_be_exact_passes_and_one_that_cannot_does_not() -> None:
    assert not judge_ranks(ranks_of(normals, guide="multivariate")).failed
    wrong = judge_ranks(ranks_of(correlated, guide="normal"))
    assert {"a", "b"} <= {*wrong.failed}


def test_constants_and_whole_numbers_are_uniform_and_only_what_is_judged_is_ranked() -> None:
    def model(y=None, sizes=None):
        mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
        numpyro.deterministic("one", jnp.ones(2))
        numpyro.deterministic("whole", jnp.round(mu))
        with numpyro.plate("row", ROWS):
            numpyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    found = judge_ranks(ranks_of(model))
    assert {*found.curves} == {"mu", "one[0]", "one[1]", "whole", "log_likelihood"}
    assert not found.failed
    assert {*ranks_of(model, 1, judged=("mu",))} == {"mu", "log_likelihood"}


def test_devices_do_not_change_ranks() -> None:
    one, four = (ranks_of(normals, 2, devices) for devices in (1, 4))
    for name in one:
        np.testing.assert_array_equal(one[name], four[name])


def test_the_band_is_left_seldom_by_uniform_ranks_and_always_by_others() -> None:
    random = np.random.default_rng(1)
    refused = [
        bool(judge_ranks({"a": random.integers(0, RANKS, (60, 3))}).failed) for _ in range(40)
    ]
    assert sum(refused) <= 2  # expected 0.4
    for shape in ((0.6, 0.6), (2, 2), (2, 1.5)):  # too narrow, too wide, biased
        ranks = (random.beta(*shape, (400, 2)) * RANKS).astype(int)
        assert len(judge_ranks({"a": ranks}).failed) == 2


def fit_in(folder: Path) -> Config:
    """That has not begun."""
    return replace(demo(), run=replace(demo().run, run_dir=str(folder / "fit")))


def config_of(folder: Path, steps: int = 0, **nuts: object) -> Config:
    start = demo()
    run = replace(start.run, run_dir=str(folder), trackers=())
    sampler = replace(start.nuts, warmup=500, **nuts)
    config = replace(start, run=run, nuts=sampler, model=replace(start.model, name="eight_schools"))
    config = settings_of(config, 24)
    return replace(config, run=replace(config.run, save_every_steps=1, steps=steps or 3))


def test_a_calibration_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for folder, lengths in (("whole", [3]), ("parts", [1, 3])):
        for steps in lengths:
            config = config_of(tmp_path / folder, steps)
            assert loop.run(make_calibration(fit_in(tmp_path), config, mesh), config, mesh) == 0
    whole, parts = (read_calibration(config_of(tmp_path / f)) for f in ("whole", "parts"))
    assert whole.simulations == parts.simulations == 24
    for name, curve in whole.curves.items():
        np.testing.assert_array_equal(curve, parts.curves[name])
    assert draw_curves(whole).std() > 1
    assert (tmp_path / "whole" / "calibration" / "report.html").is_file()


def test_what_cannot_be_ranked_is_refused(tmp_path: Path) -> None:
    start = demo()
    with pytest.raises(UserError, match=r"warmup 50"):
        settings_of(replace(start, nuts=replace(start.nuts, warmup=50)), 200)
    with pytest.raises(UserError, match=r"3 devices"):
        make_calibration(
            fit_in(tmp_path), config_of(tmp_path), make_mesh(MeshConfig(), jax.devices()[:3])
        )
