"""`plan` answers for each row, refuses what cannot be, and prints JSON that parses."""

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from ...config import PRESETS
from ...errors import Exit, UserError
from ...records.hardware import AHEAD_OF_TIME
from ...run_config import MeshConfig
from ..plan import plan

FIRST = next(iter(PRESETS.values()))()
# Rows for sixteen devices, whatever the kind.
CONFIG = replace(FIRST, mesh=MeshConfig(), data=replace(FIRST.data, batch_size=16))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AHEAD_OF_TIME.items():
        monkeypatch.setenv(name, value)  # the command sets them for good


def test_rows_and_refusals_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, mesh=MeshConfig(fsdp=8))
    code = plan(
        config=config, topologies=("v5e:2x2", "v6e:2x4"), price_per_chip_hour=1.5, json=True
    )
    assert code == Exit.DONE
    shown = json.loads(capsys.readouterr().out)
    assert [(r["topology"], r["slices"]) for r in shown["rows"]] == [
        *(("v5e:2x2", 2), ("v6e:2x4", 1), ("v6e:2x4", 2))
    ]
    for row in shown["rows"]:
        assert row["cost"] == pytest.approx(1.5 * row["chips"] * row["hours"])
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
    assert "a product of 4" in shown["refused"]["v5e:2x2"]
    assert "to do:" in shown["refused"]["v5e:2x2"]


@pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu is missing: uv sync --extra tpu")
def test_the_real_step_is_compiled_for_two_slices(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"config": CONFIG, "topologies": ("v6e:2x2",), "slices": (2,), "json": True}
    assert plan(**asked) == plan(**asked, compile=True) == Exit.DONE
    shown, decoder = capsys.readouterr().out, json.JSONDecoder()
    estimate, end = decoder.raw_decode(shown)
    compiled, _ = decoder.raw_decode(shown[end:].lstrip())
    (least,), (real,) = estimate["rows"], compiled["rows"]
    assert (least["source"], least["fits"]) == ("estimate", None)
    assert (real["source"], real["fits"]) == ("compiled", True)
    assert real["needed_bytes"] > least["needed_bytes"] > 0
    for name, seconds in least["bounds_s"].items():
        assert real["bounds_s"][name] >= seconds > 0
    assert real["bounds_s"]["ICI"] > 0
    assert real["checkpoint_bytes_per_host"] == least["checkpoint_bytes_per_host"]


def test_the_table_says_what_is_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(config=CONFIG, topologies=("v6e:2x4",), slices=(1, 2)) == Exit.DONE
    shown = capsys.readouterr().out
    for part in ("2 x v6e:2x4", "not ruled out", "estimate", "--compile asks the compiler"):
        assert part in shown


def test_nothing_that_fits_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, mesh=MeshConfig(fsdp=3))
    assert plan(config=config, topologies=("v5e:2x2",), slices=(1,)) == Exit.USER
    assert "v5e:2x2 is refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"topologies": ("v5e:4x3",)}, "write"),
        ({"topologies": ("v5e",)}, "topology '' of v5e"),
        ({"topologies": ("local",)}, "accelerator 'local'"),
        ({"topologies": ()}, "at least one topology"),
        ({"slices": (1, 0)}, "leave 0 out"),
        ({"slices": (-1,)}, "leave -1 out"),
        ({"step_ms": 3.0}, "--topologies v5e:4x4 --slices 1"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_planned(
    given: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        plan(config=CONFIG, **given)
