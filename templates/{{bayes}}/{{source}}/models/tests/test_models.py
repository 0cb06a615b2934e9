"""The facts that are typed in, and what every model file promises."""

import jax
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

from ...posterior.settings import DataConfig
from ...posterior.table import prepare
from .. import load, names


def test_the_tables_have_the_figures_of_their_sources() -> None:
    cars = load("neural_network").example()
    slope, intercept = np.polyfit(cars["speed"], cars["distance"], 1)
    assert (slope, intercept) == (
        pytest.approx(3.9324, abs=1e-4),
        pytest.approx(-17.5791, abs=1e-4),
    )
    launches = load("logistic").example()
    damaged = [t for t, d in zip(*launches.values(), strict=True) if d]
    assert sorted(damaged) == [53, 57, 58, 63, 70, 70, 75]
    assert len(launches["temperature"]) == 23
    players = load("pooled").example()
    assert sum(players["hits"]) == 215  # a mean of .265
    assert len(players["player"]) == 18


@pytest.mark.parametrize("name", names())
def test_a_model_is_finite_where_it_begins_and_generates_its_outcome(name: str) -> None:
    module = load(name)
    table = prepare(module.example(), module.COLUMNS, DataConfig())
    seeded = handlers.seed(module.model, jax.random.key(1))
    columns = jax.device_put(table.arrays)
    density, _ = log_density(seeded, (), {**columns, "sizes": table.sizes}, {})
    assert np.isfinite(density)
    rest = {n: a for n, a in columns.items() if n != module.OUTCOME}
    drawn = Predictive(module.model, num_samples=3)(jax.random.key(0), **rest, sizes=table.sizes)
    assert drawn[module.OUTCOME].shape == (3, table.sizes["row"])
    assert module.__doc__
    assert {*getattr(module, "JUDGED", ())} <= {*drawn}


def test_twins_have_the_same_density() -> None:
    """The centred form is the same model: only what is sampled differs."""
    plain, module = load("eight_schools_centred"), load("eight_schools")
    table = prepare(module.example(), module.COLUMNS, DataConfig())
    at = {"mu": 1.5, "tau": 2.0}
    arguments = {**jax.device_put(table.arrays), "sizes": table.sizes}
    standard = jax.random.normal(jax.random.key(0), (8,))
    theta = at["mu"] + at["tau"] * standard
    centred, _ = log_density(plain.model, (), arguments, at | {"theta": theta})
    other, _ = log_density(module.model, (), arguments, at | {"theta_decentered": standard})
    # The change of variables: a factor `tau` for each of eight effects.
    assert float(other - centred) == pytest.approx(8 * np.log(2.0), rel=1e-5)
