"""Posteriors that are known, draws that depend on the seed alone, and chains that never wait."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ..config import Config
from ..errors import UserError
from ..models import eight_schools, load, names
from ..nuts import agreement, check_start, init_state, next_chunk, spread, state_specs
from ..posterior.settings import DataConfig
from ..posterior.table import prepare
from ..run_config import RunConfig
from ..runtime import loop
from ..runtime.compiled import abstract_state, jit_step
from ..runtime.guards import CompileCount
from ..sites import axes_of
from .small import placed, run, sampler_of, workload_of

SCHOOLS = prepare(eight_schools.example(), eight_schools.COLUMNS, DataConfig())
COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)")


def schools(**options):
    return sampler_of(eight_schools.model, SCHOOLS.arrays, SCHOOLS.sizes, **options)


def normals(y, sizes):
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(mu, 3.0), obs=y)


def flips(heads, sizes):
    p = numpyro.sample("p", dist.Beta(2.0, 3.0))
    numpyro.sample("heads", dist.Binomial(20, p), obs=heads)


def test_closed_forms() -> None:
    y = np.array([4.0, -1.0, 3.0, 6.0, 2.0], np.float32)
    precision = 1 / 2**2 + len(y) / 3**2
    mean, deviation = (1 / 2**2 + y.sum() / 3**2) / precision, precision**-0.5
    a, b = 2 + 14, 3 + 6
    cases = [
        (normals, {"y": y}, "mu", mean, deviation),
        (flips, {"heads": np.array(14)}, "p", a / (a + b), (a * b / (a + b + 1)) ** 0.5 / (a + b)),
    ]
    for metric in ("diagonal", "dense", "low_rank"):
        for model, columns, name, mean, deviation in cases:
            draws, _ = run(sampler_of(model, columns, metric=metric), 44)
            found = draws[f"posterior/{name}"]
            assert found.shape == (4, 2000)
            for square, of_mean in ((found, mean), (found**2, deviation**2 + mean**2)):
                error = arviz_stats.mcse(square, method="mean")
                assert abs(square.mean() - of_mean) < 4 * error, (metric, name)
            assert found.std() == pytest.approx(deviation, rel=0.06)


def test_draws_do_not_depend_on_the_chunk_nor_on_the_devices() -> None:
    whole, _ = run(schools(chunk=100), 4)
    for options, steps in (({"chunk": 50}, 8), ({"chunk": 100, "devices": 4}, 4)):
        other, _ = run(schools(**options), steps)
        for name, draws in whole.items():
            np.testing.assert_array_equal(draws, other[name], err_msg=f"{options} {name}")


def test_a_model_without_a_start_is_refused_and_the_site_named() -> None:
    def impossible(y, sizes):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("height", dist.Uniform(0.0, 1.0), obs=y.sum())
        numpyro.sample("weight", dist.Normal(mu, 1.0), obs=y.sum())

    with pytest.raises(UserError, match=r"the factors of height\nexpected"):
        check_start(sampler_of(impossible, {"y": np.array([2.0, 3.0], np.float32)}), 0)
    check_start(sampler_of(impossible, {"y": np.array([0.2, 0.3], np.float32)}), 0)


def test_chains_begin_at_draws_of_guides() -> None:
    """Each fits its own, so that the devices and the other chains change no bit."""

    def far(y, sizes):
        mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)

    y = np.random.default_rng(0).normal(30, 2, 100).astype(np.float32)
    chains = []
    for devices, start in ((1, "uniform"), (1, "svi"), (2, "svi")):
        sampler = sampler_of(far, {"y": y}, devices=devices, start=start)
        chains.append(jax.jit(lambda s=sampler: init_state(s, jax.random.key(0))["chain"])())
    uniform, ours, on_two = chains
    assert np.abs(uniform["z.mu"]).max() <= 2
    assert np.abs(ours["z.mu"] - y.mean()).max() < 5 * 0.2
    assert np.abs(ours["z.sigma"] - np.log(2)).max() < 0.6
    assert len({*ours["z.mu"].tolist()}) == 4
    np.testing.assert_array_equal(ours["z.mu"], on_two["z.mu"])


def test_a_chain_that_breaks_off_stops_the_run(tmp_path: Path) -> None:
    """To leave the chunk out would bias the chain."""
    sampler = schools()
    workload = workload_of(sampler)

    def step(state, batch):
        broken = jnp.where(state["step"] == 3, jnp.nan, 1.0)
        chain = dict(state["chain"])
        chain["z.mu"] = chain["z.mu"] * broken
        chain["potential_energy"] = chain["potential_energy"] * broken
        return workload.step(state | {"chain": chain}, batch)

    settings = RunConfig(run_dir=str(tmp_path), steps=8, save_every_steps=2, trackers=())
    with pytest.raises(UserError, match=r"step 4: .*nan"):
        loop.run(replace(workload, step=step), Config(run=settings), sampler.mesh)


def test_seeds_and_chains_differ() -> None:
    first, second = (run(schools(), 5, seed)[0]["posterior/mu"] for seed in (0, 1))
    assert len({draws.tobytes() for draws in (*first, *second)}) == 8


def test_together_agrees_in_distribution() -> None:
    """Chains under `vmap` round otherwise, and are as good."""
    draws, _ = run(schools(layout="vmap"), 24)
    reference, _ = run(schools(), 24)
    for name in ("posterior/mu", "posterior/tau"):
        pair = draws[name], reference[name]
        error = np.hypot(*(arviz_stats.mcse(each, method="mean") for each in pair))
        assert abs(pair[0].mean() - pair[1].mean()) < 4 * error


@pytest.mark.parametrize("layout", ["map", "vmap"])
def test_no_collective_inside_the_draws(layout: str) -> None:
    sampler = schools(devices=4, layout=layout)
    workload = workload_of(sampler)
    with jax.set_mesh(sampler.mesh):
        abstract, shardings = abstract_state(workload, 0, sampler.mesh)

        def draws(chain, columns):
            return spread(
                sampler.mesh, sampler.together, partial(next_chunk, sampler), chain, columns, 0
            )

        columns = placed(sampler)
        alone = jax.jit(draws).lower(abstract["chain"], columns).compile().as_text()
        step = jit_step(workload, shardings, sampler.mesh)
        whole = step.lower(abstract, columns).compile().as_text()
    assert "while" in alone
    assert not COLLECTIVE.search(alone)
    assert COLLECTIVE.search(whole), "metrics are of all chains"


def test_devices_share_the_rows_of_a_chain() -> None:
    y = np.random.default_rng(0).normal(1.0, 2.0, 40).astype(np.float32)

    def model(y, sizes):
        mu, sd = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("sd", dist.HalfNormal(5))
        with numpyro.plate("row", 40):
            numpyro.sample("y", dist.Normal(mu, sd), obs=y)

    options = {"warmup": 10, "chunk": 10}
    split = sampler_of(model, {"y": y}, devices=4, tensor=2, **options)
    (found, _), (alone, _) = run(split, 2), run(sampler_of(model, {"y": y}, **options), 2)
    # Sums in another order: the draws part slowly.
    np.testing.assert_allclose(found["posterior/mu"], alone["posterior/mu"], rtol=0.02, atol=0.02)
    with jax.set_mesh(split.mesh):
        state = jax.eval_shape(lambda: init_state(split, jax.random.key(0)))
        draws = jax.jit(
            lambda chain, columns: spread(
                split.mesh, False, partial(next_chunk, split), chain, columns, 0
            )
        )
        text = draws.lower(state["chain"], placed(split)).compile().as_text()
    assert "all-reduce" in text
    assert "f32[40" not in text, "no device holds all rows"


def test_draws_that_are_written_leave_the_device() -> None:
    sampler = schools()
    workload, held = workload_of(sampler), []
    with jax.set_mesh(sampler.mesh):
        _, shardings = abstract_state(workload, 0, sampler.mesh)
        state = jax.jit(lambda: init_state(sampler, jax.random.key(0)), out_shardings=shardings)()
        step, columns = jit_step(workload, shardings, sampler.mesh), placed(sampler)
        for _ in range(8):
            state, _, outputs = step(state, columns)
            jax.device_get(outputs)
            del outputs
            held.append(sum(x.nbytes for x in jax.live_arrays()))
    assert held[-1] == held[0]


def test_one_compilation_from_the_first_draw_of_warm_up_to_the_last() -> None:
    sampler = schools()
    workload, counter = workload_of(sampler), CompileCount()
    with jax.set_mesh(sampler.mesh):
        _, shardings = abstract_state(workload, 0, sampler.mesh)
        assert counter.count == 0, "the kernel is primed without compiling"
        state = jax.jit(lambda: init_state(sampler, jax.random.key(0)), out_shardings=shardings)()
        step, columns = jit_step(workload, shardings, sampler.mesh), placed(sampler)
        before = counter.count
        for _ in range(6):
            state, *_ = step(state, columns)
        assert counter.count == before + 1


def test_running_figures_are_those_of_the_draws() -> None:
    sampler = schools()
    _, metrics = run(sampler, 8)
    assert [m["warming_up"] for m in metrics] == [1] * 4 + [0] * 4

    def flat(seed: int) -> np.ndarray:
        draws, _ = run(sampler, 8, seed)
        theta, mu, tau = (draws[f"posterior/{n}"] for n in ("theta", "mu", "tau"))
        standard = (theta - mu[..., None]) / tau[..., None]
        return np.concatenate([mu[..., None], np.log(tau)[..., None], standard], -1)

    z = flat(0)
    chains, draws, _ = z.shape
    within, apart = z.var(1, ddof=1).mean(0), z.mean(1).var(0, ddof=1)
    variance = within * (1 - 1 / draws) + apart
    means = z.reshape(chains * draws // 50, 50, -1).mean(1)
    assert metrics[-1]["rhat"] == pytest.approx(np.sqrt(variance / within).max(), rel=1e-3)
    ess = (chains * draws * variance / (50 * means.var(0, ddof=1))).min()
    assert metrics[-1]["min_ess"] == pytest.approx(ess, rel=2e-2)
    assert metrics[-1]["min_ess_per_draw"] == pytest.approx(ess / (chains * draws), rel=2e-2)


def test_chains_that_stand_still_do_not_agree() -> None:
    still = {n: jnp.zeros((4, 2)) for n in ("mean", "within", "between")}
    rhat, ess = agreement(still, 3, 100)
    assert rhat > 100
    assert ess <= 12


def test_every_part_of_the_state_is_split_by_chains() -> None:
    state = jax.eval_shape(lambda: init_state(schools(), jax.random.key(0)))
    specs = state_specs(state)
    for name in ("chain", "running"):
        for leaf, spec in zip(*map(jax.tree.leaves, (state[name], specs[name])), strict=True):
            assert leaf.shape[0] == 4
            assert spec[0] == ("data", "fsdp")


@pytest.mark.parametrize("name", names())
def test_plates_name_the_axes(name: str) -> None:
    model = load(name)
    table = prepare(model.example(), model.COLUMNS, DataConfig())
    axes = axes_of(model.model, table.arrays, table.sizes)
    assert axes[model.OUTCOME] == {-1: "row"}
    for site in axes.values():
        assert {*site.values()} <= {*table.coords}
    if name.startswith("eight"):
        assert axes["theta"] == {-1: "school"}
