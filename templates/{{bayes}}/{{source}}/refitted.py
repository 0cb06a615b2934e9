"""Fits without some of the rows, to score them exactly. The sampler is that of `fit`.

A row is left out by its factor of the likelihood, so that all shapes stay, one program serves every
fold, and a group without rows is drawn from its population. Scales of predictors stay those of the
whole table.
"""

import functools
import hashlib
import math
from typing import Any

import jax
import numpy as np
import xarray
from jaxtyping import Int
from numpyro.primitives import Messenger

from .errors import UserError
from .fitted import Fitted
from .nuts import init_state, make_sampler, sample_step
from .posterior.diagnosis import judge
from .posterior.simulated import likelihoods
from .records import store
from .run_config import MeshConfig
from .runtime.sharding import make_mesh

MOST_DRAWS = 1000  # of each chain, or as many as the fit has


class LeftOut(Messenger):
    """Inside it, the outcome of a row counts where `kept` is true."""

    def __init__(self, outcome: str, kept: Any) -> None:
        self.outcome, self.kept = outcome, kept
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["name"] == self.outcome:
            msg["fn"] = msg["fn"].mask(self.kept)


def refit(fit: Fitted, folds: list[np.ndarray]) -> tuple[dict[int, float], list[str]]:
    """Row -> its log density, given all rows outside its fold; and which fits are not trusted.

    A fold that is done is kept in DIR/folds, so that a command that was stopped goes on.
    """
    if fit.config.method == "svi":
        raise UserError(
            got=f"--folds for {fit.run_dir}, a guide fitted by SVI",
            expected="fits by NUTS, which the folds are fitted by",
            do="fit this model by NUTS, or leave the run out",
        )
    found: dict[int, float] = {}
    problems = []
    score = functools.cache(functools.partial(_scorer, fit))  # compiled if a fold is missing
    for rows in folds:
        about = repr((sorted(fit.identity.items(), key=str), _draws(fit), rows.tolist()))
        path = fit.run.local / "folds" / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
        if not store.exists(path):
            values, words = score()(rows)
            store.write_json(path, {"rows": rows.tolist(), "elpd": values, "problems": words})
            fit.run.send("folds/")
        known = store.read_json(path)
        found |= dict(zip(known["rows"], known["elpd"], strict=True))
        if known["problems"]:
            named = ", ".join(str(fit.prepared.coords["row"][row]) for row in rows)
            problems.append(f"{fit.run_dir} without the rows {named}:\n{known['problems']}")
    return found, problems


def _draws(fit: Fitted) -> int:
    return min(MOST_DRAWS, fit.tree["posterior"].sizes["draw"])


def _scorer(fit: Fitted) -> Any:
    """Rows -> their log densities by a fit without them, and what is wrong with its draws."""
    config, outcome = fit.config.nuts, fit.module.OUTCOME
    chains = max(4, config.chains)
    devices = jax.local_devices()[: math.gcd(chains, jax.local_device_count())]
    mesh = make_mesh(MeshConfig(), devices)

    def model(kept: Any, **columns: Any) -> None:
        with LeftOut(outcome, kept):
            fit.module.model(**columns)

    arrays = fit.prepared.arrays
    whole = arrays | {"kept": np.ones(len(arrays[outcome]), bool)}
    sampler = make_sampler(config, model, whole, fit.prepared.sizes, mesh, chains)
    begin = jax.jit(functools.partial(init_state, sampler))
    step = jax.jit(functools.partial(sample_step, sampler), donate_argnums=0)
    warmup = config.warmup // config.chunk
    steps = warmup + -(-_draws(fit) // config.chunk)

    def score(rows: Int[np.ndarray, " row"]) -> tuple[list[float], str]:
        kept = np.ones(len(arrays[outcome]), bool)
        kept[rows] = False
        columns, outputs = jax.device_put(arrays | {"kept": kept}), []
        with jax.set_mesh(mesh):
            state = begin(jax.random.key(fit.config.run.seed), columns)
            for number in range(steps):
                state, _, made = step(state, columns)
                if number >= warmup:
                    outputs.append(jax.device_get(made))
        tree = _tree({n: np.concatenate([o[n] for o in outputs], 1) for n in outputs[0]})
        verdict = judge(tree, getattr(fit.module, "JUDGED", ()))
        blocks = likelihoods(fit.model, outcome, arrays, tree["posterior"].to_dataset())
        density = np.concatenate([block[..., rows] for _, block in blocks], 1)
        of_rows = np.logaddexp.reduce(density.astype(np.float64), axis=(0, 1))
        of_rows -= math.log(density.shape[0] * density.shape[1])
        return of_rows.tolist(), "" if verdict.is_good else verdict.words()

    return score


def _tree(arrays: dict[str, np.ndarray]) -> xarray.DataTree:
    groups: dict[str, dict[str, Any]] = {"posterior": {}, "sample_stats": {}}
    for path, values in arrays.items():
        group, _, name = path.partition("/")
        dims = [f"{name}_dim_{i}" for i in range(values.ndim - 2)]
        groups[group][name] = (("chain", "draw", *dims), values)
    return xarray.DataTree.from_dict({n: xarray.Dataset(g) for n, g in groups.items()})
