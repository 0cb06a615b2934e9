"""The posterior predictive distribution of a new table, in a Zarr store. Fits nothing.

    posterior_predictive/OUTCOME (chain, draw, row)     summary/mean (row), hdi, eti (row, bound)

It is written in blocks of draws and summarised in blocks of rows, so that the memory that it takes
depends on neither.
"""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz_stats
import jax
import xarray
import zarr

from .errors import Exit, UserError
from .fitted import Fitted, open_fit
from .posterior import simulated
from .posterior.draws import consolidate
from .posterior.table import Prepared, prepare, read_table
from .records import store

GROUP = "posterior_predictive"


def predict_table(
    run_dir: str, path: str, columns: tuple[str, ...], to: str, draws: int, prob: float, seed: int
) -> Exit:
    """Write the store; REFUSED where the draws of the fit are."""
    folder = store.on_disk(to)
    if store.exists(folder):
        raise UserError(
            got=f"--to {to}, which is there", expected="a new name", do="give another, or delete it"
        )
    fit = open_fit(run_dir)
    if not fit.is_trusted:
        print(fit.refused())
        return Exit.REFUSED
    columns = columns or fit.config.data.columns
    data = replace(fit.config.data, path=path, columns=columns, predictors=(), index="")
    known, wanted = fit.prepared, fit.module.COLUMNS
    new = prepare(read_table(path), wanted, data, known=known, without=fit.module.OUTCOME)
    part = folder.with_name(f"{folder.name}.part")  # a kill leaves nothing under the name itself
    store.remove(part)
    array = write_draws(fit, new, part, draws, seed)
    summarise(part, array, prob, new.coords["row"])
    about: dict[str, Any] = {"run_dir": run_dir, "model": fit.config.model.name}
    about |= {"seed": seed, "interval": prob}
    zarr.open_group(str(part)).attrs.update(about)
    consolidate(part)
    store.rename(part, folder)
    print(f"{to}: {array.shape[2]} rows, {array.shape[1]} draws of each of {array.shape[0]} chains")
    return Exit.DONE


def write_draws(fit: Fitted, new: Prepared, folder: Path, most: int, seed: int) -> zarr.Array:
    """Replicates of a table in its own unit; the Zarr array that holds them."""
    outcome = fit.module.OUTCOME
    draws = simulated.thinned(fit.tree["posterior"].to_dataset(), most)
    shape = (draws.sizes["chain"], draws.sizes["draw"], new.sizes["row"])
    coords = {"chain": draws.chain.values, "draw": draws.draw.values, "row": new.coords["row"]}
    xarray.Dataset(coords=coords).to_zarr(folder, group=GROUP, mode="w", consolidated=False)
    mean, deviation = fit.prepared.scales.get(f"model.{outcome}", (None, 1.0))
    inputs = {name: array for name, array in new.arrays.items() if name != outcome}
    model, key = functools.partial(fit.module.model, sizes=new.sizes), jax.random.key(seed)
    array = None
    for start, block in simulated.replicates(model, outcome, inputs, draws, key, new_rows=True):
        values = block if mean is None else block * deviation + mean
        array = array or zarr.open_group(str(folder / GROUP)).create_array(
            outcome,
            shape=shape,
            chunks=(shape[0], values.shape[1], min(shape[2], _rows(shape))),
            dtype=values.dtype,
            dimension_names=("chain", "draw", "row"),
        )
        array[:, start : start + values.shape[1]] = values
    assert array is not None  # a finished fit has draws
    return array


def summarise(folder: Path, array: zarr.Array, prob: float, names: list) -> None:
    """Mean, highest density interval and equal-tailed interval of each row."""
    rows, dims = _rows(array.shape), ("chain", "draw")
    parts = []
    for start in range(0, array.shape[2], rows):
        block = xarray.DataArray(array[:, :, start : start + rows], dims=(*dims, "row"))
        hdi, eti = (of(block, prob=prob, dim=dims) for of in (arviz_stats.hdi, arviz_stats.eti))
        parts.append(xarray.Dataset({"mean": block.mean(dims), "hdi": hdi, "eti": eti}))
    whole = xarray.concat(parts, "row").assign_coords(row=names)
    whole.to_zarr(folder, group="summary", mode="w", consolidated=False)


def _rows(shape: tuple[int, ...]) -> int:
    """Rows whose draws are a block."""
    return max(1, simulated.BLOCK // (shape[0] * shape[1]))
