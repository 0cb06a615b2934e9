"""Settings of the table. Imports no JAX."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """Which table, and which of its columns are the model's."""

    path: str = ""  # .csv or .parquet; none = the example of the model
    # The model's name of a column = the table's, such as hits=successes; others have equal names.
    columns: tuple[str, ...] = ()
    predictors: tuple[str, ...] = ()  # columns of the linear term; none = all that are left over
    index: str = ""  # column that names the rows, each name once; none = their numbers
