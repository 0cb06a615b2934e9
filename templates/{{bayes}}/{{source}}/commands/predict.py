"""`predict`: the outcome of rows that the fit has not seen."""

from typing import Annotated

import tyro

from ..errors import Exit
from ..run_config import Bounds


def predict(
    *,
    path: Annotated[str, tyro.conf.arg(name="data.path")] = "",
    columns: Annotated[tuple[str, ...], tyro.conf.arg(name="data.columns")] = (),
    run_dir: str = "runs/demo",
    to: str = "predictions.zarr",
    draws: Annotated[int, Bounds(above=0)] = 1000,
    interval: Annotated[float, Bounds(above=0, most=1)] = 0.9,
    seed: Annotated[int, Bounds(least=0, most=2**32 - 1)] = 0,
) -> Exit:
    """Draw the outcome of each row of a table from the posterior predictive distribution.

    Args:
        path: the table, .csv or .parquet, with the columns of the fit; the outcome may be missing
        columns: as in `fit`; none = those of the fit
        run_dir: the folder of a finished fit
        to: the Zarr store to write: draws in `posterior_predictive`, intervals in `summary`
        draws: of each row, at most; they are thinned evenly
        interval: probability inside HDI and ETI
        seed: the same seed makes the same predictions
    """
    from ..predicted import predict_table
    from ..runtime.start import start

    start()
    return predict_table(run_dir, path, columns, to, draws, interval, seed)
