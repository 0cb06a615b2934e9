"""Runs of these tests draw no curves: that takes longer than the runs."""

import pytest

from ...records import report


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plot_all", lambda run_dir: [])
