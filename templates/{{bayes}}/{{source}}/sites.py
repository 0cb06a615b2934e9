"""The sites of a model: their axes, which of them hold the rows, where their density is zero.

Traces the model; fits and draws nothing.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import handlers

from .errors import UserError

SEEN_ROWS = 1000  # by which a model is tried for what it computes across rows

type Columns = Mapping[str, Array | np.ndarray]


def sites_of(
    model: Callable[..., None], columns: Columns, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Name -> site of a trace on shapes, which computes nothing."""
    found: dict[str, Any] = {}

    def trace(columns: Columns) -> None:
        seeded = handlers.seed(partial(model, sizes=sizes), jax.random.key(0))
        found.update(handlers.trace(seeded).get_trace(**columns))

    jax.eval_shape(trace, columns)
    return found


def axes_of(
    model: Callable[..., None], columns: Columns, sizes: Mapping[str, int]
) -> dict[str, dict[int, str]]:
    """Site -> its axes, counted from the last of the batch on, and the plates that name them."""
    return {
        name: {
            frame.dim - _events(site): frame.name
            for frame in site["cond_indep_stack"]
            if _has_axis(site["value"].shape, frame.dim - _events(site), frame.size)
        }
        for name, site in sites_of(model, columns, sizes).items()
        if site["type"] in ("sample", "deterministic")
    }


def _events(site: Mapping[str, Any]) -> int:
    return getattr(site.get("fn"), "event_dim", 0)


def _has_axis(shape: tuple[int, ...], dim: int, size: int) -> bool:
    """Whether a plate is an axis: what a model computes may have further axes behind it."""
    return -dim <= len(shape) and shape[dim] == size


def latent(sites: Mapping[str, Any]) -> list[Any]:
    """Those that are sampled and not observed."""
    return [s for s in sites.values() if s["type"] == "sample" and not s["is_observed"]]


def bound_to_rows(
    model: Callable[..., None], columns: Columns, sizes: Mapping[str, int]
) -> list[str]:
    """Why a part of the rows, scaled up, does not stand for all of them; nothing where it does."""
    found = []
    for name, site in sites_of(model, columns, sizes).items():
        if site["type"] == "sample":
            in_row = any(frame.name == "row" for frame in site["cond_indep_stack"])
            if site["is_observed"] and not in_row:
                found.append(f"{name} is observed outside of the plate row")
            if in_row and not site["is_observed"]:
                found.append(f"{name} is sampled for each row")
    return found or _across_rows(model, columns, sizes)


def _across_rows(
    model: Callable[..., None], columns: Columns, sizes: Mapping[str, int]
) -> list[str]:
    """Sites whose density of a row changes where half of the rows are left out.

    A model that takes, say, the mean of a column does so. Seen at one draw from the priors.
    """
    rows, densities = min(sizes["row"], SEEN_ROWS), []
    for count in (rows, -(-rows // 2)):  # one row alone is its own half
        few = {name: jnp.asarray(column[:count]) for name, column in columns.items()}
        seeded = handlers.seed(partial(model, sizes={**sizes, "row": count}), jax.random.key(0))
        try:
            sites = handlers.trace(seeded).get_trace(**few).items()
            sampled = [(name, site) for name, site in sites if site["type"] == "sample"]
            densities.append({name: site["fn"].log_prob(site["value"]) for name, site in sampled})
        except (TypeError, ValueError) as error:
            return [f"the model fails on {count} rows: {str(error).splitlines()[0]}"]
    found = []
    for name, half in densities[1].items():
        same = densities[0][name][tuple(slice(size) for size in half.shape)]
        if not np.allclose(same, half, rtol=1e-3, atol=1e-3, equal_nan=True):
            found.append(f"the density of {name} in a row depends on other rows")
    return found


def refuse_start(model: Callable[..., None], columns: Columns, key: Array) -> UserError:
    """The refusal of a model that has no point to begin at, with the sites to look at."""
    sites = handlers.trace(handlers.seed(model, key)).get_trace(**jax.device_put(dict(columns)))
    zero = [
        name
        for name, site in sites.items()
        if site["type"] == "sample" and not jnp.isfinite(site["fn"].log_prob(site["value"])).all()
    ]
    return UserError(
        got="a posterior density that is zero or not a number wherever a fit could begin"
        + f"; at a draw from the priors, so are the factors of {', '.join(zero)}" * bool(zero),
        expected="a density above zero near 0 on the unconstrained scale",
        do="look at the prior and the likelihood of these: does the support of one hold the data, "
        "and are scales above 0?",
    )
