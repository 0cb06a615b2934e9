"""metrics.jsonl survives kills and full disks, and no listener stops a run."""

import logging
import random
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from .. import store
from ..store import read_lines
from ..telemetry import MetricsLog, cut_records, record_warnings


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
