"""Turns what the loop measures into records, a summary, plots and the report. Steers nothing.

Only process 0 writes; the others keep the same count and stay silent.
"""

import json
import logging
import math
import statistics
from pathlib import Path
from typing import Any

import jax

from ..contract import Workload
from ..run_config import RunConfig, to_dict
from . import hardware, progress, telemetry
from .trackers import make_trackers

log = logging.getLogger(__name__)


class Recorder:
    """One attempt at a run, from its first step to its summary."""

    def __init__(
        self, workload: Workload, config: Any, run_dir: Path, first: int, clock: telemetry.Clock
    ) -> None:
        self._workload, self._clock, self._dir, self._first = workload, clock, run_dir, first
        self._run: RunConfig = config.run
        # Sum and count since a record was due; in checkpoints too, so that a resume changes no bit.
        self.losses = (0.0, 0)
        self._writes = jax.process_index() == 0
        self._window = (first, self._busy_s())
        self._compile_s: float | None = None
        self._saves_s: list[float] = []
        self._profiling = self._closed = False
        if self._writes:
            run_dir.mkdir(parents=True, exist_ok=True)
            telemetry.cut(run_dir / "metrics.jsonl", first)
            telemetry.record_warnings(run_dir)
            clock.save(run_dir / "attempts.jsonl", first)
            trackers = make_trackers(self._run.trackers, run_dir, to_dict(config), first)
            bar = progress.ProgressBar(self._run.steps)
            self._log = telemetry.MetricsLog(run_dir / "metrics.jsonl", [bar, *trackers])

    def compiled(self, seconds: float) -> None:
        """The first step is through: throughput is counted from here."""
        self._compile_s = seconds
        self._window = (self._window[0] + 1, self._busy_s())

    def step(self, step: int, values: dict[str, float], *, force: bool = False) -> None:
        """Write a record where one is due; its loss is the mean of all steps since the last due."""
        (total, count), due = self.losses, step % self._run.log_every_steps == 0
        if math.isfinite(loss := values.get("loss", math.nan)):
            total, count = total + loss, count + 1
        self.losses = (0.0, 0) if due else (total, count)
        if not (due or force):
            return
        since, busy_s = self._window
        now_s = self._busy_s()
        record: dict[str, Any] = {"step": step} | values
        record |= {"loss": total / count} if count else {}
        if step > since:
            step_s = (now_s - busy_s) / (step - since)
            name, units = self._workload.rate
            record |= {f"{name}_per_s": units / step_s, "step_ms": 1e3 * step_s}
            if (share := self._mfu(step_s)[0]) is not None:
                record["mfu"] = share
        self._window = (step, now_s)
        if self._writes:
            self._log.write(record)
            self._clock.save(self._dir / "attempts.jsonl", step)

    def saved(self, blocking_s: float) -> None:
        """A checkpoint held the loop up for so long."""
        self._saves_s.append(blocking_s)

    def profile(self, step: int) -> None:
        """Start or stop the profiler trace around the steps that were asked for."""
        at, length = self._run.profile_at_step, self._run.profile_steps
        if at and step == at and not self._profiling:
            jax.profiler.start_trace(str(self._dir / "profile"))
            self._profiling = True
        elif self._profiling and step >= at + length:
            self._stop_profile()

    def close(self) -> None:
        """Let bar and trackers finish; once is enough."""
        self._stop_profile()
        if self._writes and not self._closed:
            self._log.close()
        self._closed = True

    def finish(self, steps: int, extra: dict[str, Any]) -> None:
        """Write summary.json, plots and report.html, and print the summary."""
        self.close()
        if not self._writes:
            return
        self._clock.save(self._dir / "attempts.jsonl", steps)
        name, units = self._workload.rate
        records = telemetry.read(self._dir / "metrics.jsonl")
        last = {k: v for record in records for k, v in record.items()}
        # Of this attempt; of them all where it only finishes what an earlier one has trained.
        timed = [r for r in records if "step_ms" in r]
        timed = [r for r in timed if r["step"] > self._first] or timed
        step_s = statistics.median(r["step_ms"] for r in timed) / 1e3 if timed else math.nan
        share, formula = self._mfu(step_s)
        attempts = telemetry.goodput(telemetry.read(self._dir / "attempts.jsonl"))
        summary = {
            "steps": steps,
            f"{name}_seen": units * steps,
            f"{name}_per_s": units / step_s,
            "step_ms": 1e3 * step_s,
            "compile_s": self._compile_s,
            "checkpoint_blocking_ms": 1e3 * max(self._saves_s, default=math.nan),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "mfu": share,
            "mfu_formula": formula,
            "peak_memory_bytes": _peak_memory_bytes(),
        }
        summary |= {k: v for k, v in last.items() if k not in (*summary, "step", "skipped")}
        summary |= {"skipped_steps": last.get("skipped", 0.0)} | attempts | extra
        summary = {k: telemetry.plain(v) for k, v in summary.items()}
        (self._dir / "summary.json").write_text(json.dumps(summary, indent=1))
        # Matplotlib takes a second to import, and no picture is worth a finished run.
        from .plots import plot_all
        from .report import format_summary, write_report

        print(format_summary(summary))
        try:
            plot_all(self._dir)
            print(f"report: {write_report(self._dir)}")
        except OSError as error:
            log.warning("no plots or report: %s", error)

    def _busy_s(self) -> float:
        """Seconds that went into steps: not compiling, evaluating or saving."""
        parts = self._clock.parts_s()
        return sum(parts.get(part, 0.0) for part in ("step", "data_wait"))

    def _mfu(self, step_s: float) -> tuple[float | None, str]:
        if self._workload.flops_per_step is None:
            return None, "no MFU: this kind counts no model FLOPs"
        kind = jax.devices()[0].device_kind
        return hardware.mfu(self._workload.flops_per_step, step_s, jax.device_count(), kind)

    def _stop_profile(self) -> None:
        if self._profiling:
            jax.profiler.stop_trace()
            self._profiling = False


def reported(run_dir: Path, step: int) -> bool:
    """Whether the summary of a run that ended at `step` has been written."""
    try:
        return bool(json.loads((run_dir / "summary.json").read_text())["steps"] == step)
    except (OSError, ValueError, KeyError):
        return False


def _peak_memory_bytes() -> int | None:
    stats = jax.local_devices()[0].memory_stats()  # None on the CPU
    return stats.get("peak_bytes_in_use") if stats else None
