"""Turns what the loop measures into records, a summary, plots and the report. Steers nothing.

Only process 0 writes; the others sum the same metrics, which every checkpoint holds.
"""

import logging
import math
import statistics
import threading
from pathlib import Path
from typing import Any

import jax

from ..contract import Artifact, Section, Workload
from ..errors import Exit, UserError
from ..run_config import RunConfig, flatten, to_dict
from . import artifacts, hardware, progress, store, telemetry
from .profiling import Profiler
from .summary import facts, ranked, size
from .trackers import make_trackers

log = logging.getLogger(__name__)
DRAWING_S = 10.0  # the longest wait for the plots of a run that was stopped
LEDGER_S = 5.0  # what a kill hides of an attempt's time, at most


class Recorder:
    """One attempt at a run, from its first step to its summary."""

    def __init__(
        self,
        workload: Workload,
        config: Any,
        run_dir: Path,
        first: int,
        clock: telemetry.Clock,
        kept: int | None = None,
    ) -> None:
        """`kept`: records up to this step stay; None = up to `first`."""
        self._workload, self._clock, self._dir, self._first = workload, clock, run_dir, first
        self._run: RunConfig = config.run
        # Metric of `workload.means` -> its sum and count since a record was due. Checkpoints hold
        # them and the loop sets them on resume, so that a resume changes no bit.
        self.sums: dict[str, tuple[float, int]] = {}
        self._primary = jax.process_index() == 0
        self._window = (first, self._busy_s())
        self._compile_s: float | None = None
        self._saves_s: list[float] = []
        self._at, self._closed = first, False
        self._stop = threading.Event()
        self._profiler = Profiler(run_dir, self._run, jax.process_index())
        if self._primary:
            store.make_folder(run_dir)
            telemetry.cut_records(run_dir / "metrics.jsonl", first if kept is None else kept)
            artifacts.cut(run_dir, first)
            telemetry.record_warnings(run_dir)
            clock.save(run_dir / "attempts.jsonl", first)
            trackers = make_trackers(self._run.trackers, run_dir, to_dict(config), first)
            bar = progress.ProgressBar(self._run.steps, named=workload.shown)
            self._log = telemetry.MetricsLog(run_dir / "metrics.jsonl", [bar, *trackers])

    def compiled(self, seconds: float) -> None:
        """The first step has finished: throughput is counted from here."""
        self._compile_s = seconds
        self._window = (self._window[0] + 1, self._busy_s())

    def step(self, step: int, values: dict[str, float], *, force: bool = False) -> None:
        """Write a record where one is due, or with `force`.

        The metrics of `workload.means` are averaged over all steps since a record was last due;
        values that are not finite do not count.
        """
        self._at = step
        due = step % self._run.log_every_steps == 0
        sums = {}
        for name in self._workload.means:
            total, count = self.sums.get(name, (0.0, 0))
            if math.isfinite(value := values.get(name, math.nan)):
                total, count = total + value, count + 1
            sums[name] = (total, count)
        self.sums = {} if due else sums
        if not (due or force):
            return
        since, busy_s = self._window
        now_s = self._busy_s()
        means = {name: total / count for name, (total, count) in sums.items() if count}
        record: dict[str, Any] = {"step": step} | means | values | means  # the means come first
        if step > since:
            step_s = (now_s - busy_s) / (step - since)
            name, units = self._workload.rate
            record |= {f"{name}_per_s": units / step_s, "step_ms": 1e3 * step_s}
            # What the live line is to show by the second, and the step gives by the unit.
            for shown in self._workload.shown:
                by_unit = shown.removesuffix("_per_s") + f"_per_{name.removesuffix('s')}"
                if by_unit in values:
                    record[shown] = values[by_unit] * units / step_s
            if (share := self._mfu(step_s)[0]) is not None:
                record["mfu"] = share
        self._window = (step, now_s)
        if self._primary:
            self._log.add(record)
            self._clock.save(self._dir / "attempts.jsonl", step)

    def artifacts(self, step: int, made: dict[str, Artifact]) -> None:
        """Write images and texts to DIR/artifacts and hand them to the trackers.

        Call it after `step` for the same step: W&B takes nothing for a step before its newest.
        """
        if not self._primary:
            return
        try:
            for name, artifact in made.items():
                self._log.add_artifact(name, artifacts.write(self._dir, step, name, artifact), step)
        except OSError as error:
            log.warning("artifacts of step %d are lost (%s); the run goes on", step, error)

    def durable(self) -> None:
        """All records so far are in metrics.jsonl; OSError where they are not. In any thread."""
        if self._primary:
            self._log.durable()

    def saved(self, blocking_s: float) -> None:
        """Note how long a save blocked the loop."""
        self._saves_s.append(blocking_s)

    def profile(self, step: int) -> None:
        """Start or stop the profiler trace around the steps that were asked for."""
        self._profiler.step(step)

    def close(self, code: Exit) -> None:
        """Let the bar and the trackers finish, with the run's exit code; may be called twice."""
        self._stop.set()
        self._profiler.close()
        if self._primary and not self._closed:
            self._log.close(code)
        self._closed = True

    def ended(self, code: int) -> None:
        """Note in attempts.jsonl how and when the process ends; in any thread, perhaps again."""
        if self._primary:
            self._clock.end(code)
            self._clock.save(self._dir / "attempts.jsonl", self._at)

    def __enter__(self) -> "Recorder":
        """Keep attempts.jsonl current, so that a kill hides little, and listen to profile requests.

        A `with` calls `leave` at its end.
        """
        self._profiler.listen()
        threading.Thread(target=self._keep, name="recorder", daemon=True).start()
        return self

    def _keep(self) -> None:
        while not self._stop.wait(LEDGER_S):
            if self._primary:
                self._clock.save(self._dir / "attempts.jsonl", self._at)
            self._profiler.look()

    def leave(self, _: object, error: BaseException | None, __: object) -> None:
        """`close` as the end of a `with`, for what no `finish` and no `stopped` has ended."""
        kinds = {KeyboardInterrupt: Exit.INTERRUPTED, UserError: Exit.USER, OSError: Exit.USER}
        code = next((code for of, code in kinds.items() if isinstance(error, of)), Exit.BUG)
        if isinstance(error, SystemExit) and error.code == Exit.PREEMPTED:  # SIGTERM
            code = Exit.PREEMPTED
        if not self._closed:
            self.ended(code)
        self.close(code)

    __exit__ = leave

    def finish(
        self,
        steps: int,
        summary_extra: dict[str, Any],
        sections: dict[str, Section],
    ) -> None:
        """Write summary.json, sections.json, plots and report.html, and print the summary."""
        self.close(Exit.DONE)
        if not self._primary:
            return
        self.ended(Exit.DONE)
        name, units = self._workload.rate
        records = store.read_lines(self._dir / "metrics.jsonl")
        last = {k: v for record in records for k, v in record.items()}
        # Of this attempt, or of all where this one only writes the report of an earlier one.
        timed = [r for r in records if "step_ms" in r]
        timed = [r for r in timed if r["step"] > self._first] or timed
        step_s = statistics.median(r["step_ms"] for r in timed) / 1e3 if timed else math.nan
        share, formula = self._mfu(step_s)
        attempts = telemetry.goodput(store.read_lines(self._dir / "attempts.jsonl"))
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
        measured = {k: v for k, v in last.items() if k not in (*summary, "step")}
        # What the kind says comes first: its figures lead the held-out ones.
        whole = summary_extra | summary | measured | size(self._dir) | attempts | summary_extra
        summary = ranked(whole, self._workload.means)
        store.write_json(self._dir / "sections.json", _plain_sections(sections))
        store.remove(self._dir / "report.html")  # `reported` takes the new one for the end
        store.write_json(self._dir / "summary.json", summary)
        from .report import format_summary, write_report  # matplotlib takes a second to import

        shown = format_summary(summary)
        try:
            shown += f"\nreport: {write_report(self._dir)}"
        except OSError as error:
            log.warning("no plots or report: %s", error)
        print(shown)  # last: nobody may read it

    def stopped(self, step: int, code: Exit) -> None:
        """Draw plots and report of a run that was stopped and saved; a failure is a warning.

        It takes `DRAWING_S` at most, since a host that is reclaimed is killed half a minute after
        SIGTERM, and reads no profiler trace: `report` does.
        """
        self.ended(code)
        self.close(code)
        if not self._primary:
            return
        drawing = threading.Thread(target=self._draw_stopped, args=(step,), daemon=True)
        drawing.start()
        drawing.join(DRAWING_S)

    def _draw_stopped(self, step: int) -> None:
        try:
            if _is_summarised(self._dir, step):  # from before a step back: it would pass as the end
                store.remove(self._dir / "summary.json")
            from .report import write_report

            print(f"report: {write_report(self._dir, traces=False)}")
        except Exception as error:  # the save is what counts
            log.warning("no plots or report: %s: %s", type(error).__name__, error)

    def _busy_s(self) -> float:
        """Seconds that went into steps: not compiling, evaluating or saving."""
        parts = self._clock.parts_s()
        return sum(parts.get(part, 0.0) for part in ("step", "data_wait"))

    def _mfu(self, step_s: float) -> tuple[float | None, str]:
        if self._workload.flops_per_step is None:
            return None, "no MFU: this kind counts no model FLOPs"
        kind = jax.devices()[0].device_kind
        return hardware.mfu(self._workload.flops_per_step, step_s, jax.device_count(), kind)


def reported(run_dir: Path, step: int) -> bool:
    """Whether summary and report of a run that ended at `step` have been written."""
    return _is_summarised(run_dir, step) and store.exists(run_dir / "report.html")


def _is_summarised(run_dir: Path, step: int) -> bool:
    return bool(facts(run_dir / "summary.json").get("steps") == step)


def _plain_sections(sections: dict[str, Section]) -> dict[str, Section]:
    return {
        heading: section
        if isinstance(section, str)
        else {name: telemetry.plain(value) for name, value in flatten(section).items()}
        for heading, section in sections.items()
    }


def _peak_memory_bytes() -> int | None:
    stats = jax.local_devices()[0].memory_stats()  # None on the CPU
    return stats.get("peak_bytes_in_use") if stats else None
