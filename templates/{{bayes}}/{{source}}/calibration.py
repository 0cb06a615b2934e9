"""Simulation-based calibration: does the sampler find what the model itself has drawn?

Parameters are drawn from the prior and data from the model, which is the function that is fitted;
then the posterior of those data is drawn from. Where model and sampler are right, the rank of what
was drawn among the draws of its posterior is uniform (Talts et al. 2018, arXiv:1804.06788). Pure
functions of one state, for the loop that all runs share. Judges no single fit.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.ecdf_utils import ecdf_pit
from jaxtyping import Array, Float, Int
from numpyro import handlers
from numpyro.infer.util import log_likelihood

from .contract import Metrics, Outputs, State
from .nuts import Chain, Columns, Sampler, begin_chain, next_chunk, spread

AT_ONCE = 8  # simulations a step
RANKS = 100  # a rank is one of so many numbers: of the draws, RANKS - 1 are compared
ALARM = 0.01  # how often a calibrated model is refused
TRIALS = 4000  # of uniform ranks, for the band that all of them stay in but for ALARM
LIKELIHOOD = "log_likelihood"  # notices what parameters do not: data that are ignored, or weighed
# wrongly (Modrák et al. 2023, Simulation-based calibration checking for Bayesian computation)


def init_state(key: Array) -> State:
    """The key is all that a simulation starts from."""
    return {"step": jnp.zeros((), jnp.int32), "key": key}


def calibrate_step(
    sampler: Sampler, outcome: str, state: State, columns: Columns
) -> tuple[State, Metrics, Outputs]:
    """AT_ONCE simulations; outputs are ranks, from 0 to RANKS - 1. `sampler.chains` is AT_ONCE.

    The chain of each is warmed up for a chunk of draws, and RANKS - 1 of the next chunk are ranked.
    """
    keys = jax.random.split(jax.random.fold_in(state["key"], state["step"]), AT_ONCE)
    one = partial(_simulate, sampler, outcome)
    ranks, shares = spread(sampler, one, keys, columns)
    metrics = {name: share.mean() for name, share in shares.items()}
    return state | {"step": state["step"] + 1}, metrics, ranks


def _simulate(
    sampler: Sampler, outcome: str, key: Array, columns: Columns
) -> tuple[dict[str, Int[Array, "..."]], dict[str, Float[Array, ""]]]:
    """Ranks of one simulation by quantity, and how its chain fared."""
    of_model, of_chain = jax.random.split(key)
    model = sampler.kernel.model
    given = {name: column for name, column in columns.items() if name != outcome}
    sites = handlers.trace(handlers.seed(model, of_model)).get_trace(**given)
    drawn = {name: site["value"] for name, site in sites.items()}
    data = given | {outcome: drawn[outcome].astype(columns[outcome].dtype)}

    kept = sampler.config.chunk

    def go_on(chain: Chain, number: Array) -> tuple[Chain, Any]:
        chain, *drawn = next_chunk(sampler, chain, data, number * kept)
        return chain, drawn

    # The first chunk is the warm-up.
    _, drawn_twice = jax.lax.scan(go_on, begin_chain(sampler, of_chain, data), jnp.arange(2))
    outputs, sums = jax.tree.map(lambda x: x[-1], drawn_twice)
    draws = {
        name.removeprefix("posterior/"): values[:: kept // (RANKS - 1)][: RANKS - 1]
        for name, values in outputs.items()
        if name.startswith("posterior/")
    }
    truth = {name: drawn[name] for name in draws}

    def fit_of(values: dict[str, Array]) -> Array:
        return log_likelihood(model, values, **data)[outcome].reshape(-1, data[outcome].size).sum(1)

    draws |= {LIKELIHOOD: fit_of(draws)}
    truth |= {LIKELIHOOD: fit_of({name: value[None] for name, value in truth.items()})[0]}
    ranks = {name: (draws[name] < truth[name]).sum(0).astype(jnp.int32) for name in draws}
    shares = {"accept": sums["accept"], "diverging": sums["divergences"] / kept}
    return ranks, shares | {"leapfrogs": sums["leapfrogs"]}


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
            "side, biased. Where chains diverge, look at the form of the model first"
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
    inside = 1 - ALARM / len(flat)
    first = next(iter(flat.values()))
    at, _, low, high = ecdf_pit(first, inside, TRIALS, rng=np.random.default_rng(0))
    curves = {n: np.searchsorted(np.sort(x), at, side="right") / len(x) for n, x in flat.items()}
    return Calibration(at, np.stack([low, high]), curves, len(first))
