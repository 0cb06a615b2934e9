"""What happens to one of two processes: both end with the right code, soon, and lose nothing."""

import time
from pathlib import Path

import pytest

from ...errors import Exit
from ..sink import read_outputs
from .children import Child, start_two, train_sampler

LIMIT = 20_000  # bytes of a file; the arrays of a checkpoint need more, its lists of names less


def ends_of(pair: list[Child], codes: list[int], within_s: float) -> str:
    """The logs, once both have ended with their codes."""
    began_s = time.monotonic()
    found = [child.code(within_s) for child in pair]
    logs = "\n".join(child.log.read_text() for child in pair)
    assert found == codes, logs
    assert time.monotonic() - began_s < within_s
    return logs


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_disk_that_is_full_for_one(tmp_path: Path, victim: int) -> None:
    """A save that one process cannot write is given up by both, at once; a later one is complete.

    Orbax's barriers would keep the other one for minutes in each such save, and at its end.
    """
    run_dir, good = tmp_path / "run", (tmp_path / "run", 40, 10, 0.02)
    full = [(*good, LIMIT, None, 32) if index == victim else good for index in range(2)]
    logs = ends_of(start_two(train_sampler, *full, folder=tmp_path), [Exit.DONE] * 2, 120)
    assert logs.count("checkpoint 00000010 was NOT saved: process") == 2
    assert checkpoints(run_dir)[-1] == "00000040"
    assert len(read_outputs(run_dir / "outputs")["draws"]) == 40
    # Full at the end: what was saved stays, and both say what to do.
    good = (run_dir, 50, 10)
    full = [(*good, 0.0, LIMIT) if index == victim else good for index in range(2)]
    logs = ends_of(start_two(train_sampler, *full, folder=tmp_path), [Exit.USER] * 2, 120)
    assert "free some space" in logs
    assert checkpoints(run_dir)[-1] == "00000040"
