"""What a resume refuses, what it takes and lists, and what it makes up for."""

import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ...errors import Exit, UserError
from ...records import store
from .. import loop
from .workloads import config_of, go, sampler


def test_other_identity_is_refused(tmp_path: Path) -> None:
    go(config_of(tmp_path, 5))
    config = config_of(tmp_path, 9)
    with pytest.raises(UserError, match=r"got: +scale=0.5\nexpected: scale=0.8.*\n.*--scale 0.8"):
        go(dataclasses.replace(config, scale=0.5))
    with pytest.raises(UserError, match=r"run.seed=1(.*\n)+.*--seed 0"):
        go(config_of(tmp_path, 9, seed=1))


def test_a_resume_lists_what_it_changes_and_keeps_the_first_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for steps, lag in ((5, 1.0), (9, 1.0), (9, 1.0), (12, 0.5)):
        monkeypatch.setattr(sys, "argv", ["/bin/acorn", "fit", "--steps", str(steps), "a b"])
        with caplog.at_level(logging.INFO):
            go(
                dataclasses.replace(config_of(tmp_path, steps), lag=lag),
                tunable={"horizon": max(steps, 9)},  # as worked out from the steps
            )
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["command"] == "acorn fit --steps 5 'a b'"
    assert about["changes"] == [
        {"step": 5, "setting": "run.steps", "from": 5, "to": 9},
        {"step": 9, "setting": "run.steps", "from": 9, "to": 12},
        {"step": 9, "setting": "lag", "from": 1.0, "to": 0.5},
        {"step": 9, "setting": "horizon", "from": 9, "to": 12},
    ]
    assert "begun with: acorn fit --steps 5 'a b'" in caplog.text
    assert "from here on, lag is 0.5, not 1.0, which --lag 1.0 keeps" in caplog.text
    assert "lag: 1.0 → 0.5" in (tmp_path / "report.html").read_text()


def test_a_setting_that_was_once_part_of_the_identity_may_change(tmp_path: Path) -> None:
    go(config_of(tmp_path, 5))
    (manifest,) = tmp_path.glob("checkpoints/*5/manifest.json")
    content = json.loads(manifest.read_text())
    content["identity"]["lag"] = 1.0  # as an earlier release wrote it
    manifest.write_text(json.dumps(content))
    hashes = manifest.with_name("files-0.json")
    listed = json.loads(hashes.read_text())
    listed["manifest.json"] = store.sha256(manifest)
    hashes.write_text(json.dumps(listed))
    assert go(dataclasses.replace(config_of(tmp_path, 9), lag=0.5)) == Exit.DONE


def test_another_state_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, 5)
    go(config)
    workload = sampler(config)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return workload.init(key) | {"ballast": jnp.zeros(3)}

    for changed, words in (
        (config, "setting: undo that, or"),
        (dataclasses.replace(config, lag=9.0), "--lag 1.0"),
    ):
        with pytest.raises(UserError, match=rf"(?s)\['ballast'\]: float32\[3\].*{words}"):
            go(changed, init=init)


def test_what_a_stop_owes_is_judged_and_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"save_every_steps": 4, "eval_every_steps": 4}
    change = {
        "evaluate": lambda state, beat: {"heldout": float(state["step"])},
        "done": lambda values: values.get("heldout") == 8,
    }
    with monkeypatch.context() as stopped:
        stopped.setattr(
            loop.StopRequest, "decide", lambda _, step: Exit.PREEMPTED if step == 8 else None
        )
        assert go(config_of(tmp_path, 20, **options), **change) == Exit.PREEMPTED
    with monkeypatch.context() as killed:  # after the record, before the next save
        killed.setattr(loop, "_is_done", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(config_of(tmp_path, 20, **options), **change)
    assert go(config_of(tmp_path, 20, **options), **change) == Exit.DONE
    steps = [record["step"] for record in store.read_lines(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, 9)), "as without a stop: it ends at 8"
    assert store.read_json(tmp_path / "summary.json")["heldout"] == 8


def test_the_job_is_left_after_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(loop, "barrier", seen.append)
    go(config_of(tmp_path, 2), finish=lambda state, beat: seen.append("report") or ({}, {}))
    assert seen[-2:] == ["report", "finished"]


def test_the_first_record_is_of_step_one_alone_and_means_still_span_their_steps(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path / "each", 8)
    go(config, means=("log_density",))
    each = [r["log_density"] for r in store.read_lines(tmp_path / "each" / "metrics.jsonl")]
    for steps in (6, 8):  # a resume begins no new series
        go(config_of(tmp_path / "mean", steps, log_every_steps=4), means=("log_density",))
    found = {
        r["step"]: r["log_density"] for r in store.read_lines(tmp_path / "mean" / "metrics.jsonl")
    }
    assert list(found) == [1, 4, 6, 8]
    assert found[1] == pytest.approx(each[0])
    assert found[4] == pytest.approx(np.mean(each[:4]))
    assert found[8] == pytest.approx(np.mean(each[4:]))


@pytest.mark.parametrize("every", [4, 3])  # at a step with a save, and without
def test_artifacts_that_a_stop_leaves_are_made_by_the_next_start(
    tmp_path: Path, every: int
) -> None:
    """SIGTERM in the middle of them: they are left, what was done is saved."""
    stopping = [True]

    def shown(state: dict[str, jax.Array], beat: Callable[[], None]) -> dict[str, str]:
        if stopping and int(state["step"]) == every:
            stopping.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        beat()
        return {"at": str(state["at"])}

    for name in ("parts", "whole"):
        config = config_of(tmp_path / name, 7, save_every_steps=4, artifacts_every_steps=every)
        if name == "parts":
            assert go(config, artifacts=shown) == Exit.PREEMPTED
            assert not (tmp_path / name / "artifacts").exists()
            assert (tmp_path / name / "checkpoints" / f"{every:08d}").exists()
        assert go(config, artifacts=shown) == Exit.DONE
    parts, whole = (
        {p.name: p.read_text() for p in (tmp_path / name / "artifacts").iterdir()}
        for name in ("parts", "whole")
    )
    assert parts == whole
    assert len(whole) == 7 // every + 1
