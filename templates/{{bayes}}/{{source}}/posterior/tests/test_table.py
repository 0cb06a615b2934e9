"""A mistake in a table is named by row and column; what is right becomes arrays with names."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from ...errors import UserError
from ..settings import DataConfig
from ..table import prepare, read_table

COLUMNS = {"who": "group", "trials": "count", "x": "predictors", "wins": "count of trials"}
CSV = "name,who,trials,wins,age,height\na,B,10,3,20,1.5\nb,A,9,9,40,1.7\nc,B,0,0,30,1.9\n"
INDEXED = DataConfig(path="t.csv", index="name")


def table_of(folder: Path, text: str = CSV) -> dict:
    (folder / "t.csv").write_text(text)
    return read_table(str(folder / "t.csv"))


def test_columns_become_arrays_with_names(tmp_path: Path) -> None:
    found = prepare(table_of(tmp_path), COLUMNS, INDEXED)
    assert found.coords == {
        "row": ["a", "b", "c"],
        "who": ["A", "B"],
        "predictor": ["age", "height"],
    }
    assert found.sizes == {"row": 3, "who": 2, "predictor": 2}
    assert found.arrays["who"].tolist() == [1, 0, 1]
    assert found.arrays["wins"].tolist() == [3, 9, 0]
    assert found.arrays["wins"].dtype == np.int32
    np.testing.assert_allclose(found.arrays["x"][:, 0], np.array([-1, 1, 0]) * 1.5**0.5, atol=1e-6)
    assert found.scales["age"] == (30, pytest.approx((200 / 3) ** 0.5))


def test_a_parquet_file_is_the_same(tmp_path: Path) -> None:
    texts = table_of(tmp_path)
    typed = {n: v if n in ("name", "who") else [*map(float, v)] for n, v in texts.items()}
    parquet.write_table(pyarrow.table(typed), tmp_path / "t.parquet")
    other = prepare(read_table(str(tmp_path / "t.parquet")), COLUMNS, INDEXED)
    assert other.sha256 == prepare(texts, COLUMNS, INDEXED).sha256


@pytest.mark.parametrize(
    ("cell", "now", "words"),
    [
        ("a,B,10,3", "a,B,10,", "row 1, column wins: ''\nexpected: a whole number"),
        ("b,A,9,9", "b,A,9,nan", "row 2, column wins: 'nan'"),
        ("b,A,9,9", "b,A,9,10", "row 2, column wins: '10'\nexpected: at most 9, its trials"),
        ("b,A,9,9", "b,A,9.5,9", "row 2, column trials: '9.5'\nexpected: a whole number, 0 or"),
        ("c,B,0,0", "c,B,-1,0", "row 3, column trials: '-1'"),
        ("c,B", "c,", "row 3, column who: ''\nexpected: the name of a group"),
        ("40,1.7", "forty,1.7", "row 2, column age: 'forty'\nexpected: a finite number"),
        ("40,1.7", "40,inf", "row 2, column height: 'inf'"),
        ("c,B", "a,B", "row 3, column name: 'a'\nexpected: each name once; row 1 has it too"),
        ("wins", "won", "where wins is no column of the table"),
        ("height", "age", "two columns age"),
        ("c,B,0,0,30,1.9", "c,B,0,0", "CSV parse error"),
    ],
)
def test_mistakes(tmp_path: Path, cell: str, now: str, words: str) -> None:
    assert CSV.count(cell) == 1
    with pytest.raises(UserError) as refusal:
        prepare(table_of(tmp_path, CSV.replace(cell, now)), COLUMNS, INDEXED)
    assert words in str(refusal.value)


def test_names_of_the_model_and_of_the_table(tmp_path: Path) -> None:
    table = table_of(tmp_path, CSV.replace("wins", "won"))
    data = DataConfig(index="name", columns=("wins=won",), predictors=("height",))
    found = prepare(table, COLUMNS, data)
    assert found.arrays["wins"].tolist() == [3, 9, 0]
    assert found.coords["predictor"] == ["height"]
    with pytest.raises(UserError, match="gains is no column of the model"):
        prepare(table, COLUMNS, DataConfig(columns=("gains=won",)))
    with pytest.raises(UserError, match="hight is no column of the table"):
        prepare(table, COLUMNS, DataConfig(columns=("wins=won",), predictors=("hight",)))


def test_new_rows_take_groups_and_scales_of_the_fit(tmp_path: Path) -> None:
    fit = prepare(table_of(tmp_path), COLUMNS, INDEXED)
    new = table_of(tmp_path, "name,who,trials,age,height\nz,B,5,50,1.7\n")
    found = prepare(new, COLUMNS, INDEXED, known=fit, without="wins")
    assert found.arrays["who"].tolist() == [1]
    assert "wins" not in found.arrays
    assert found.arrays["x"][0, 0] == pytest.approx(20 / fit.scales["age"][1])
    unseen = table_of(tmp_path, "name,who,trials,age,height\ny,B,5,50,1.7\nz,C,5,50,1.7\n")
    with pytest.raises(UserError, match="row 2, column who: 'C'\nexpected: a group that was there"):
        prepare(unseen, COLUMNS, INDEXED, known=fit, without="wins")


def test_the_hash_is_of_all_that_is_fitted(tmp_path: Path) -> None:
    hashes = {
        prepare(table_of(tmp_path, text), COLUMNS, INDEXED).sha256
        for text in (
            CSV,
            CSV.replace("10,3", "10,4"),
            CSV.replace("a,B", "d,B"),
            CSV + "e,B,1,0,3,1\n",
        )
    }
    assert len(hashes) == 4


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without rows"):
        prepare(table_of(tmp_path, CSV.partition("\n")[0] + "\n"), COLUMNS, INDEXED)
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        read_table("nowhere.csv")
