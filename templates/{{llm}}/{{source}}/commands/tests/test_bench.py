"""The benchmark runs the loop, leaves nothing behind and says what it timed."""

from pathlib import Path

import pytest

from ...tests import tiny
from ..bench import bench


def test_bench_prints_a_table_of_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.with_text(tmp_path)
    assert bench(config=config, timed_steps=2) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip().split("  ", 1) for line in lines]
    figures = {row[0]: row[1].strip() for row in rows if len(row) == 2}
    names = ("step time", "loop step time", "tokens per second", "loop overhead", "compile time")
    for name in (*names, "peak memory", "input"):
        assert figures[name][0].isdigit() or figures[name][0] == "-", lines
    assert figures["mfu formula"] == "no MFU: hardware.py knows no peak of 'cpu'"
    assert not Path(config.run.run_dir).exists()
    assert not list(tmp_path.glob("bench-*"))
