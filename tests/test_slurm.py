"""`make slurm` says why it cannot run; what it runs is tested where it is emitted."""

import os
import shutil

import pytest
from slurm import requeue


def test_it_is_skipped_with_a_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert requeue.main() == 0
    told = capsys.readouterr().out
    assert told == "SKIPPED: needs root and apt-get to install slurm-wlm and munge\n"
