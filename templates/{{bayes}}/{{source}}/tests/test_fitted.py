"""What is made of a finished fit, through the command line: its page, ranking, predictions, file.

The model is linear with a known noise, so that every number has a closed form.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray

from .. import models, refitted
from ..cli import run
from ..errors import Exit, UserError
from ..fitted import check_same_rows, open_fit
from ..posterior import simulated
from ..posterior.tests.test_simulated import density, linear, posterior_of

ROWS, NOISE = 40, 0.6
FIT = "--nuts.warmup 300 --steps 13 --trackers --eval-every-steps 0"
RNG = np.random.default_rng(3)
AGE = RNG.normal(50, 10, ROWS)
WAGE = 1000 + 20 * AGE + 100 * RNG.normal(size=ROWS)
CLASSES = np.array(["low", "high"])[RNG.integers(2, size=ROWS)]


def module_of(noise: float) -> Any:
    """A file of `models/`."""

    def model(x: Any, g: Any, sizes: Any, y: Any = None) -> None:
        linear(x, sizes, y, noise)

    columns = {"x": "predictors", "g": "group", "y": "standardised"}
    about = {"__file__": __file__, "__doc__": "What is the <wage> of an age?"}
    return SimpleNamespace(model=model, COLUMNS=columns, OUTCOME="y", JUDGED=("slope",), **about)


def write_table(path: Path, **columns: Any) -> str:
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))]  # noqa: B905
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the fits `right` and `wide`, whose noise is too large."""
    modules = {"right": module_of(NOISE), "wide": module_of(5.0)}
    folder = tmp_path_factory.mktemp("runs")
    table = write_table(folder / "table.csv", age=AGE, g=CLASSES, wage=WAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "names", lambda: sorted(modules))
        patch.setattr(models, "load", modules.__getitem__)
        for name in modules:
            options = f"--data.path {table} --data.columns y=wage --run-dir {folder / name} {FIT}"
            code, words = run(f"fit --model.name {name} {options}".split())
            assert code == Exit.DONE, words
        yield folder


def exact(rows: np.ndarray, given: np.ndarray, runs: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the outcome of rows, standardised, given others."""
    arrays = open_fit(str(runs / "right")).prepared.arrays
    mean, covariance = posterior_of(arrays["x"][given].astype(float), arrays["y"][given], NOISE)
    design = arrays["x"][rows]
    return design @ mean, NOISE**2 + np.einsum("ni,ij,nj->n", design, covariance, design)


def test_the_report_has_it_all(runs: Path) -> None:
    page = (runs / "right" / "report.html").read_text()
    page = re.sub(r"base64,[\w+/=]*", "", page)  # of images, which may spell any short word
    order = [
        "&lt;wage&gt;",
        "standardised",
        "the draws may be used",
        "slope[age]",
        "before",
        "elpd",
    ]
    places = [page.index(word) for word in order]
    assert places == sorted(places)
    for name in ("predictive", "traces_and_ranks", "forest"):
        assert page.index(f'alt="{name}-00000013"') > places[-1]
    assert "pair_of" not in page, "there is one parameter"
    store = runs / "right" / "outputs"
    attributes = xarray.open_datatree(store, engine="zarr").attrs
    assert attributes["config"]["nuts.warmup"] == 300
    assert {"jax", "numpyro"} <= {*attributes["versions"]}
    assert len(attributes["table_sha256"]) == 64


def test_ranking(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = str(runs / "right"), str(runs / "wide")
    assert run(["compare", other, one])[0] == Exit.DONE
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[0] == one
    assert second.split()[0] == other
    elpd, weight = (float(first.split()[i]) for i in (1, 5))
    y = open_fit(one).prepared.arrays["y"]
    rows = np.arange(ROWS)
    parts = [exact(rows[[row]], np.delete(rows, row), runs) for row in rows]
    expected = sum(density(y[row], *part)[0] for row, part in zip(rows, parts, strict=True))
    assert elpd == pytest.approx(expected, abs=0.3)
    assert weight > 0.99
    assert run(["compare", one, one])[0] == Exit.USER


def test_rows_that_are_left_out(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = open_fit(str(runs / "right"))
    y, folds = fit.prepared.arrays["y"], [np.array([4]), np.array([0, 1, 2, 7, 9, 30, 31, 39])]
    found, problems = refitted.refit(fit, folds)
    assert not problems
    for rows in folds:
        given = np.delete(np.arange(ROWS), rows)
        expected = density(y[rows], *exact(rows, given, runs))
        np.testing.assert_allclose([found[row] for row in rows], expected, atol=0.05)

    def compiled(*_: Any) -> Any:
        raise AssertionError("a fold that is done is not fitted again")

    monkeypatch.setattr(refitted, "_scorer", compiled)
    assert refitted.refit(fit, folds) == (found, problems)
    with pytest.raises(AssertionError, match="not fitted again"):
        refitted.refit(fit, [np.array([5])])


def test_bad_k_hats_are_refused_until_these_rows_are_left_out(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from .. import compared

    both, left_out = [str(runs / "right"), str(runs / "wide")], []
    bad = iter([[3], [8, 3]])
    monkeypatch.setattr(compared, "bad_rows", lambda score: next(bad))
    assert run(["compare", *both])[0] == Exit.REFUSED
    assert "2 rows is too high: 3, 8" in capsys.readouterr().out

    def refit(fit: Any, folds: Any) -> Any:
        left_out.append([fold.tolist() for fold in folds])
        return {3: -1.0, 8: -2.0}, []

    bad = iter([[3], [8, 3]])
    monkeypatch.setattr(compared, "refit", refit)
    assert run(["compare", *both, "--folds", "10"])[0] == Exit.DONE
    assert left_out[0] == left_out[1], "the same folds in both"
    assert sorted(left_out[0]) == [[3], [8]]


def test_a_fit_that_is_not_trusted_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "right", tmp_path / "bad")
    summary = tmp_path / "bad" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"trusted": False}))
    bad, to = str(tmp_path / "bad"), str(tmp_path / "p.zarr")
    assert run(["compare", str(runs / "right"), bad])[0] == Exit.REFUSED
    table = str(runs / "table.csv")
    assert run(["predict", "--run-dir", bad, "--data.path", table, "--to", to])[0] == Exit.REFUSED
    assert capsys.readouterr().out.count(f"THE DRAWS OF {bad} ARE REFUSED") == 2
    assert not Path(to).exists()
    summary.unlink()
    with pytest.raises(UserError, match="no finished fit"):
        open_fit(bad)


def test_other_data_and_other_code_are_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = open_fit(str(runs / "right"))
    y = fit.prepared.arrays["y"].copy()
    y[11] += 1
    changed = dataclasses.replace(fit.prepared, arrays=fit.prepared.arrays | {"y": y})
    other = dataclasses.replace(fit, run_dir="other", prepared=changed)
    check_same_rows([fit, fit])
    with pytest.raises(UserError, match="other, where y of row 12 is"):
        check_same_rows([fit, other])
    coords = fit.prepared.coords | {"row": [*range(1, ROWS + 1)]}
    named = dataclasses.replace(fit.prepared, coords=coords)
    with pytest.raises(UserError, match="40 rows, or their names"):
        check_same_rows([fit, dataclasses.replace(fit, prepared=named)])
    monkeypatch.setattr(fit.module, "__file__", models.__file__)
    with pytest.raises(UserError, match="by another model"):
        open_fit(str(runs / "right"))


def test_predictions_of_new_rows(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages = np.linspace(20, 80, 13)
    new = write_table(tmp_path / "new.csv", note=range(13), age=ages, g=["low"] * 13)
    predict = f"predict --run-dir {runs / 'right'} --data.path {new} --to {tmp_path}"
    for name, block in (("one", 1), ("all", 1 << 24)):
        monkeypatch.setattr(simulated, "BLOCK", block)
        assert run(f"{predict}/{name} --draws 800 --interval 0.8".split())[0] == Exit.DONE
    one, whole = (xarray.open_datatree(tmp_path / n, engine="zarr") for n in ("one", "all"))
    of = [tree["posterior_predictive"]["y"] for tree in (one, whole)]
    np.testing.assert_array_equal(*of)
    xarray.testing.assert_allclose(one["summary"].to_dataset(), whole["summary"].to_dataset())
    draws, summary = whole["posterior_predictive"]["y"], whole["summary"]
    assert dict(draws.sizes) == {"chain": 8, "draw": 100, "row": 13}

    fit = open_fit(str(runs / "right"))
    design = (ages - AGE.mean()) / AGE.std()
    arrays = fit.prepared.arrays
    mean, covariance = posterior_of(arrays["x"].astype(float), arrays["y"], NOISE)
    center = WAGE.mean() + WAGE.std() * design * mean[0]
    spread = WAGE.std() * np.sqrt(NOISE**2 + design**2 * covariance[0, 0])
    z = (summary["mean"] - center) / (spread / np.sqrt(300))
    assert np.abs(z).max() < 4
    values = draws.values.reshape(-1, 13)
    np.testing.assert_allclose(summary["eti"], np.quantile(values, [0.1, 0.9], axis=0).T, rtol=0.01)
    np.testing.assert_allclose(summary["eti"][:, 1] - center, 1.2816 * spread, rtol=0.25)
    inside = (values >= summary["hdi"].values[:, 0]) & (values <= summary["hdi"].values[:, 1])
    np.testing.assert_allclose(inside.mean(0), 0.8, atol=0.01)
    wide = [summary[name].values[:, 1] - summary[name].values[:, 0] for name in ("hdi", "eti")]
    assert (wide[0] <= wide[1] * 1.001).all(), "the highest density interval is the shortest"


def test_what_cannot_be_predicted(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write_table(tmp_path / "new.csv", age=[30, 40], class_of=["low", "top"])
    predict = f"predict --run-dir {runs / 'right'} --data.path {new} --to {tmp_path}/p.zarr"
    assert "--data.path" in run(["predict", "--run-dir", str(runs / "right")])[1]
    assert run(predict.split())[0] == Exit.USER
    assert run(f"{predict} --data.columns g=class_of".split())[0] == Exit.USER
    words = capsys.readouterr().err
    assert "where g is no column of the table" in words
    assert "new.csv, row 2, column class_of: 'top'" in words
    assert run(f"{predict} --to {tmp_path} --data.columns g=class_of".split())[0] == Exit.USER
    assert "which is there" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name != "new.csv"]


def test_export(runs: Path, tmp_path: Path) -> None:
    import h5netcdf

    to = tmp_path / "fit.nc"
    assert run(f"export --run-dir {runs / 'right'} --to {to}".split())[0] == Exit.DONE
    with h5netcdf.File(to) as file:
        assert {*file.groups} >= {"posterior", "sample_stats", "log_likelihood", "observed_data"}
    with xarray.open_datatree(to, engine="h5netcdf") as found:
        store = xarray.open_datatree(runs / "right" / "outputs", engine="zarr")
        xarray.testing.assert_equal(
            found["posterior"].to_dataset(), store["posterior"].to_dataset()
        )
        assert json.loads(found.attrs["scales"])["model.y"] == pytest.approx(
            [WAGE.mean(), WAGE.std()]
        )
        assert found["posterior"]["slope"].dims == ("chain", "draw", "predictor")
        assert found["posterior"]["predictor"].values.tolist() == ["age"]
