"""Leave-one-out cross-validation by importance sampling, and models ranked by it. Refits nothing.

PSIS-LOO: Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out
cross-validation and WAIC, which it has replaced: it says of each row whether it may be trusted.
Stacking: Yao et al. (2018), Using stacking to average Bayesian predictive distributions. Draws of a
guide carry their weights, log p(x, z) - log q(z), into it: Magnusson et al. (2019), Bayesian
leave-one-out cross-validation for large data.
"""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import arviz_stats
import numpy as np
import xarray
from arviz_stats.ecdf_utils import ecdf_pit
from jaxtyping import Float, Int

MOST_PITS = 1000  # of more rows, every k-th: the band is simulated
COVERED = 0.95  # of right models, whose whole curve is within the band


def leave_one_out(tree: Any) -> Any:
    """ArviZ's ELPDData of a fit with its log likelihood, row by row."""
    with warnings.catch_warnings():  # of k-hats, which `bad_rows` lists
        warnings.simplefilter("ignore")
        both = _same_draws(tree, "log_likelihood")
        weights = _guide_weights(tree, both)
        if weights is None:
            return arviz_stats.loo(both, pointwise=True)
        return arviz_stats.loo_approximate_posterior(both, weights, 0 * weights, pointwise=True)


def bad_rows(score: Any) -> Int[np.ndarray, " row"]:
    """Rows whose k-hat is above the bound for this number of draws: their density is not known."""
    return np.flatnonzero(~(score.pareto_k.values <= score.good_k))


def with_exact(score: Any, exact: Mapping[int, float]) -> Any:
    """The same where the log densities of some rows come from fits without them."""
    score, before = copy.deepcopy(score), score.elpd
    for row, value in exact.items():
        score.elpd_i.values[row], score.pareto_k.values[row] = value, 0.0
    of_rows = score.elpd_i.values.astype(np.float64)
    score.elpd, score.se = of_rows.sum(), (of_rows.size * of_rows.var(ddof=1)) ** 0.5
    score.p += before - score.elpd
    score.warning = bool(bad_rows(score).size)
    return score


def ranked(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Model -> elpd, difference to the best and its standard error, stacking weight; best first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = arviz_stats.compare(dict(scores), method="stacking", round_to="none")
    wanted = ["elpd", "se", "p", "elpd_diff", "dse", "weight"]
    found = {str(name): {key: float(row[key]) for key in wanted} for name, row in table.iterrows()}
    return {name: row | {"bad k-hat": len(bad_rows(scores[name]))} for name, row in found.items()}


def pit(tree: Any) -> Float[np.ndarray, " row"]:
    """P(replicate <= data) of each row, given the others: uniform where the model is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = _same_draws(tree, "log_likelihood", "posterior_predictive", "observed_data")
        weights, of_rows = _guide_weights(tree, both), {}
        if weights is not None:
            # ArviZ smooths the reciprocals of densities.
            density = both["log_likelihood"].to_dataset() - weights
            found = {n: x.azstats.psislw(dim=["chain", "draw"]) for n, x in density.items()}
            of_rows = {
                key: xarray.Dataset({name: each[place] for name, each in found.items()})
                for place, key in enumerate(("log_weights", "pareto_k"))
            }
        (values,) = arviz_stats.loo_pit(both, **of_rows).data_vars.values()
    return values.values[:: -(-values.size // MOST_PITS)]


def pit_curve(pits: Float[np.ndarray, " row"]) -> tuple[np.ndarray, ...]:
    """Points, and at each the ECDF of the values less theirs, and the band of uniform ones.

    Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity and its
    applications in goodness-of-fit evaluation and multiple sample comparison.
    """
    at, curve, lower, upper = ecdf_pit(pits, COVERED, 1000)
    return at, curve - at, lower - at, upper - at


def _guide_weights(tree: Any, both: Any) -> xarray.DataArray | None:
    """Log weights of the draws of a guide, up to a constant; None for draws of the posterior."""
    stats = tree["sample_stats"].to_dataset() if "sample_stats" in tree else {}
    if "log_weight" not in stats:
        return None
    weights = stats["log_weight"].sel(draw=both["posterior"]["draw"])
    return weights - weights.max()


def _same_draws(tree: Any, *groups: str) -> xarray.DataTree:
    found = {name: tree[name].to_dataset() for name in groups}
    posterior = tree["posterior"].to_dataset()
    found["posterior"] = posterior.sel(draw=found["log_likelihood"]["draw"])
    return xarray.DataTree.from_dict(found)
