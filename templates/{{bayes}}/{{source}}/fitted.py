"""Opens the run folder of a fit that is over: draws, table, model. Fits and writes nothing."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import models
from .config import Config
from .errors import UserError
from .posterior.draws import read_draws
from .posterior.table import Prepared
from .records import store
from .records.mirror import Mirror
from .records.summary import facts
from .run_config import from_dict
from .workload import TABLE, code_sha256


@dataclass(frozen=True)
class Fitted:
    """A fit and its verdict."""

    run_dir: str
    run: Mirror
    config: Config
    module: Any
    """The file of `models/`."""
    prepared: Prepared
    identity: dict[str, Any]
    is_trusted: bool

    @property
    def model(self) -> Callable[..., None]:
        """Of columns and, where it is not sampled, the outcome."""
        return functools.partial(self.module.model, sizes=self.prepared.sizes)

    @functools.cached_property
    def tree(self) -> Any:
        """All groups, as an ArviZ DataTree."""
        return read_draws(self.run.local / "outputs")

    def refused(self) -> str:
        """Why nothing is made of these draws, in words; empty where they are trusted."""
        if self.is_trusted:
            return ""
        return (
            f"THE DRAWS OF {self.run_dir} ARE REFUSED; `diagnose --run-dir {self.run_dir}` says why"
        )


def open_fit(run_dir: str) -> Fitted:
    """A finished fit. UserError where there is none, or its model has changed since."""
    run = Mirror(run_dir, reader=True)
    for part in ("config.json", "summary.json", "inputs/", "outputs/"):
        run.fetch(part)
    about, summary = facts(run.local / "config.json"), facts(run.local / "summary.json")
    if "trusted" not in summary or not store.exists(run.local / "inputs" / TABLE):
        raise UserError(
            got=f"--run-dir {run_dir}, which holds no finished fit",
            expected="the folder of a fit that has come to its verdict",
            do="give the --run-dir of a fit, or run its `fit` command again: it goes on to the end",
        )
    sizes = read_draws(run.local / "outputs")["posterior"].sizes
    if sizes.get("chain", 0) * sizes.get("draw", 0) != summary["draws"]:
        raise UserError(
            got=f"--run-dir {run_dir}, which has gone on since its verdict",
            expected="the folder of a fit that has come to its verdict",
            do="run its `fit` command again: it goes on to the end",
        )
    config = from_dict(Config(), about["config"])
    module = models.load(config.model.name)
    identity = about["identity"]
    if code_sha256(module) != identity["model_sha256"]:
        raise UserError(
            got=f"{run_dir}, fitted by another model than models/{config.model.name}.py is now",
            expected="the model of the fit",
            do="fit again in a new --run-dir, or take the change of that file back",
        )
    prepared = Prepared.unpack(store.read(run.local / "inputs" / TABLE))
    return Fitted(run_dir, run, config, module, prepared, identity, bool(summary["trusted"]))


def check_same_rows(fits: list[Fitted]) -> None:
    """Refuse fits of other data: only densities of the same outcome can be compared."""
    first, name = fits[0], fits[0].module.OUTCOME
    rows, values = first.prepared.coords["row"], first.prepared.arrays[name]
    for other in fits[1:]:
        found = other.prepared.arrays[other.module.OUTCOME]
        if name != other.module.OUTCOME:
            differs = f"the outcome is {other.module.OUTCOME}, not {name}"
        elif other.prepared.coords["row"] != rows:
            differs = f"{len(found)} rows, or their names, are not the {len(rows)}"
        elif not np.array_equal(values, found):
            row = int(np.flatnonzero(values != found)[0])
            differs = f"{name} of row {row + 1} is {found[row]}, not {values[row]}"
        else:
            continue
        raise UserError(
            got=f"{other.run_dir}, where {differs} as in {first.run_dir}",
            expected="fits of the same outcome of the same rows; predictors may differ",
            do="compare runs of one table",
        )
