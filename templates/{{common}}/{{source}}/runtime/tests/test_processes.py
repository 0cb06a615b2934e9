"""Two processes over gloo give the draws of one, stop at one step and end together."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from ...errors import Exit
from ...records.store import read_lines
from ..sink import read_outputs
from .children import Child, start_two, train_sampler
from .workloads import CHAINS


def sample(*args: object, folder: Path, fail: bool = False) -> list[Child]:
    """Two processes; with `fail`, the second raises at its tenth batch."""
    return start_two(train_sampler, (*args, None), (*args, 10 if fail else None), folder=folder)


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.glob("log*"))


def test_two_processes_sample_what_one_does(tmp_path: Path) -> None:
    pair = sample(tmp_path / "two", 20, 7, 0.0, None, folder=tmp_path)
    assert [child.code() for child in pair] == [0, 0], logs(tmp_path)
    one = Child(train_sampler, tmp_path / "one", 12, 7, log=tmp_path / "log")
    assert one.code() == 0, logs(tmp_path)
    # What one process began, two go on with.
    pair = sample(tmp_path / "one", 20, 7, 0.0, None, folder=tmp_path)
    assert [child.code() for child in pair] == [0, 0], logs(tmp_path)
    parts = sorted(path.name for path in (tmp_path / "two" / "outputs").iterdir())
    assert parts == [f"{step:08d}-{index}.npz" for step in (7, 14, 20) for index in range(2)]
    with np.load(tmp_path / "two" / "outputs" / parts[0]) as held:  # one process: half the chains
        assert {held[name].shape[2] for name in held if name != "step"} == {CHAINS // 4}
    two, one = (read_outputs(tmp_path / name / "outputs")["draws"] for name in ("two", "one"))
    assert two.shape[0] == 20
    np.testing.assert_array_equal(one, two)


def test_sigterm_to_one_saves_both_at_the_same_step(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    pair = sample(run_dir, 100_000, 0, 0.01, None, folder=tmp_path)
    pair[0].wait_for(lambda: len(read_lines(run_dir / "metrics.jsonl")) > 3)
    os.kill(pair[1].process.pid, signal.SIGTERM)
    assert [child.code() for child in pair] == [Exit.PREEMPTED] * 2, logs(tmp_path)
    (saved,) = (run_dir / "checkpoints").iterdir()
    assert {f"files-{i}.json" for i in range(2)} <= {p.name for p in saved.iterdir()}
    assert int(saved.name) == read_lines(run_dir / "metrics.jsonl")[-1]["step"]


def test_exception_in_one_ends_both(tmp_path: Path) -> None:
    pair = sample(tmp_path / "run", 100_000, 0, 0.01, None, folder=tmp_path, fail=True)
    pair[0].wait_for(lambda: "tenth batch" in pair[1].log.read_text())
    began_s = time.monotonic()
    assert [child.code() for child in pair] == [Exit.BUG] * 2, logs(tmp_path)
    assert time.monotonic() - began_s < 15
    assert "ended because process 1 did" in pair[0].log.read_text()
