"""What a run survives: kills at any moment, signals, a hang, a full disk, damaged checkpoints."""

import contextlib
import os
import random
import signal
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ...errors import Exit
from .. import stop
from ..sink import read_outputs
from ..stop import REPEAT_S, StopRequest
from ..watch import Watch
from . import faults
from .children import Child, hang, steps_of, stuck, train_sampler, train_unread

# A cell of the table for each fault and each moment; `faults.py` tries every one.
COVER = [
    ("kill", "save", 1),
    ("SIGTERM", "start", 1),
    ("SIGTERM", "evaluation", 2),
    ("disk full", "step", 1),
    ("disk full for one", "evaluation", 2),
    ("read error", "start", 1),
    ("store down", "save", 1),
    ("flipped byte", "start", 1),
    ("missing file", "start", 2),
    ("stalled", "compile", 1),
    ("stalled host", "step", 2),
    ("lost coordinator", "report", 2),
    ("lost peer", "save", 2),
    ("second start", "step", 1),
    ("folder not shared", "start", 2),
    ("clock set back", "compile", 1),
]
CELLS = {(cell.fault.name, cell.moment, cell.processes): cell for cell in faults.cells()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    return faults.prepare(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("cell", COVER, ids=lambda cell: ", ".join(map(str, cell)))
def test_nothing_is_lost(
    prepared: tuple[Path, np.ndarray], tmp_path: Path, cell: tuple[str, str, int]
) -> None:
    wrongs = list(faults.wrongs(CELLS[cell], *prepared, tmp_path))
    logs = "\n".join(path.read_text() for path in sorted(tmp_path.glob("*")) if path.is_file())
    assert not wrongs, logs


def test_the_cover_has_every_fault_and_every_moment() -> None:
    names, moments, processes = map(set, zip(*COVER, strict=True))
    assert names == {fault.name for fault in faults.FAULTS}
    assert (moments, processes) == (set(faults.MOMENTS), {1, 2})


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


def test_a_watch_allows_a_save_more_time_unless_it_is_off() -> None:
    with closing(Watch(0.6)) as watch:
        with watch.waiting(60.0):
            time.sleep(2.0)
        assert watch._timeout_s == 0.6
    with closing(Watch(0.0)) as off, off.waiting(0.1):
        time.sleep(1.0)


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


def test_a_batch_that_hangs_does_not_outlive_the_second_ctrl_c(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = Child(stuck, tmp_path / "run", log=log)
    child.wait_for(lambda: "starting at step 0" in log.read_text())
    time.sleep(0.5)  # until it waits for its batch
    for count in (1, 2):
        os.kill(child.process.pid, signal.SIGINT)
        child.wait_for(lambda count=count: count == 2 or "stopping" in log.read_text())
        time.sleep(REPEAT_S + 0.2 if count == 1 else 0)
    assert child.code(30) == Exit.INTERRUPTED, log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_third_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    now_s = iter([10.0, 10.5, 13.0, 13.5, 16.0])
    monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=lambda: next(now_s)))
    monkeypatch.setattr(stop, "os", SimpleNamespace(_exit=ended.append))
    request = StopRequest()
    for _ in range(2):  # the signal, and its echo by a launcher
        request._on_signal(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        request._on_signal(signal.SIGINT, None)
    request._on_signal(signal.SIGINT, None)  # an echo
    assert ended == []
    with contextlib.suppress(KeyboardInterrupt):
        request._on_signal(signal.SIGINT, None)
    assert ended == [Exit.INTERRUPTED]


def test_a_run_whose_output_nobody_reads_is_saved(tmp_path: Path) -> None:
    """As in `train 2>&1 | tee log`, where Ctrl-C ends `tee` too."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    child = Child(train_unread, run_dir, log=log)
    child.wait_for(lambda: len(steps_of(run_dir)) > 3)
    os.kill(child.process.pid, signal.SIGINT)
    assert child.code() == Exit.INTERRUPTED, log.read_text()
    (saved,) = (run_dir / "checkpoints").iterdir()
    assert int(saved.name) == steps_of(run_dir)[-1]
