"""The recorder: means over steps, artifacts, and a report from files alone."""

import itertools
import json
import logging
import math
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np
import pytest

from ...contract import Workload
from ...errors import Exit, UserError
from ...run_config import RunConfig
from .. import recorder as recorder_module
from .. import report, store, trackers
from ..recorder import Recorder, reported
from ..report import write_report
from ..telemetry import Clock, record_warnings


@dataclass(frozen=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)


def nothing(*_: object) -> dict:
    return {}


WORKLOAD = Workload(init=nothing, step=nothing, batch=nothing, specs=nothing)


@pytest.fixture(autouse=True)
def no_handlers():
    yield
    logging.getLogger(record_warnings.__module__.partition(".")[0]).handlers.clear()


def recorder_of(folder, first=0, workload=WORKLOAD, **run) -> Recorder:
    run = {"steps": 20, "log_every_steps": 4, "trackers": ()} | run
    clock = Clock(itertools.count(0.0).__next__)  # a second passes whenever it is read
    clock.enter("step")
    return Recorder(workload, Config(RunConfig(**run)), folder, first, clock)


def values_of(step: int) -> dict[str, float]:
    loss = math.nan if step == 5 else 1 / (step + 3)
    return {"loss": loss, "accuracy": math.sqrt(step), "rate": 0.1 * step}


def test_what_a_unit_brings_has_a_rate_too(tmp_path):
    workload = replace(WORKLOAD, rate=("draws", 400), means=(), shown=("ess_per_s", "accept"))
    recorder = recorder_of(tmp_path, workload=workload)
    recorder.step(1, {"ess_per_draw": 0.25, "bits_per_draw": 1.0}, force=True)
    recorder.close(Exit.DONE)
    (record,) = store.read_lines(tmp_path / "metrics.jsonl")
    assert record["draws_per_s"] == pytest.approx(4e5 / record["step_ms"])
    assert record["ess_per_s"] == pytest.approx(record["draws_per_s"] / 4)
    assert "bits_per_s" not in record


def run(folder, first, last, sums=None) -> dict:
    recorder = recorder_of(folder, first, replace(WORKLOAD, means=("loss", "accuracy", "absent")))
    recorder.sums = sums or recorder.sums
    for step in range(first + 1, last + 1):
        recorder.step(step, values_of(step), force=step == last)
    recorder.close(Exit.DONE)
    return json.loads(json.dumps(recorder.sums))  # as a checkpoint holds them


def test_every_mean_is_over_the_steps_since_the_last_record(tmp_path):
    run(tmp_path, 0, 10)
    found = {r["step"]: r for r in store.read_lines(tmp_path / "metrics.jsonl")}
    assert list(found) == [4, 8, 10]
    for first, last in ((1, 4), (5, 8), (9, 10)):
        steps = [values_of(step) for step in range(first, last + 1)]
        for name in ("loss", "accuracy"):
            finite = [v[name] for v in steps if math.isfinite(v[name])]
            assert found[last][name] == pytest.approx(np.mean(finite))
        assert found[last]["rate"] == 0.1 * last  # no mean
        assert "absent" not in found[last]


def test_a_resume_changes_no_bit_of_a_mean(tmp_path):
    run(tmp_path / "whole", 0, 20)
    sums = None
    for first, last in ((0, 6), (6, 7), (7, 12), (12, 20)):
        sums = run(tmp_path / "parts", first, last, sums)
    whole, parts = (
        {
            r["step"]: [r["loss"], r["accuracy"]]
            for r in store.read_lines(tmp_path / name / "metrics.jsonl")
        }
        for name in ("whole", "parts")
    )
    assert {step: parts[step] for step in whole} == whole
    assert set(parts) - set(whole) == {6, 7}


def test_what_was_saved_with_a_checkpoint_does_not_change_afterwards(tmp_path):
    recorder = recorder_of(tmp_path)
    recorder.step(1, values_of(1))
    saved = recorder.sums
    recorder.step(2, values_of(2))
    assert saved == {"loss": (values_of(1)["loss"], 1)}


def test_a_mean_without_a_finite_value_is_null(tmp_path):
    recorder = recorder_of(tmp_path)
    for step in range(1, 5):
        recorder.step(step, {"loss": math.nan})
    (record,) = store.read_lines(tmp_path / "metrics.jsonl")
    assert (record["step"], record["loss"]) == (4, None)


def test_artifacts_are_written_handed_on_and_cut_on_resume(tmp_path, monkeypatch):
    seen = []

    class Tracker:
        def __call__(self, record):
            pass

        def artifact(self, name, path, step):
            seen.append((name, path.name, step))

    monkeypatch.setattr(recorder_module, "make_trackers", lambda *_: [Tracker()])
    recorder = recorder_of(tmp_path)
    for step in (4, 8):
        recorder.artifacts(step, {"page": np.zeros((2, 3, 3), np.uint8), "a b": f"at {step}"})
    assert seen == [
        ("page", "page-00000004.png", 4),
        ("a b", "a_b-00000004.txt", 4),
        ("page", "page-00000008.png", 8),
        ("a b", "a_b-00000008.txt", 8),
    ]
    recorder_of(tmp_path, first=7)
    assert store.names(tmp_path / "artifacts") == ["a_b-00000004.txt", "page-00000004.png"]


def test_artifacts_on_a_full_disk_stop_nothing(tmp_path, caplog):
    recorder = recorder_of(tmp_path)
    (tmp_path / "artifacts").touch()
    recorder.artifacts(4, {"a": "x", "b": "y"})
    recorder.step(4, values_of(4))
    assert "artifacts of step 4 are lost" in caplog.text
    assert len(caplog.records) == 1
    assert [r["step"] for r in store.read_lines(tmp_path / "metrics.jsonl")] == [4]


def test_other_processes_write_nothing_and_sum_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module.jax, "process_index", lambda: 1)
    recorder = recorder_of(tmp_path)
    recorder.step(1, values_of(1))
    recorder.artifacts(1, {"a": "x"})
    recorder.finish(1, {}, {"a": "x"})
    assert recorder.sums == {"loss": (values_of(1)["loss"], 1)}
    assert store.names(tmp_path) == []


def test_finish_leaves_a_report_that_files_alone_make_again(tmp_path, capsys):
    recorder = recorder_of(tmp_path)
    for step in range(1, 9):
        recorder.step(step, values_of(step))
    recorder.artifacts(8, {"sample": "once upon"})
    sections = {
        "Verdict": "all chains agree",
        "Posterior": {"mu": {"mean": jnp.float32(0.5), "ess_per_s": 1200.0}, "bad": math.nan},
    }
    assert not reported(tmp_path, 8)
    recorder.finish(8, {"score": np.float32(2.0)}, sections)
    assert reported(tmp_path, 8)
    assert not reported(tmp_path, 9)
    summary = store.read_json(tmp_path / "summary.json")
    assert (summary["steps"], summary["score"]) == (8, 2.0)
    assert next(iter(summary)) == "loss"  # held-out metrics and means, before all else
    assert summary["mfu_formula"] == "no MFU: this kind counts no model FLOPs"
    assert "score" in capsys.readouterr().out
    html = (tmp_path / "report.html").read_text()
    for text in ("all chains agree", "mu: mean", "1.2k", "once upon", "step 8"):
        assert text in html
    (tmp_path / "report.html").unlink()
    assert write_report(tmp_path).read_text() == html
    recorder_of(tmp_path, first=8).finish(8, {}, {})
    assert "all chains agree" not in (tmp_path / "report.html").read_text()


def test_a_stopped_run_has_a_report_that_does_not_pass_for_the_end(tmp_path):
    recorder = recorder_of(tmp_path)
    for step in range(1, 9):
        recorder.step(step, values_of(step))
    store.write_json(tmp_path / "summary.json", {"steps": 8})  # from before a step back
    recorder.stopped(8, Exit.PREEMPTED)
    assert "Not finished: at step 8" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "plots" / "loss.png").exists()
    assert not reported(tmp_path, 8)


def test_a_report_of_a_stopped_run_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    recorder = recorder_of(tmp_path)
    recorder.step(4, values_of(4))
    monkeypatch.setattr(report, "write_report", lambda run_dir, traces: 1 / 0)
    recorder.stopped(4, Exit.PREEMPTED)
    assert "no plots or report: ZeroDivisionError" in caplog.text


def test_plots_that_take_too_long_do_not_hold_up_a_stop(tmp_path, monkeypatch):
    may_end, drawn = threading.Event(), threading.Event()

    def draw(run_dir, traces):
        may_end.wait(10)
        drawn.set()

    monkeypatch.setattr(report, "write_report", draw)
    monkeypatch.setattr(recorder_module, "DRAWING_S", 0.1)
    recorder = recorder_of(tmp_path)
    recorder.step(4, values_of(4))
    recorder.stopped(4, Exit.PREEMPTED)
    assert not drawn.is_set()
    may_end.set()


def test_a_trace_is_announced_once_where_it_is(tmp_path, caplog):
    recorder = recorder_of(tmp_path, profile_at_step=2, profile_steps=1)
    with caplog.at_level(logging.INFO):
        for step in range(1, 5):
            recorder.profile(step)
            jnp.ones(8).sum().block_until_ready()
        recorder.close(Exit.DONE)
    (said,) = [r.getMessage() for r in caplog.records if "profiler" in r.getMessage()]
    assert f"xprof --logdir {tmp_path / 'profile'}" in said
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def closings(monkeypatch) -> list[int]:
    """The exit codes that a tracker is closed with, filled in as that happens."""
    codes: list[int] = []
    tracker = trackers.Tracker(lambda *_: None, lambda *_: None, codes.append)
    monkeypatch.setattr(recorder_module, "make_trackers", lambda *_: [tracker])
    return codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError(got="non-finite steps", expected="finite ones", do="lower the rate"), Exit.USER),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
        (RuntimeError("broken"), Exit.BUG),
        (SystemExit(Exit.PREEMPTED), Exit.PREEMPTED),
        (OSError(28, "No space left"), Exit.USER),
        (SystemExit(0), Exit.BUG),  # nobody ends a run so: not finished, whatever it says
    ],
)
def test_trackers_are_told_how_a_run_failed(tmp_path, monkeypatch, error, code):
    codes = closings(monkeypatch)

    def fail():
        with ExitStack() as stack:
            stack.push(recorder_of(tmp_path).leave)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert codes == [code]


def test_trackers_are_told_that_a_run_was_stopped_or_finished(tmp_path, monkeypatch):
    codes = closings(monkeypatch)
    monkeypatch.setattr(report, "write_report", lambda run_dir: run_dir)
    for code in (Exit.PREEMPTED, Exit.INTERRUPTED, Exit.DONE):
        with ExitStack() as stack:
            recorder = recorder_of(tmp_path)
            stack.push(recorder.leave)
            recorder.step(4, values_of(4))
            recorder.finish(4, {}, {}) if code == Exit.DONE else recorder.stopped(4, code)
    assert codes == [Exit.PREEMPTED, Exit.INTERRUPTED, Exit.DONE]
