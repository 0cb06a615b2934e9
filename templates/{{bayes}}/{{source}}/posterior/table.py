"""A table of the user, checked cell by cell and made into arrays with named coordinates. No JAX.

Kinds of columns: `real`, `positive`, `count` (0, 1, 2, …), `count of OTHER` (at most that column),
`binary` (0 or 1), `standardised` (real, to mean 0 and deviation 1), `group` (any text, to codes
from 0 on) and `predictors` (any number of real columns, each standardised, to one matrix).
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..errors import UserError
from .settings import DataConfig

type Table = Mapping[str, Sequence[Any]]
"""Column -> its cells, as a file holds them: numbers, texts, None where one is missing."""
ABOUT = "about the table"  # no column of a model, which are Python's names
MISSING = {"", "na", "nan", "null", "none"}


@dataclass(frozen=True)
class Prepared:
    """The columns of a model as arrays, and what their axes are called."""

    arrays: dict[str, np.ndarray]
    sizes: dict[str, int]
    """Rows, predictors, and groups of each column of groups: lengths of axes."""
    coords: dict[str, list[Any]]
    """Axis -> the names along it."""
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Predictor, or `model.` and the model's name of a column -> its mean and deviation."""

    @property
    def sha256(self) -> str:
        """Hash of all values and names."""
        digest = hashlib.sha256(repr((self.coords, self.scales)).encode())
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def packed(self) -> bytes:
        """All of it as an .npz file, which `unpack` reads."""
        file = io.BytesIO()
        about = json.dumps([self.sizes, self.coords, self.scales])
        np.savez(file, **self.arrays, **{ABOUT: np.array(about)})  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def unpack(cls, content: bytes) -> "Prepared":
        """What `packed` wrote."""
        with np.load(io.BytesIO(content)) as file:
            arrays = {name: file[name] for name in file.files}
        sizes, coords, scales = json.loads(str(arrays.pop(ABOUT)))
        return cls(arrays, sizes, coords, {n: (m, d) for n, (m, d) in scales.items()})


def read_table(path: str) -> Table:
    """A CSV file, all cells as texts, or a Parquet file."""
    import pyarrow
    from pyarrow import csv, parquet

    try:
        if path.endswith(".parquet"):
            return parquet.read_table(path).to_pydict()
        names = csv.open_csv(path).schema.names
        texts = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
        )
        found = csv.read_csv(path, convert_options=texts)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(
            got=f"--data.path {path}: {error}",
            expected="a readable .csv with a line of names, or a .parquet file",
            do="correct the path or the file",
        ) from error
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            got=f"{path} with two columns {', '.join(sorted(twice))}",
            expected="a name of its own for each column",
            do="rename one of them in the file",
        )
    return found.to_pydict()


def prepare(
    table: Table,
    columns: Mapping[str, str],
    data: DataConfig,
    *,
    known: Prepared | None = None,
    without: str = "",
) -> Prepared:
    """The arrays of a model's columns.

    `known`: what a fit was made of, whose groups and scales are taken; a group that it has not seen
    is refused. `without`: a column that need not be there, the outcome of a prediction.
    """
    place = data.path or "the example"
    renamed = dict(pair.split("=") for pair in data.columns)
    _check_names(place, {*renamed}, {*columns}, "of the model")
    wanted = {name: renamed.get(name, name) for name, kind in columns.items() if kind != PREDICTORS}
    wanted = {name: column for name, column in wanted.items() if name != without or column in table}
    used = {*wanted.values(), data.index}
    rest = [c for c in table if c not in used and c != renamed.get(without, without)]
    of_fit = [*data.predictors] or rest if known is None else known.coords["predictor"]
    predictors = of_fit if PREDICTORS in columns.values() else []
    _check_names(
        place, {*wanted.values(), *predictors, data.index} - {""}, {*table}, "of the table"
    )
    rows = len(next(iter(table.values()), ()))
    if not rows:
        raise UserError(got=f"{place} without rows", expected="one or more", do="look at the file")
    names = _index(table, data.index, place) if data.index else [*range(rows)]
    scales = {} if known is None else dict(known.scales)
    found = Prepared({}, {"row": rows, "predictor": len(predictors)}, {"row": names}, scales)
    found.coords["predictor"] = predictors
    for name, column in wanted.items():
        read = _Column(table[column], column, place)
        if columns[name] == "group":
            groups = read.groups(None if known is None else known.coords[name])
            found.sizes[name], found.coords[name] = len(groups), groups
            codes = {group: code for code, group in enumerate(groups)}
            found.arrays[name] = np.array([codes[str(v)] for v in read.cells], np.int32)
        else:
            found.arrays[name] = read.numbers(columns[name], table, renamed)
        if columns[name] == "standardised":
            found.arrays[name] = _standardise(found, f"model.{name}")(found.arrays[name])
    if PREDICTORS in columns.values():
        matrix = [
            _standardise(found, column)(_Column(table[column], column, place).numbers("real"))
            for column in predictors
        ]
        whole = np.stack(matrix, 1) if matrix else np.zeros((rows, 0), np.float32)
        found.arrays[next(n for n, kind in columns.items() if kind == PREDICTORS)] = whole
    return found


PREDICTORS = "predictors"


@dataclass(frozen=True)
class _Column:
    """A column of a table, and its name in messages."""

    cells: Sequence[Any]
    name: str
    place: str

    def wrong(self, row: int, expected: str) -> UserError:
        """Rows count from 1, without the line of names."""
        return UserError(
            got=f"{self.place}, row {row + 1}, column {self.name}: {self.cells[row]!r}",
            expected=expected,
            do="correct that cell, or leave the row out; --data.columns says which column is which",
        )

    def groups(self, known: list[str] | None) -> list[str]:
        allowed = None if known is None else {*known}
        for row, cell in enumerate(self.cells):
            if _is_missing(cell):
                raise self.wrong(row, "the name of a group")
            if known is not None and allowed is not None and str(cell) not in allowed:
                raise self.wrong(row, f"a group that was there at the fit: {', '.join(known[:9])}")
        return sorted({str(cell) for cell in self.cells}) if known is None else known

    def numbers(
        self, kind: str, table: Table | None = None, renamed: Mapping[str, str] | None = None
    ) -> Float[np.ndarray, " row"] | Int[np.ndarray, " row"]:
        kind, _, other = kind.partition(" of ")
        values = []
        for row, cell in enumerate(self.cells):
            try:
                value = math.nan if _is_missing(cell) else float(cell)
            except (TypeError, ValueError):
                value = math.nan
            if not (math.isfinite(value) and FITS[kind](value)):
                raise self.wrong(row, WORDS[kind])
            values.append(value)
        if other and table is not None:
            whole = (renamed or {}).get(other, other)
            limits = _Column(table[whole], whole, self.place).numbers("count")
            for row, (value, limit) in enumerate(zip(values, limits, strict=True)):
                if value > limit:
                    raise self.wrong(row, f"at most {limit}, its {whole}")
        return np.array(values, np.int32 if kind in ("count", "binary") else np.float32)


FITS: dict[str, Callable[[float], bool]] = {
    "real": lambda value: True,
    "standardised": lambda value: True,
    "positive": lambda value: value > 0,
    "count": lambda value: value >= 0 and value == int(value) and value < 2**31,
    "binary": lambda value: value in (0, 1),
}
WORDS = {
    "real": "a finite number",
    "standardised": "a finite number",
    "positive": "a number above 0",
    "count": "a whole number, 0 or more",
    "binary": "0 or 1",
}


def _is_missing(cell: Any) -> bool:
    return cell is None or str(cell).strip().lower() in MISSING


def _check_names(place: str, given: set[str], known: set[str], whose: str) -> None:
    if missing := sorted(given - known):
        raise UserError(
            got=f"{place}, where {', '.join(missing)} is no column {whose}",
            expected=f"columns among {', '.join(sorted(known))}",
            do="correct the name, or say which column it is: --data.columns MODEL=TABLE",
        )


def _index(table: Table, column: str, place: str) -> list[str]:
    seen: dict[str, int] = {}
    for row, cell in enumerate(table[column]):
        if _is_missing(cell):
            raise _Column(table[column], column, place).wrong(row, "the name of a row")
        if (first := seen.setdefault(str(cell), row)) != row:
            expected = f"each name once; row {first + 1} has it too"
            raise _Column(table[column], column, place).wrong(row, expected)
    return [*seen]


def _standardise(found: Prepared, column: str) -> Callable[[np.ndarray], np.ndarray]:
    """By the mean and deviation of the column at the fit, which are noted."""

    def scaled(values: np.ndarray) -> np.ndarray:
        if column not in found.scales:
            deviation = float(values.std(dtype=np.float64)) or 1.0  # a constant column becomes 0
            found.scales[column] = (float(values.mean(dtype=np.float64)), deviation)
        mean, deviation = found.scales[column]
        return ((values - mean) / deviation).astype(np.float32)

    return scaled
