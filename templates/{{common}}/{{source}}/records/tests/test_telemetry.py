"""metrics.jsonl survives kills and full disks; the ledger adds up to wall time."""

import logging
import os
import random
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ...errors import Exit
from .. import store, telemetry
from ..store import read_lines
from ..telemetry import Clock, MetricsLog, age_s, cut_records, goodput, record_warnings, split


class Ticks:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def write(path: Path, steps: range) -> None:
    log = MetricsLog(path)
    for step in steps:
        log.add({"loss": 1 / (step + 3), "step": step})


def test_values_come_back_exactly_and_step_is_first(tmp_path):
    path, seen = tmp_path / "metrics.jsonl", []
    values = {
        "loss": jnp.float32(0.1),
        "rate": np.float64(1 / 3),
        "count": np.int64(7),
        "note": "x",
    }
    MetricsLog(path, [seen.append]).add(values | {"step": 5})
    (record,) = read_lines(path)
    assert next(iter(record)) == "step"
    assert record == {
        "step": 5,
        "loss": float(np.float32(0.1)),
        "rate": 1 / 3,
        "count": 7,
        "note": "x",
    }
    assert seen == [record]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), np.float32("inf"), jnp.nan])
def test_non_finite_becomes_null_in_the_file_and_for_the_listeners(tmp_path, value):
    path, seen = tmp_path / "metrics.jsonl", []
    MetricsLog(path, [seen.append]).add({"step": 1, "loss": value})
    assert path.read_text() == '{"step": 1, "loss": null}\n'
    assert seen == [{"step": 1, "loss": None}]


@pytest.mark.parametrize("torn", [b'{"step": 4, "lo', b"{", b'{"step": 4}', b"\xff\x00", b"null"])
def test_a_torn_line_costs_no_other_record(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    write(path, range(5, 7))
    steps = [record["step"] for record in read_lines(path)]
    assert steps in ([1, 2, 3, 5, 6], [1, 2, 3, 4, 5, 6])


def test_cut_then_append_equals_the_undisturbed_file(tmp_path):
    undisturbed, killed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(undisturbed, range(1, 31))
    rng = random.Random(0)
    write(killed, range(1, 20))
    for _ in range(10):  # killed within a line, resumed from an earlier checkpoint
        checkpoint = rng.randrange(0, 19)
        killed.write_bytes(killed.read_bytes()[: -rng.randrange(1, 9)])
        cut_records(killed, checkpoint)
        assert [record["step"] for record in read_lines(killed)] == list(range(1, checkpoint + 1))
        write(killed, range(checkpoint + 1, 20))
    write(killed, range(20, 31))
    assert killed.read_bytes() == undisturbed.read_bytes()
    assert list(tmp_path.iterdir()) in ([undisturbed, killed], [killed, undisturbed])


def test_cut_of_no_file_makes_none(tmp_path):
    cut_records(tmp_path / "metrics.jsonl", 3)
    assert not any(tmp_path.iterdir())


def test_what_a_disk_refuses_is_written_later_and_in_order(tmp_path, monkeypatch, caplog):
    log, path = MetricsLog(tmp_path / "metrics.jsonl"), tmp_path / "metrics.jsonl"
    log.add({"step": 1})
    with monkeypatch.context() as broken:
        broken.setattr(store, "append", lambda *_: (_ for _ in ()).throw(OSError("away")))
        for step in (2, 3):
            log.add({"step": step})
        with pytest.raises(OSError, match="away"):
            log.durable()  # a checkpoint waits for this
    assert caplog.text.count("kept and tried again") == 1
    log.add({"step": 4})
    log.durable()
    assert [record["step"] for record in store.read_lines(path)] == [1, 2, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_warns_once_and_feeds_the_listeners(tmp_path, caplog):
    seen = []
    log = MetricsLog(Path("/dev/full"), [seen.append])
    for step in range(3):
        log.add({"step": step})
    assert [record["step"] for record in seen] == [0, 1, 2]
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_a_listener_that_raises_is_dropped_with_one_warning(tmp_path, caplog):
    calls, seen = [], []

    def broken(record):
        calls.append(record)
        raise RuntimeError("no network")

    log = MetricsLog(tmp_path / "metrics.jsonl", [broken, seen.append])
    for step in range(3):
        log.add({"step": step})
    log.close(0)
    assert (len(calls), len(seen), len(read_lines(tmp_path / "metrics.jsonl"))) == (1, 3, 3)
    assert [r.getMessage() for r in caplog.records] == [
        "broken gets no more metrics: RuntimeError: no network"
    ]


def test_a_tracker_that_takes_no_artifacts_still_gets_metrics(tmp_path, caplog):
    metrics, files = [], []

    class Tracker:
        def __init__(self, refuses: bool) -> None:
            self.refuses = refuses

        def __call__(self, record):
            metrics.append(record["step"])

        def artifact(self, name, path, step):
            if self.refuses:
                raise PermissionError("no bucket")
            files.append((name, path.name, step))

    log = MetricsLog(tmp_path / "metrics.jsonl", [Tracker(True), Tracker(False), lambda r: None])
    for step in (1, 2):
        log.add_artifact("page", tmp_path / f"{step}.png", step)
        log.add({"step": step})
    log.close(0)
    assert metrics == [1, 1, 2, 2]
    assert files == [("page", "1.png", 1), ("page", "2.png", 2)]
    assert [r.getMessage() for r in caplog.records] == [
        "Tracker gets no more artifacts: PermissionError: no bucket"
    ]


def test_warnings_reach_the_file_and_still_stderr(tmp_path, capsys):
    logger = logging.getLogger(record_warnings.__module__)
    try:
        for folder in (tmp_path / "first", tmp_path / "second"):
            folder.mkdir()
            record_warnings(folder)
            logger.warning("step %d skipped", 7)
            logger.info("nothing to see")
    finally:
        logging.getLogger(logger.name.rpartition(".")[0]).handlers.clear()
    assert capsys.readouterr().err == "step 7 skipped\n" * 2
    for folder in ("first", "second"):
        (line,) = (tmp_path / folder / "warnings.log").read_text().splitlines()
        assert line.endswith("step 7 skipped")


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
