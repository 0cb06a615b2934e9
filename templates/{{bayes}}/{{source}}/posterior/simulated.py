"""What a model says of data, by draws: replicates of the outcome and its log likelihood.

A model is called without its outcome, which it samples then: the code that draws from the prior,
replicates the data and predicts is the model's own. One draw after the other is mapped by one
compiled program, in blocks of bounded memory. Judges no sampler and draws no plot.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray
from jaxtyping import Array, Num
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_likelihood

from .draws import consolidate
from .table import Prepared

BLOCK = 1 << 24  # numbers that a block of draws makes on the device
KEPT = 1 << 26  # numbers of a group that is kept with the draws: of more, every k-th draw
PRIOR_DRAWS = 1000
type Columns = Mapping[str, Array | np.ndarray]
type Model = Callable[..., None]


def simulate(
    module: Any, prepared: Prepared, posterior: xarray.Dataset, seed: int
) -> dict[str, xarray.Dataset]:
    """ArviZ's groups of a fit: prior, predictive, log likelihood and data, by thinned draws.

    The outcome is in the unit of the model: a standardised one stays so.
    """
    model, outcome = functools.partial(module.model, sizes=prepared.sizes), module.OUTCOME
    observed, rows = prepared.arrays[outcome], prepared.sizes["row"]
    inputs = {name: array for name, array in prepared.arrays.items() if name != outcome}
    draws = thinned(posterior, KEPT // rows)
    keys = jax.random.split(jax.random.key(seed), 3)
    names = {dim: prepared.coords[dim] for dim in ("row",)}

    def group(values: np.ndarray, like: Any = None) -> xarray.Dataset:
        coords = names if like is None else {"chain": like.chain, "draw": like.draw} | names
        dims = ("row",) if like is None else ("chain", "draw", "row")
        return xarray.Dataset({outcome: (dims, values)}, coords)

    parts = {
        "posterior_predictive": replicates(model, outcome, inputs, draws, keys[0]),
        "log_likelihood": likelihoods(model, outcome, prepared.arrays, draws),
    }
    found = {n: group(np.concatenate([b for _, b in p], 1), draws) for n, p in parts.items()}
    count = max(2, min(PRIOR_DRAWS, KEPT // rows))
    before = jax.jit(lambda key, columns: Predictive(model, num_samples=count)(key, **columns))
    prior = {name: np.asarray(array)[None] for name, array in before(keys[1], inputs).items()}
    like = xarray.Dataset(coords={"chain": [0], "draw": range(count)})
    found["prior_predictive"] = group(prior[outcome], like)
    shared = {n: (posterior[n].dims, prior[n]) for n in posterior.data_vars if n in prior}
    axes_of = posterior.drop_vars(["chain", "draw"]).coords
    found["prior"] = xarray.Dataset(shared, {**like.coords, **axes_of})
    found["observed_data"] = group(observed)
    axes = {n: ("row", "predictor")[: array.ndim] for n, array in inputs.items()}
    coords = names | {"predictor": prepared.coords["predictor"]}
    found["constant_data"] = xarray.Dataset({n: (axes[n], a) for n, a in inputs.items()}, coords)
    return found


def replicates(
    model: Model,
    outcome: str,
    inputs: Columns,
    draws: xarray.Dataset,
    key: Array,
    *,
    new_rows: bool = False,
) -> Iterator[tuple[int, Num[np.ndarray, "chain draw row"]]]:
    """Blocks of the outcome as the model draws it: the first draw of each, and its values.

    A draw has a key of its own, so that the blocks change no bit of it. `new_rows`: what belongs to
    a row, such as an effect of its own, is drawn anew.
    """

    def one(columns: Columns, draw: dict[str, Array], key: Array) -> Array:
        drawn = handlers.seed(handlers.substitute(model, draw), key)
        return handlers.trace(drawn).get_trace(**columns)[outcome]["value"]

    names = _latent(model, outcome, inputs, new_rows)
    return _over_draws(one, inputs, draws, names, key)


def likelihoods(
    model: Model, outcome: str, columns: Columns, draws: xarray.Dataset
) -> Iterator[tuple[int, Num[np.ndarray, "chain draw row"]]]:
    """Blocks of the log density of each row, given a draw."""

    def one(columns: Columns, draw: dict[str, Array], key: Array) -> Array:
        return log_likelihood(model, draw, batch_ndims=0, **columns)[outcome]

    inputs = {name: array for name, array in columns.items() if name != outcome}
    return _over_draws(one, columns, draws, _latent(model, outcome, inputs), jax.random.key(0))


def thinned(draws: xarray.Dataset, most: int) -> xarray.Dataset:
    """Every k-th draw of each chain, so that there are `most` at most, and two of each chain."""
    count = draws.sizes["draw"]
    wanted = min(max(2, most // draws.sizes["chain"]), count)
    return draws.isel(draw=slice(0, wanted * (count // wanted), count // wanted))


def write_groups(folder: Path, groups: Mapping[str, xarray.Dataset]) -> None:
    """Put groups beside those of a Zarr store; groups of these names are replaced."""
    for name, group in groups.items():
        group.to_zarr(folder, group=name, mode="w", consolidated=False)
    consolidate(folder)


def check_statistics(
    kind: str, observed: Num[np.ndarray, " row"], replicated: Num[np.ndarray, "*sample row"]
) -> dict[str, dict[str, float]]:
    """Statistic -> of the data, mean of the replicates, and the posterior predictive p-value.

    p: the share of replicates above the data, ties by half (a smallest count of 0 in both is no
    sign of misfit); near 0 or 1, the model does not make such data. Gelman, Meng and Stern (1996),
    Posterior predictive assessment of model fitness via realized discrepancies.
    """
    found = {}
    for name in STATISTICS[kind.partition(" ")[0]]:
        of_data, made = FUNCTIONS[name](observed), FUNCTIONS[name](replicated)
        p = (made > of_data).mean() + (made == of_data).mean() / 2
        found[name] = {"data": float(of_data), "replicates": float(made.mean()), "p": float(p)}
    return found


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda y: y.mean(-1, dtype=np.float64),
    "deviation": lambda y: y.std(-1, dtype=np.float64),
    "smallest": lambda y: y.min(-1),
    "largest": lambda y: y.max(-1),
    "share of zeros": lambda y: (y == 0).mean(-1),
}
OF_NUMBERS = ["mean", "deviation", "smallest", "largest"]
STATISTICS: dict[str, Sequence[str]] = {
    **dict.fromkeys(("real", "positive", "standardised"), OF_NUMBERS),
    "count": [*OF_NUMBERS, "share of zeros"],
    "binary": ["mean"],  # the others are functions of it
}


def _latent(model: Model, outcome: str, inputs: Columns, new_rows: bool = False) -> list[str]:
    """The quantities that the model draws; what it computes from them is left out."""
    found: list[str] = []

    def trace(columns: Columns) -> None:
        for name, site in handlers.trace(handlers.seed(model, 0)).get_trace(**columns).items():
            is_drawn = site["type"] == "sample" and not site["is_observed"] and name != outcome
            plates = [frame.name for frame in site.get("cond_indep_stack", ())]
            if is_drawn and not (new_rows and "row" in plates):
                found.append(name)

    jax.eval_shape(trace, inputs)
    return found


def _over_draws(
    one: Callable[..., Array],
    columns: Columns,
    draws: xarray.Dataset,
    names: Sequence[str],
    key: Array,
) -> Iterator[tuple[int, np.ndarray]]:
    """`one(columns, draw, key)` of each draw of each chain, a row of numbers, in blocks."""
    chains, count = draws.sizes["chain"], draws.sizes["draw"]
    first = {name: draws[name].values[0, 0] for name in names}
    numbers_a_draw = jax.eval_shape(one, columns, first, key).size
    block = min(count, max(1, BLOCK // (chains * numbers_a_draw)))

    @jax.jit
    def run(columns: Columns, draws: dict[str, Array], numbers: Array, key: Array) -> Array:
        def all_chains(draw: dict[str, Array], number: Array) -> Array:
            keys = jax.random.split(jax.random.fold_in(key, number), chains)
            return jax.vmap(functools.partial(one, columns))(draw, keys)

        return jax.lax.map(lambda each: all_chains(*each), (draws, numbers))

    columns = jax.device_put(dict(columns))
    values = {name: np.moveaxis(draws[name].values, 1, 0) for name in names}
    for start in range(0, count, block):
        numbers = np.arange(start, start + block) % count  # the last block is filled up
        made = run(columns, {n: a[numbers] for n, a in values.items()}, numbers, key)
        yield start, np.moveaxis(np.asarray(made), 1, 0)[:, : count - start]
