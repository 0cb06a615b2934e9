"""attempts.jsonl: the parts of each attempt, and of all, add up to the wall time."""

import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ...errors import Exit
from .. import store, telemetry
from ..store import read_lines
from ..telemetry import Clock, age_s, goodput, split


class Ticks:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def test_parts_add_up_to_wall_time_however_they_nest():
    rng, ticks = random.Random(1), Ticks()
    clock = Clock(ticks)
    own = dict.fromkeys(("startup", "step", "evaluate", "checkpoint", "loop"), 0.0)

    def live(part: str, depth: int) -> None:
        for _ in range(4):
            spent = rng.random()
            ticks.s += spent
            own[part] += spent
            if depth < 4:
                inner = rng.choice(list(own))
                with clock.measure(inner):
                    live(inner, depth + 1)

    live("startup", 0)
    clock.enter("loop")
    live("loop", 2)
    assert clock.parts_s() == pytest.approx(own)
    assert sum(clock.parts_s().values()) == pytest.approx(ticks.s)


def test_an_exception_leaves_the_part():
    ticks = Ticks()
    clock = Clock(ticks)
    with pytest.raises(ValueError, match="x"), clock.measure("evaluate"):
        raise ValueError("x")
    ticks.s = 3.0
    assert clock.parts_s()["startup"] == 3.0


def test_goodput_counts_every_attempt_and_the_steps_done_twice(tmp_path):
    path, ticks = tmp_path / "attempts.jsonl", Ticks()
    for first, last in ((0, 10), (4, 8)):  # the first was killed after step 10, saved at 4
        clock = Clock(ticks)
        ticks.s += 3.0
        clock.save(path, first)
        for step in range(first + 1, last + 1):
            with clock.measure("step"):
                ticks.s += 0.75
            with clock.measure("data_wait"):
                ticks.s += 0.25
            clock.save(path, step)  # rewrites the line: longer and longer, never a second one
        # As release 0.1.0, which wrote in place, could leave it.
        path.write_bytes(path.read_bytes() + b'{"first_step": 0, "st')
    attempts = read_lines(path)
    assert [(row["first_step"], row["step"]) for row in attempts] == [(0, 10), (4, 8)]
    found = goodput(attempts)
    # 10 + 4 steps of a second each, of which 6 of the first attempt were done again.
    spent = {"startup_s": 6.0, "step_s": 6.0, "data_wait_s": 2.0, "redone_s": 6.0}
    assert found["spent"] == pytest.approx(spent)
    assert found["goodput"] == pytest.approx(6 / 20)
    assert (found["wall_s"], found["attempts"]) == (pytest.approx(20.0), 2)


def test_the_ledger_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "attempts.jsonl"
    Clock(Ticks()).save(path, 3)
    clock = Clock(Ticks())
    clock.save(path, 3)
    before = path.read_bytes()
    assert before.count(b"\n") == 2

    def no_room(self, target):
        raise OSError("No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "replace", no_room)
        clock.save(path, 4)
    assert path.read_bytes() == before
    clock.save(path, 5)
    assert [row["step"] for row in read_lines(path)] == [3, 5]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_ledger_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "fsync")  # it is written at every record, between two steps
    Clock().save(tmp_path / "attempts.jsonl", 3)
    assert len(read_lines(tmp_path / "attempts.jsonl")) == 1


def test_a_ledger_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").touch()
    Clock().save(tmp_path / "file" / "attempts.jsonl", 3)


def test_an_attempt_begins_where_it_began_though_the_disk_was_full_then(tmp_path):
    path, clock = tmp_path / "run" / "attempts.jsonl", Clock()
    (tmp_path / "run").touch()
    clock.save(path, 3)
    (tmp_path / "run").unlink()
    clock.save(path, 9)
    (row,) = read_lines(path)
    assert (row["first_step"], row["step"]) == (3, 9)


def test_each_attempt_keeps_what_it_says_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    for commit in ("one", "two"):
        clock = Clock()
        clock.about = {"provenance": {"git_commit": commit}}
        clock.save(path, 3)
        clock.save(path, 4)
    assert [row["provenance"]["git_commit"] for row in read_lines(path)] == ["one", "two"]
    assert [row["step"] for row in read_lines(path)] == [4, 4]


def test_goodput_of_nothing_is_zero():
    assert goodput([])["goodput"] == 0.0


PARTS = ("restore", "compile", "data_wait", "step", "evaluate", "checkpoint", "preemption")
SPENT_S = st.floats(0, 1e4)
ATTEMPT = st.tuples(
    SPENT_S,  # the age of the process
    st.lists(st.tuples(st.sampled_from(PARTS), SPENT_S), max_size=9),
    st.sampled_from([None, *Exit]),
    SPENT_S,  # until the next one begins
    st.integers(0, 9),  # steps back to the last save
)


@given(st.lists(ATTEMPT, min_size=1, max_size=6))
def test_the_parts_of_all_attempts_add_up_to_the_wall_time(tmp_path_factory, attempts):
    path = tmp_path_factory.mktemp("run") / "attempts.jsonl"
    ticks, at, wall_s = Ticks(), 0, 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry.time, "time", lambda: ticks.s)
        for age, parts, code, gap_s, back in attempts:
            ticks.s += age
            clock = Clock(ticks, age)
            clock.save(path, at)
            for part, seconds in parts:
                clock.enter(part)
                ticks.s += seconds
                at += part == "step"
                clock.save(path, at)
            if code is not None:  # else it was killed
                clock.end(code)
                clock.save(path, at)
            wall_s = ticks.s
            ticks.s += gap_s
            at = max(0, at - back)
    rows = read_lines(path)
    assert len(rows) == len(attempts)
    found = split(rows)
    assert all(seconds > -1e-6 for parts in found for seconds in parts.values())
    assert sum(map(sum, (parts.values() for parts in found))) == pytest.approx(wall_s, abs=1e-6)
    assert goodput(rows)["wall_s"] == pytest.approx(wall_s, abs=1e-6)


def test_what_was_waited_for_in_vain_is_no_work(tmp_path):
    path, ticks = tmp_path / "attempts.jsonl", Ticks()
    clock = Clock(ticks, 2.0)
    clock.enter("step")
    ticks.s += 3.0
    clock.enter("step")
    for seconds in (5.0, 5.0):  # the thread that keeps the file current looks meanwhile
        ticks.s += seconds
        clock.save(path, 1)
    for _ in range(2):
        clock.end(Exit.HUNG)
        ticks.s += 1.0
        clock.save(path, 1)
    (row,) = read_lines(path)
    assert row["parts_s"] == pytest.approx({"startup": 2.0, "step": 4.0, "hang": 11.0})
    assert row["code"] == Exit.HUNG


def test_lines_that_tell_no_begin_are_read(tmp_path):
    old = {"first_step": 0, "step": 4, "parts_s": {"startup": 1.0, "step": 4.0}}
    new = old | {"began": 100.0}
    for rows in ([old, new], [new, old], [old, old]):
        assert goodput(rows)["spent"] == pytest.approx(
            {"startup_s": 2.0, "step_s": 4.0, "redone_s": 4.0}
        )
    assert split([new, new | {"began": 108.0}])[0]["restart"] == pytest.approx(3.0)
    assert "restart" not in split([new, new | {"began": 90.0}])[0]  # a clock that was set back


def test_a_process_counts_its_age_once(monkeypatch):
    monkeypatch.setattr(telemetry, "_runs", iter(range(9)))
    assert 0.1 < age_s() < 24 * 3600
    assert age_s() == 0.0


def test_no_part_waits_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, hangs, freed = Clock(), threading.Event(), threading.Event()

    def write(*_: object, **__: object) -> None:
        hangs.set()
        assert freed.wait(60)

    monkeypatch.setattr(store, "write", write)
    saving = threading.Thread(target=clock.save, args=(tmp_path / "attempts.jsonl", 3))
    saving.start()
    assert hangs.wait(60)
    entering = threading.Thread(target=clock.enter, args=("step",))
    entering.start()
    entering.join(60)
    assert not entering.is_alive()
    assert clock.doing()[0] == "step"
    freed.set()
    saving.join()
