"""What a workload may ask of the loop: means, skips, an aim, artifacts, sections, workers."""

import dataclasses
import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ...contract import Workload
from ...errors import Exit, UserError
from ...records.store import read_lines
from ..sink import read_outputs
from .test_loop import Change, config_of, draws, go
from .workloads import sampler


def test_logged_means_are_of_the_steps_and_a_resume_changes_no_bit(tmp_path: Path) -> None:
    def step(state: dict[str, jax.Array], batch: object) -> tuple:
        at = state["step"].astype(jnp.float32)
        metrics = {"energy": jnp.where(state["step"] == 5, jnp.nan, jnp.sin(at)), "last": at}
        return state | {"step": state["step"] + 1}, metrics, {}

    averaged = {"step": step, "means": ("energy",), "nonfinite": "allow"}
    for name, parts in (("whole", (18,)), ("parts", (6, 7, 18))):
        for steps in parts:
            go(config_of(tmp_path / name, steps, log_every_steps=4), **averaged)
    whole, parts = (
        {r["step"]: (r["energy"], r["last"]) for r in read_lines(tmp_path / name / "metrics.jsonl")}
        for name in ("whole", "parts")
    )
    assert list(whole) == [1, 4, 8, 12, 16, 18]
    assert parts == whole | {step: parts[step] for step in (6, 7)}
    assert whole[4] == (pytest.approx(np.sin([0, 1, 2, 3]).mean()), 3)
    assert whole[8] == (pytest.approx(np.sin([4, 6, 7]).mean()), 7)  # NaN does not count
    assert whole[18] == (pytest.approx(np.sin([16, 17]).mean()), 17)


def poisoned(workload: Workload, bad: range, nonfinite: str, value: float = np.nan) -> Change:
    """Steps that turn to `value` in a range; with "skip" they judge themselves, as updates do."""

    def step(state: dict[str, jax.Array], batch: object) -> tuple:
        new, metrics, outputs = workload.step(state, batch)
        poison = jnp.where((state["step"] >= bad.start) & (state["step"] < bad.stop), value, 0.0)
        metrics = {"log_density": metrics["log_density"] + poison}
        new |= {"at": new["at"] + poison}
        if nonfinite == "skip":
            finite = jnp.isfinite(new["at"]).all()
            new["at"] = jnp.where(finite, new["at"], state["at"])
            new["skipped"] = metrics["skipped"] = state["skipped"] + ~finite
        return new, metrics, {"draws": outputs["draws"] + poison}

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return workload.init(key) | {"skipped": jnp.zeros((), jnp.int32)}

    return {"step": step, "nonfinite": nonfinite} | ({"init": init} if nonfinite == "skip" else {})


def test_non_finite_step_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(tmp_path, 12, max_skipped_steps=3)
    with caplog.at_level(logging.WARNING):
        assert go(config, **poisoned(sampler(config), range(4, 6), "skip")) == Exit.DONE
    records = read_lines(tmp_path / "metrics.jsonl")
    assert [r["skipped"] for r in records] == [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2]
    assert [r["log_density"] is None for r in records] == [4 <= i < 6 for i in range(12)]
    assert "step 5 is not finite" in caplog.text
    assert read_outputs(tmp_path / "outputs")["step"].tolist() == [1, 2, 3, 4, *range(7, 13)]
    assert np.isfinite(draws(tmp_path)).all()


def test_too_many_non_finite_steps_stop_the_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, 40, max_skipped_steps=3)
    with pytest.raises(UserError, match="3 skipped steps in a row, up to step 11"):
        go(config, **poisoned(sampler(config), range(8, 40), "skip"))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000007"]
    mended = poisoned(sampler(config), range(0), "skip")
    assert go(config, **mended) == Exit.DONE  # nothing is lost: it goes on from step 7
    assert len(draws(tmp_path)) == 40


def test_a_step_that_is_too_large_is_told_apart_from_one_that_is_not_finite(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, 9, max_skipped_steps=2)
    plain = sampler(config)

    def step(state: Any, batch: Any) -> Any:  # skips all, of finite metrics
        new, metrics, outputs = plain.step(state, batch)
        skipped = state["skipped"] + 1
        return new | {"skipped": skipped}, metrics | {"skipped": skipped}, outputs

    change = poisoned(plain, range(0), "skip") | {"step": step}
    with (
        pytest.raises(UserError, match="2 skipped steps in a row") as stop,
        caplog.at_level("INFO"),
    ):
        go(config, **change)
    assert "step 1 is too large and is skipped" in caplog.text
    assert "rates that are no larger" in str(stop.value)
    assert "JAX_DEBUG" not in str(stop.value)  # which would find nothing


def test_a_kind_that_does_not_skip_stops_at_the_first_one(tmp_path: Path) -> None:
    config = config_of(tmp_path, 20)
    with pytest.raises(UserError, match=r"(?s)got: +step 13: .*nan.*expected: finite metrics"):
        go(config, **poisoned(sampler(config), range(12, 13), "stop"))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000007"]
    assert go(config) == Exit.DONE
    assert np.isfinite(draws(tmp_path)).all()
    assert len(draws(tmp_path)) == 20


@pytest.mark.parametrize(("nonfinite", "value"), [("skip", np.nan), ("stop", np.inf)])
def test_the_advice_of_the_stop_names_what_finds_the_first_one(
    tmp_path: Path, nonfinite: str, value: float
) -> None:
    """Though JAX forgets the setting in this thread when it pauses it, as it does while tracing."""
    config = config_of(tmp_path, 20, max_skipped_steps=2)
    change = poisoned(sampler(config), range(3, 20), nonfinite, value) | {"smaller_steps": "--x 1"}
    with pytest.raises(UserError, match=r"with --x 1: it goes on in smaller steps") as stop:
        go(config, **change)
    assert ("--max-skipped-steps 4" in str(stop.value)) == (nonfinite == "skip")
    (setting,) = re.findall(r"(JAX_DEBUG_\w+)=1", str(stop.value))
    # Another function: the first one is compiled, with its state donated.
    change = poisoned(sampler(config), range(3, 20), nonfinite, value)
    before = change.get("init", sampler(config).init)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        with jax.debug_nans(False), jax.debug_infs(False):
            return before(key)

    jax.config.update(setting.lower(), True)
    try:
        with pytest.raises(FloatingPointError, match="nan" if np.isnan(value) else "inf"):
            go(config_of(tmp_path / "found", 20), **change | {"init": init})
    finally:
        jax.config.update(setting.lower(), False)


def test_a_kind_may_allow_what_is_not_finite(tmp_path: Path) -> None:
    config = config_of(tmp_path, 9)
    assert go(config, **poisoned(sampler(config), range(4, 6), "allow")) == Exit.DONE
    assert len(draws(tmp_path)) == 9
    assert np.isnan(draws(tmp_path)[4]).all()


def test_a_run_ends_when_its_aim_is_reached_and_has_nothing_to_do_then(tmp_path: Path) -> None:
    asked: list[float] = []

    def reached(aim: float) -> Change:
        def done(values: dict[str, float]) -> bool:
            asked.append(values["count"])
            return values["count"] >= aim and values["heldout_count"] > 0

        def step(state: dict[str, jax.Array], batch: object) -> tuple:
            new = state | {"step": state["step"] + 1}
            return new, {"count": new["step"]}, {"draws": new["at"]}

        def evaluate(state: dict[str, jax.Array], beat: object) -> dict[str, float]:
            return {"heldout_count": float(state["step"])}

        return {"done": done, "step": step, "evaluate": evaluate}

    config = config_of(tmp_path, 40, eval_every_steps=4)
    assert go(config, **reached(10)) == Exit.DONE
    assert asked == [7, 14]  # at saves only
    records = read_lines(tmp_path / "metrics.jsonl")
    assert (records[-1]["step"], records[-1]["heldout_count"]) == (14, 14.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], len(draws(tmp_path))) == (14, 14)
    before = (tmp_path / "summary.json").stat().st_mtime_ns
    for steps in (40, 60):
        again = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=steps))
        assert go(again, **reached(10)) == Exit.DONE
    assert (tmp_path / "summary.json").stat().st_mtime_ns == before
    assert go(config, **reached(20)) == Exit.DONE  # a higher aim goes on from there
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 21
    assert read_outputs(tmp_path / "outputs")["step"].tolist() == list(range(1, 22))


def test_artifacts_have_their_own_cadence_and_are_cut_on_resume(tmp_path: Path) -> None:
    def artifacts(state: dict[str, jax.Array], beat: Callable[[], None]) -> dict[str, object]:
        step = int(state["step"])
        return {"note": f"at {step}", "path": np.full((4, 6, 3), step, np.uint8)}

    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "artifacts").iterdir())

    shown = {"artifacts": artifacts}
    go(config_of(tmp_path, 14, artifacts_every_steps=4), **shown)
    both = [f"{name}-{step:08d}" for name in ("note", "path") for step in (4, 8, 12, 14)]
    assert [name.partition(".")[0] for name in names()] == both
    assert (tmp_path / "artifacts" / "note-00000008.txt").read_text() == "at 8"
    assert "at 14" in (tmp_path / "report.html").read_text()
    shutil.rmtree(tmp_path / "checkpoints" / "00000014")
    go(config_of(tmp_path, 9, artifacts_every_steps=4), **shown)  # from step 7 on
    assert [name.partition(".")[0] for name in names()] == [
        f"{name}-{step:08d}" for name in ("note", "path") for step in (4, 8, 9)
    ]


def test_finish_adds_sections_to_the_report(tmp_path: Path) -> None:
    sections = {"Verdict": "sound & <whole>", "Table": {"rhat": 1.01}}
    go(config_of(tmp_path, 3), finish=lambda state, beat: ({"score": 2.0}, sections))
    page = (tmp_path / "report.html").read_text()
    for words in ("Verdict", "sound &amp; &lt;whole&gt;", "rhat", "1.01"):
        assert words in page


def test_several_workers_keep_the_order_of_the_batches(tmp_path: Path) -> None:
    def batch(cursor: int) -> dict[str, jax.Array]:
        time.sleep(0.02 * (cursor % 3 == 0))  # the first of three is the last to be ready
        return {"x": jnp.asarray(float(cursor))}

    def step(state: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple:
        return state | {"step": state["step"] + 1}, {"cursor": batch["x"]}, {}

    go(config_of(tmp_path, 20, prefetch_workers=4), batch=batch, step=step, stride=2)
    assert [r["cursor"] for r in read_lines(tmp_path / "metrics.jsonl")] == list(range(0, 40, 2))


def test_prefetch_stops_with_the_loop_and_hands_on_errors(tmp_path: Path) -> None:
    def batch(cursor: int) -> dict[str, jax.Array]:
        if cursor == 7:
            raise RuntimeError("the seventh batch is broken")
        return {}

    with pytest.raises(RuntimeError, match="seventh"):
        go(config_of(tmp_path, 20, prefetch_workers=3), batch=batch)
    assert [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 8))


def test_a_kind_without_evaluation_has_no_records_beside_its_cadence(tmp_path: Path) -> None:
    go(config_of(tmp_path, 14, log_every_steps=5, eval_every_steps=3, save_every_steps=7))
    assert [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == [1, 5, 10, 14]


def test_artifacts_that_raise_lose_no_step(tmp_path: Path) -> None:
    def broken(state: object, beat: object) -> dict[str, object]:
        raise ValueError("no such font")

    with pytest.raises(ValueError, match="font"):
        go(config_of(tmp_path, 5), artifacts=broken)
    assert (tmp_path / "checkpoints" / "00000005").exists()
    assert go(config_of(tmp_path, 5)) == Exit.DONE
    assert len(draws(tmp_path)) == 5
