"""Simulation-based calibration: does the sampler find what the model itself has drawn?

Parameters are drawn from the prior and data from the model, which is the function that is fitted;
then the posterior of those data is drawn from. Where model and sampler are right, the rank of what
was drawn among the draws of its posterior is uniform (Talts et al. 2018, arXiv:1804.06788). Pure
functions of one state, for the loop that all runs share. Judges no single fit.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.ecdf_utils import ecdf_pit
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from numpyro import handlers
from numpyro.infer.util import log_likelihood

from . import svi
from .contract import Metrics, Outputs, State
from .nuts import Chain, Sampler, begin_chain, next_chunk, spread
from .sites import Columns

AT_ONCE = 8  # simulations a step
RANKS = 100  # a rank is one of so many numbers: of the draws, RANKS - 1 are compared
ALARM = 0.01  # how often a calibrated model is refused
# Of uniform ranks, for the band: ten beyond it for each quantity, within bounds.
LEAST_TRIALS, MOST_TRIALS = 4000, 100_000
LIKELIHOOD = "log_likelihood"  # notices what parameters do not: data that are ignored, or weighed
# wrongly (Modrák et al. 2023, Simulation-based calibration checking for Bayesian computation)


type Fits = Callable[[Array, Columns], tuple[dict[str, Array], Metrics]]
"""Key, data -> RANKS - 1 draws of the posterior by quantity, and how the fit fared."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is calibrated: a model and how it is fitted."""

    model: Callable[..., None]
    """Of columns; without the outcome it draws that."""
    outcome: str
    fit: Fits
    mesh: Mesh
    judged: tuple[str, ...]
    """Quantities that are ranked beside the likelihood; none = all."""
    together: bool
    """Whether the simulations of a device run together (vmap) or one after the other."""


def init_state(key: Array) -> State:
    """The key is all that a simulation starts from."""
    return {"step": jnp.zeros((), jnp.int32), "key": key}


def calibrate_step(
    subject: Subject, state: State, columns: Columns
) -> tuple[State, Metrics, Outputs]:
    """AT_ONCE simulations, spread over the devices; outputs are ranks, from 0 to RANKS - 1."""
    keys = jax.random.split(jax.random.fold_in(state["key"], state["step"]), AT_ONCE)
    one = partial(_simulate, subject)
    ranks, fared = spread(subject.mesh, subject.together, one, keys, columns)
    metrics = {name: value.mean() for name, value in fared.items()}
    return state | {"step": state["step"] + 1}, metrics, ranks


def _simulate(
    subject: Subject, key: Array, columns: Columns
) -> tuple[dict[str, Int[Array, "..."]], Metrics]:
    """Ranks of one simulation by quantity, and how its fit fared."""
    of_model, of_fit, of_ties = jax.random.split(key, 3)
    given = {name: column for name, column in columns.items() if name != subject.outcome}
    sites = handlers.trace(handlers.seed(subject.model, of_model)).get_trace(**given)
    drawn = {name: site["value"] for name, site in sites.items()}
    outcome = drawn[subject.outcome].astype(columns[subject.outcome].dtype)
    data = given | {subject.outcome: outcome}
    draws, fared = subject.fit(of_fit, data)
    truth = {name: drawn[name][None] for name in draws}
    ranks = {}
    for name in subject.judged or draws:
        ties = (draws[name] == truth[name]).sum(0)  # of what is a whole number, or constant
        of_ties, chosen = jax.random.split(of_ties)
        among = jax.random.randint(chosen, ties.shape, 0, ties + 1)
        ranks[name] = (draws[name] < truth[name]).sum(0, jnp.int32) + among

    def likelihood(values: dict[str, Array]) -> Float[Array, " draw"]:
        of_rows = log_likelihood(subject.model, values, **data)[subject.outcome]
        return of_rows.reshape(-1, outcome.size).sum(1)

    # Ties count as below here: a likelihood that is always the same is that of no data.
    ranks[LIKELIHOOD] = (likelihood(draws) < likelihood(truth)).sum(0, jnp.int32)
    return ranks, fared


def fit_by_nuts(
    sampler: Sampler, key: Array, data: Columns
) -> tuple[dict[str, Array], dict[str, Array]]:
    """One chain: a chunk of draws of warm-up, and draws of the next chunk, evenly spaced."""

    def go_on(chain: Chain, number: Array) -> tuple[Chain, Any]:
        chain, *drawn = next_chunk(sampler, chain, data, number * sampler.config.chunk)
        return chain, drawn

    _, drawn_twice = jax.lax.scan(go_on, begin_chain(sampler, key, data), jnp.arange(2))
    outputs, sums = jax.tree.map(lambda x: x[-1], drawn_twice)
    apart = sampler.config.chunk // (RANKS - 1)
    draws = {name: x[::apart][: RANKS - 1] for name, x in posterior_of(outputs).items()}
    diverging = sums["divergences"] / sampler.config.chunk
    return draws, {name: sums[name] for name in ("accept", "leapfrogs")} | {"diverging": diverging}


def fit_by_svi(fit: svi.Fit, key: Array, data: Columns) -> tuple[dict[str, Array], Metrics]:
    """A guide after all updates of a run, each with the whole table."""
    columns = {name: jnp.asarray(column)[None] for name, column in data.items()}
    table = columns, jnp.ones((1, fit.rows))

    def go_on(state: State, _: None) -> tuple[State, Metrics]:
        return svi.fit_step(fit, state, table)[:2]

    state, metrics = jax.lax.scan(go_on, svi.init_state(fit, key), length=fit.steps)
    outputs = svi.draw_guide(fit, state, table)
    return {n: x[0] for n, x in posterior_of(outputs).items()}, {"loss": metrics["loss"][-1]}


def posterior_of(outputs: Outputs) -> dict[str, Array]:
    """Quantity -> its draws, of what a fit puts out."""
    group = "posterior/"
    return {n.removeprefix(group): x for n, x in outputs.items() if n.startswith(group)}


@dataclass(frozen=True)
class Calibration:
    """Empirical distributions of ranks beside that of uniform ones, and who leaves the band."""

    at: Float[np.ndarray, " point"]
    band: Float[np.ndarray, "2 point"]
    curves: dict[str, Float[np.ndarray, " point"]]
    simulations: int

    @property
    def failed(self) -> dict[str, float]:
        """Quantity -> by how much it leaves the band, the worst first."""
        low, high = self.band
        beyond = {n: np.maximum(low - y, y - high).max() for n, y in self.curves.items()}
        return {n: float(b) for n, b in sorted(beyond.items(), key=lambda x: -x[1]) if b > 0}

    def words(self) -> str:
        """For the terminal and the report."""
        what = f"{len(self.curves)} quantities in {self.simulations} simulations"
        if not self.failed:
            return f"calibrated: ranks of {what} are uniform"
        worst = ", ".join(f"{name} by {by:.3f}" for name, by in [*self.failed.items()][:3])
        return (
            f"NOT CALIBRATED: of {what}, {len(self.failed)} leave the band of uniform ranks; the "
            f"worst: {worst}\n  to do: look at the curves in the report. Above 0 at the left and "
            "below at the right, posteriors are too narrow; the other way round, too wide; to one "
            "side, biased. Where chains diverge, look at the form of the model first; where they "
            "move slowly, ranked draws are too alike: give a larger --nuts.warmup"
        )


def judge_ranks(ranks: dict[str, Int[np.ndarray, "simulation ..."]]) -> Calibration:
    """Ranks of all simulations -> their curves and the band.

    All curves of calibrated quantities stay within the band together, but for a share ALARM of
    calibrations (Säilynoja et al. 2022, arXiv:2103.10522; Bonferroni over the quantities).
    """
    random = np.random.default_rng(0)
    flat = {}
    for name, found in sorted(ranks.items()):
        for place in np.ndindex(found.shape[1:]):
            label = f"{name}[{', '.join(map(str, place))}]" if place else name
            # Spread over the width of a rank, so that they are uniform on [0, 1].
            spread_out = (found[:, *place] + random.uniform(size=len(found))) / RANKS
            flat[label] = spread_out
    count = len(next(iter(flat.values())))
    at, low, high = _band(count, len(flat))
    curves = {n: np.searchsorted(np.sort(x), at, side="right") / len(x) for n, x in flat.items()}
    return Calibration(at, np.stack([low, high]), curves, count)


@functools.cache
def _band(count: int, quantities: int) -> tuple[np.ndarray, ...]:
    trials = min(MOST_TRIALS, max(LEAST_TRIALS, round(10 * quantities / ALARM)))
    inside, random = 1 - ALARM / quantities, np.random.default_rng(0)
    at, _, low, high = ecdf_pit(np.zeros(count), inside, trials, rng=random)
    return at, low, high
