"""What a run survives: kills at any moment, signals, a hang, a full disk, damaged checkpoints."""

import contextlib
import os
import random
import signal
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ...errors import Exit
from ..distributed import Watch
from ..sink import read_outputs
from .children import Child, hang, steps_of, train_sampler


def test_twenty_kills_leave_no_gap_and_no_duplicate(tmp_path: Path) -> None:
    run_dir, log, rng = tmp_path / "run", tmp_path / "log", random.Random(0)
    reached = []
    for _ in range(20):
        child = Child(train_sampler, run_dir, 100_000, 7, 0.002, log=log)
        seen = steps_of(run_dir)
        if rng.random() < 0.8:  # the others die while they import, restore or compile
            child.wait_for(lambda seen=seen: steps_of(run_dir) not in ([], seen))
        time.sleep(rng.uniform(0, 0.5))
        child.process.kill()
        child.process.join()
        reached.append(max(steps_of(run_dir), default=0))
    assert max(reached) > 40, reached
    steps = max(reached) + 10
    assert Child(train_sampler, run_dir, steps, 7, log=log).code() == Exit.DONE, log.read_text()
    assert Child(train_sampler, tmp_path / "calm", steps, 7, log=log).code() == Exit.DONE
    ours, calm = (read_outputs(folder / "outputs") for folder in (run_dir, tmp_path / "calm"))
    assert len(calm["draws"]) == steps
    np.testing.assert_array_equal(ours["draws"], calm["draws"])
    assert steps_of(run_dir) == list(range(1, steps + 1))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signal_saves_then_exits(tmp_path: Path, number: signal.Signals, code: int) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    child = Child(train_sampler, run_dir, 100_000, 0, 0.01, log=log)
    child.wait_for(lambda: len(steps_of(run_dir)) > 3)
    with contextlib.suppress(ProcessLookupError):  # it may have ended by then
        for _ in range(3):  # a launcher's echoes are one request
            os.kill(child.process.pid, number)
            time.sleep(0.02)
    assert child.code() == code, log.read_text()
    (saved,) = (run_dir / "checkpoints").iterdir()
    assert int(saved.name) == steps_of(run_dir)[-1]
    assert "the same command goes on" in log.read_text()


def test_hang_ends_with_stacks(tmp_path: Path) -> None:
    child = Child(hang, tmp_path / "run", log=tmp_path / "log")
    assert child.code(60) == Exit.HUNG
    assert "in take" in (tmp_path / "log").read_text()


def test_a_paused_watch_ends_nothing() -> None:
    with closing(Watch(0.6)) as watch:
        with watch.paused():
            time.sleep(2.0)
        assert watch._timeout_s == 0.6


def test_full_disk_loses_nothing(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    assert Child(train_sampler, run_dir, 10, 5, log=log).code() == Exit.DONE
    before = sorted((run_dir / "checkpoints").iterdir())
    child = Child(train_sampler, run_dir, 20, 5, 0.0, 100_000, log=log)
    assert child.code() == Exit.USER, log.read_text()
    for word in ("NOT saved", "got:", "expected:", "free some space"):
        assert word in log.read_text()
    assert sorted((run_dir / "checkpoints").iterdir()) == before
    assert Child(train_sampler, run_dir, 20, 5, log=log).code() == Exit.DONE
    assert len(read_outputs(run_dir / "outputs")["draws"]) == 20
    assert steps_of(run_dir) == list(range(1, 21))
