"""Runs of these tests draw no curves: that takes longer than the runs. And a fixture of several."""

import pytest

from ...records import report
from .callers import come

__all__ = ["come"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plot_all", lambda run_dir: [])
