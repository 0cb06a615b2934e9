"""The loop against a workload that is no language model: order, resume, guards, compilation."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ...errors import Exit
from ...records import plots, report
from ...records.store import read_lines
from ...run_config import MeshConfig
from .. import loop
from ..checkpoint import Checkpoints
from ..compiled import abstract_state
from ..sharding import make_mesh
from ..sink import read_outputs
from .workloads import CHAINS, config_of, go, sampler

type Change = dict[str, object]


def draws(folder: Path) -> np.ndarray:
    return read_outputs(folder / "outputs")["draws"]


def test_resume_equals_uninterrupted_and_any_mesh(tmp_path: Path) -> None:
    go(config_of(tmp_path / "whole", 25))
    for steps in (9, 16, 25):  # resumed twice, between saves and on one; each on another mesh
        mesh = MeshConfig(data=2, fsdp=4) if steps == 16 else None
        assert go(config_of(tmp_path / "parts", steps, mesh)) == Exit.DONE
    np.testing.assert_array_equal(draws(tmp_path / "whole"), draws(tmp_path / "parts"))
    whole, parts = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [r["log_density"] for r in whole] == pytest.approx([r["log_density"] for r in parts])
    assert [r["step"] for r in parts] == list(range(1, 26))


def test_no_process_leaves_before_the_report_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_at: dict[str, bool] = {}
    monkeypatch.setattr(
        loop, "barrier", lambda name: written_at.update({name: (tmp_path / "report.html").exists()})
    )
    go(config_of(tmp_path, 3))
    assert list(written_at.items())[-1] == ("finished", True)


def test_finished_run_does_nothing(tmp_path: Path) -> None:
    go(config_of(tmp_path, 5))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert go(config_of(tmp_path, 5)) == Exit.DONE
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_run_leaves_every_promised_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plot_all", plots.plot_all)
    go(config_of(tmp_path, 14), evaluate=lambda state, beat: {"heldout_x": 2.0})
    records = read_lines(tmp_path / "metrics.jsonl")
    assert {"step", "log_density", "draws_per_s", "step_ms"} <= records[5].keys()
    assert records[-1]["heldout_x"] == 2.0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 14
    assert summary["draws_seen"] == 14 * 5 * CHAINS
    assert {"compile_s", "checkpoint_blocking_ms", "goodput", "wall_s"} <= summary.keys()
    assert (tmp_path / "report.html").exists()
    assert list((tmp_path / "plots").glob("*.png"))
    assert json.loads((tmp_path / "config.json").read_text())["identity"]["scale"] == 0.8


def test_what_was_stopped_after_its_last_save_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def killed(state: object, beat: object) -> tuple:
        raise KeyboardInterrupt

    def finished(steps: int) -> None:
        assert (
            go(config_of(tmp_path, steps), finish=lambda state, beat: ({"score": 2.0}, {}))
            == Exit.DONE
        )
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["steps"], summary["score"]) == (steps, 2.0)
        assert summary["step_ms"] > 0
        assert summary["log_density"] == read_lines(tmp_path / "metrics.jsonl")[-1]["log_density"]
        assert (tmp_path / "report.html").exists()

    with pytest.raises(KeyboardInterrupt):
        go(config_of(tmp_path, 5), finish=killed)
    assert not (tmp_path / "summary.json").exists()
    finished(5)
    # The summary that stands there now is no longer that of the run.
    monkeypatch.setattr(
        loop.StopRequest, "decide", lambda _, step: Exit.PREEMPTED if step == 9 else None
    )
    with caplog.at_level(logging.INFO):
        assert go(config_of(tmp_path, 9)) == Exit.PREEMPTED
    assert "saved at step 9; the same command writes the report" in caplog.text
    assert "Not finished: at step 9" in (tmp_path / "report.html").read_text()
    finished(9)
    assert go(config_of(tmp_path, 9), finish=killed) == Exit.DONE  # there is nothing left to do


def test_a_stop_saves_first_and_the_next_start_makes_up_for_what_was_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_evaluation: list[tuple[int, list[str]]] = []

    def evaluate(state: dict[str, jax.Array], beat: object) -> dict[str, float]:
        saved = sorted(p.name for p in (tmp_path / "parts" / "checkpoints").glob("*"))
        at_evaluation.append((int(state["step"]), saved))
        return {"heldout_x": float(state["at"].mean())}

    def shown(state: dict[str, jax.Array], beat: object) -> dict[str, str]:
        return {"at": str(state["at"])}

    options = {"eval_every_steps": 4, "artifacts_every_steps": 8, "log_every_steps": 3}
    change: Change = {"evaluate": evaluate, "artifacts": shown, "means": ("log_density",)}
    with monkeypatch.context() as stopped:
        stopped.setattr(
            loop.StopRequest, "decide", lambda _, step: Exit.PREEMPTED if step in (8, 13) else None
        )
        for _ in range(2):
            assert go(config_of(tmp_path / "parts", 14, **options), **change) == Exit.PREEMPTED
    assert go(config_of(tmp_path / "parts", 14, **options), **change) == Exit.DONE
    assert [step for step, _ in at_evaluation] == [4, 8, 12, 14]
    assert "00000008" in at_evaluation[1][1], "saved before it was evaluated"
    go(config_of(tmp_path / "whole", 14, **options), **change)
    whole, parts = (
        [
            {k: v for k, v in record.items() if not k.endswith(("_per_s", "_ms"))}
            for record in read_lines(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "parts")
    )
    assert [r for r in parts if r["step"] != 13] == whole  # a stop writes its own record
    names = [
        sorted(p.name for p in (tmp_path / n / "artifacts").iterdir()) for n in ("whole", "parts")
    ]
    assert names[0] == names[1]


def test_checkpoints_are_kept_while_steps_are_skipped(tmp_path: Path) -> None:
    def step(state: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple:
        step = state["step"] + 1
        skipped = state["skipped"] + ((step > 6) & (step < 13))
        return state | {"step": step, "skipped": skipped}, {"skipped": skipped}, {}

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"step": jnp.zeros((), jnp.int32), "skipped": jnp.zeros((), jnp.int32)}

    change: Change = {"init": init, "step": step, "nonfinite": "skip"}
    change["specs"] = lambda state: dict.fromkeys(state, jax.sharding.PartitionSpec())
    options = {"save_every_steps": 3, "keep_checkpoints": 1}
    steps = lambda: sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())  # noqa: E731
    go(config_of(tmp_path, 12, **options), **change)
    assert steps() == [6, 9, 12]
    go(config_of(tmp_path, 15, **options), **change)
    assert steps() == [15]


def test_hang_watch_is_told_by_all_that_takes_long_and_waits_longer_for_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def noted(what: str, act: Callable[..., Any] = lambda *_: {}) -> Callable[..., Any]:
        return lambda *args: (seen.append(what), act(*args))[1]

    @contextlib.contextmanager
    def waiting(limit_s: float) -> Iterator[None]:
        assert limit_s == 3600
        seen.append("longer")
        yield
        seen.append("on")

    watch = SimpleNamespace(beat=noted("beat"), close=noted("close"), waiting=waiting)
    monkeypatch.setattr(loop, "Watch", lambda timeout_s: watch)
    monkeypatch.setattr(Checkpoints, "wait", noted("wait", Checkpoints.wait))
    go(
        config_of(tmp_path, 4, save_every_steps=0, eval_every_steps=2),
        evaluate=noted("evaluate", lambda state, beat: beat() or {}),
        artifacts=noted("artifacts", lambda state, beat: beat() or {}),
        finish=noted("finish", lambda state, beat: beat() or ({}, {})),
    )
    expected = "beat beat evaluate beat beat beat evaluate beat longer wait on wait artifacts beat "
    expected += "longer wait on finish beat close wait"
    assert " ".join(seen) == expected


def test_compiles_exactly_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiled: list[int] = []  # steps at which XLA compiled anything
    at = [0]

    def on_event(event: str, duration_s: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(at[0])

    def batch(cursor: int) -> dict[str, jax.Array]:
        at[0] = cursor
        return {}

    jax.monitoring.register_event_duration_secs_listener(on_event)
    evaluate = jax.jit(lambda state: state["at"].mean())
    go(
        config_of(tmp_path, 20, eval_every_steps=5),
        batch=batch,
        evaluate=lambda state, beat: {"mean": float(evaluate(state))},
    )
    # Batches are made three steps ahead; the evaluation of step 5 compiles its own function.
    assert max(compiled) <= 5 + 3, compiled
    assert "compiled again" not in caplog.text


def test_second_compilation_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shapes = {3: 5}  # a batch of another shape at the fourth step

    def step(state: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple:
        return state | {"step": state["step"] + 1}, {"sum": batch["x"].sum()}, {}

    change: Change = {"step": step, "batch": lambda cursor: {"x": jnp.ones(shapes.get(cursor, 4))}}
    with caplog.at_level(logging.WARNING):
        go(config_of(tmp_path, 5), **change)
    (said,) = {r.getMessage() for r in caplog.records if "compiled again" in r.getMessage()} - {""}
    assert "['x']" in said
    assert "float32[4]" in said
    assert "float32[5]" in said


def test_state_is_sharded_as_declared(tmp_path: Path) -> None:
    config = config_of(tmp_path, 1)
    mesh = make_mesh(config.mesh)
    abstract, _ = abstract_state(sampler(config), 0, mesh)
    assert abstract["at"].sharding.shard_shape((CHAINS, 2)) == (CHAINS // mesh.size, 2)
    assert abstract["step"].sharding.is_fully_replicated


def test_a_report_that_was_not_written_is_written_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(config_of(tmp_path, 3))
    with monkeypatch.context() as killed:
        killed.setattr(report, "write_report", lambda run_dir: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(config_of(tmp_path, 5))
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 5
    assert go(config_of(tmp_path, 5)) == Exit.DONE
    assert (tmp_path / "report.html").exists()


def test_a_stop_saves_first_then_draws_and_warns_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(run_dir: Path, *, traces: bool) -> Path:
        assert (run_dir / "checkpoints" / "00000003" / "files-0.json").exists()
        assert not traces  # it takes long to read them
        return real(run_dir, traces=traces)

    real = report.write_report
    stop = Exit.INTERRUPTED
    monkeypatch.setattr(loop.StopRequest, "decide", lambda _, step: stop if step == 3 else None)
    monkeypatch.setattr(report, "write_report", draw)
    monkeypatch.setattr(report, "plot_all", plots.plot_all)
    assert go(config_of(tmp_path, 9)) == stop
    assert not (tmp_path / "warnings.log").exists()
    assert "Not finished: at step 3 of 9" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "plots" / "log_density.png").exists()
    assert not (tmp_path / "summary.json").exists()


def test_a_report_that_fails_does_not_change_how_a_stop_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Exit.PREEMPTED
    monkeypatch.setattr(loop.StopRequest, "decide", lambda _, step: stop if step == 3 else None)
    monkeypatch.setattr(report, "write_report", lambda run_dir, traces: 1 / 0)
    assert go(config_of(tmp_path, 9)) == stop
    assert "ZeroDivisionError" in (tmp_path / "warnings.log").read_text()


@pytest.mark.parametrize("devices", [1, 8])
def test_a_start_says_two_lines_and_on_a_mesh_the_shardings(
    tmp_path: Path, devices: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, 1)
    with caplog.at_level(logging.INFO):
        loop.run(sampler(config), config, make_mesh(config.mesh, jax.devices()[:devices]))
    said = [record.getMessage() for record in caplog.records if record.name == loop.__name__]
    assert said[0].startswith("state 4 arrays, 200 kB a device")
    assert said[-1] == "starting at step 0"
    assert len(said) == (2 if devices == 1 else 3)
    assert json.loads((tmp_path / "config.json").read_text())["parameters"] is None
