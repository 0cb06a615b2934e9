"""Which checkpoints of a run are deleted: all but the newest and the multiples of an interval."""

from pathlib import Path

import pytest

from ...errors import Exit
from ...records.store import read_lines, write
from .. import loop
from .test_checkpoint import flip, largest
from .workloads import config_of, go


def steps_in(run_dir: Path) -> list[int]:
    return sorted(int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())


@pytest.mark.parametrize(
    ("save", "keep", "every", "left"),
    [
        (4, 1, 0, [20]),
        (4, 3, 0, [12, 16, 20]),
        (4, 0, 0, [4, 8, 12, 16, 20]),
        (4, 1, 8, [8, 16, 20]),
        (4, 2, 10, [10, 12, 16, 20]),
        (4, 0, 10, [4, 8, 10, 12, 16, 20]),
        (4, 1, 4, [4, 8, 12, 16, 20]),
        (0, 1, 6, [6, 12, 18, 20]),
        (0, 1, 30, [20]),
    ],
)
def test_the_newest_and_the_multiples_stay(
    tmp_path: Path, save: int, keep: int, every: int, left: list[int]
) -> None:
    options = {"save_every_steps": save, "keep_checkpoints": keep, "keep_every_steps": every}
    go(config_of(tmp_path, 20, **options))
    assert steps_in(tmp_path) == left


def test_a_stop_and_a_resume_leave_what_an_uninterrupted_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"save_every_steps": 4, "keep_checkpoints": 1, "keep_every_steps": 5}
    stopped = Exit.PREEMPTED
    with monkeypatch.context() as patch:
        stops = {7: [5, 7], 10: [5, 8, 10]}  # a save that a stop forces counts as any other
        for at, left in stops.items():
            decide = lambda _, step, at=at: stopped if step == at else None  # noqa: E731
            patch.setattr(loop.StopRequest, "decide", decide)
            assert go(config_of(tmp_path, 22, **options)) == stopped
            assert steps_in(tmp_path) == left
    assert go(config_of(tmp_path, 22, **options)) == Exit.DONE
    assert steps_in(tmp_path) == [5, 10, 15, 20, 22]


def test_a_damaged_one_at_a_multiple_is_set_aside_and_saved_again(tmp_path: Path) -> None:
    options = {"save_every_steps": 4, "keep_checkpoints": 1, "keep_every_steps": 8}
    go(config_of(tmp_path, 16, **options))
    assert steps_in(tmp_path) == [8, 12, 16]
    flip(largest(tmp_path / "checkpoints" / "00000016"))
    go(config_of(tmp_path, 20, **options))
    assert steps_in(tmp_path) == [8, 16, 20]
    assert len(list(tmp_path.glob("checkpoints/00000016.damaged-*"))) == 1
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 21))


def test_the_aim_is_judged_at_the_multiples_too(tmp_path: Path) -> None:
    go(config_of(tmp_path, 20, keep_every_steps=3), done=lambda values: True)
    assert steps_in(tmp_path) == [3]


def test_what_was_not_committed_is_none_of_the_newest(tmp_path: Path) -> None:
    theirs = tmp_path / "checkpoints" / "00000099" / "theirs"

    def appears(cursor: int) -> dict:  # after the start has cleared what was not committed
        write(theirs, "x")
        return {}

    go(config_of(tmp_path, 20, save_every_steps=4, keep_checkpoints=1), batch=appears)
    assert steps_in(tmp_path) == [20, 99]
