"""Models, one file each, found by its name. No file, sampler, mesh or device enters.

A file has `model`, a pure NumPyro function of its columns and of `sizes` (rows, predictors, groups
of each column); `COLUMNS`, the kind of each column (see posterior/table.py); `OUTCOME`, the column
that the model explains, which is sampled where it is left out; and `example`, a table of real data.
`JUDGED`, which may be left out, names the quantities that a diagnosis judges: all others, then, are
not identified, such as the weights of a network.
"""

import importlib
import pkgutil
from typing import Any


def names() -> list[str]:
    """Every model, by its file name. Imports none of them."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "tests")


def load(name: str) -> Any:
    """The module of a model."""
    return importlib.import_module(f"{__name__}.{name}")
