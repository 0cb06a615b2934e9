"""What happens to one of two processes: both end with the right code, soon, and lose nothing."""

import os
import signal
import time
from pathlib import Path

import pytest

from ...errors import Exit
from ..sink import read_outputs
from .children import Child, start_two, steps_of, train_sampler

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


@pytest.mark.parametrize(
    ("victim", "moment"), [(0, "start"), (0, "step"), (1, "step"), (0, "save")]
)
def test_a_process_that_is_killed(tmp_path: Path, victim: int, moment: str) -> None:
    """Out of memory, or its host is reclaimed: the other one says that it can be run again."""
    run_dir = tmp_path / "run"
    args = (run_dir, 100_000, 1 if moment == "save" else 7, 0.01)
    pair = start_two(train_sampler, args, args, folder=tmp_path)
    seen = {
        "start": run_dir.exists,
        "step": lambda: max(steps_of(run_dir), default=0) > 8,
        "save": lambda: any(run_dir.glob("checkpoints/*/*orbax-checkpoint-tmp*")),
    }
    pair[0].wait_for(seen[moment])
    os.kill(pair[victim].process.pid, signal.SIGKILL)
    codes = [int(Exit.PEER_LOST)] * 2
    codes[victim] = -signal.SIGKILL
    ends_of(pair, codes, 60)


def test_a_run_folder_that_is_not_shared(tmp_path: Path) -> None:
    args = [(tmp_path / f"host{index}" / "run", 10, 5) for index in range(2)]
    logs = ends_of(start_two(train_sampler, *args, folder=tmp_path), [Exit.USER] * 2, 90)
    assert "where process 1 does not see the files of process 0" in logs
    assert [path.name for path in (tmp_path / "host0" / "run").rglob("*")] == ["lock"]
