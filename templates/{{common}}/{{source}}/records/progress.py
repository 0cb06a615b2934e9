"""What a terminal shows of a run: values with their units, and a live line while it goes on.

The recorder makes a bar in process 0 alone.
"""

import math
import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from .telemetry import Record

UNITS = re.compile(r"_(per_s|ms|s|bytes|fraction)$")


class Terminal(Console):
    """A console that raises where Rich would end the process: when nobody reads its output."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("nobody reads standard output")


class ProgressBar:
    """A listener: live bar on a terminal, a plain line per record where stdout is a file (CI)."""

    def __init__(
        self, total_steps: int, console: Console | None = None, named: Sequence[str] = ()
    ) -> None:
        self._total, self._named = total_steps, named
        self._console = console or Terminal(force_terminal=sys.stdout.isatty())
        self._shown: dict[str, str] = {}
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(None),
            TextColumn("{task.description}", markup=False),
            TextColumn("ETA"),
            TimeRemainingColumn(),  # no time elapsed beside it: the line fits into 80 characters
            console=self._console,
            refresh_per_second=2,  # the bar shares the cores that train
            # Over the run (Rich keeps 1000 records), and without the compilation before the first.
            speed_estimate_period=math.inf,
            expand=True,
        )
        self._progress.add_task("compiling", total=total_steps)
        (self._task,) = self._progress.tasks
        if self._console.is_interactive:
            self._progress.start()

    def __call__(self, record: Record) -> None:
        words = _words(record, self._named)
        self._shown |= words  # the last held-out value stays visible
        shown = "  ".join(self._shown.values())
        self._progress.update(self._task.id, completed=record["step"], description=shown)
        if not self._console.is_interactive:
            line = [f"step {record['step']}/{self._total}", *words.values()]
            if (left_s := self._task.time_remaining) is not None:
                line.append(f"ETA {timedelta(seconds=left_s)}")
            self._console.print("  ".join(line), markup=False, highlight=False, soft_wrap=True)

    def close(self, _: int = 0) -> None:
        """Leave the last state of the bar on the screen."""
        if self._console.is_interactive:
            self._progress.stop()


def label(name: str) -> str:
    """A metric's name in words: "heldout_loss" -> "held-out loss", "tokens_per_s" -> "tokens per
    second", "step_ms" -> "step time"."""
    unit = UNITS.search(name)
    ending = {"per_s": " per second", "ms": " time", "s": " time"}.get(unit[1], "") if unit else ""
    words = UNITS.sub("", name).replace("_", " ").replace(".", ": ") + ending
    return re.sub(r"^heldout\b", "held-out", words)


def labelled(name: str, value: Any) -> tuple[str, str]:
    """Label and value for a table: ("tokens_per_s", 14_900) -> "tokens per second", "14.9k"."""
    words = show(name, value)
    return label(name), words.partition(" ")[0] if name.endswith("_per_s") else words


def show(name: str, value: Any) -> str:
    """A value with the unit that its name carries: ("step_ms", 12.34) -> "12.3 ms"."""
    if value is None or value != value:  # NaN
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        return str(value)
    unit = UNITS.search(name)
    match unit[1] if unit else name:
        case "per_s":
            return f"{_short(value)} {label(UNITS.sub('', name))}/s"
        case "ms":
            return f"{value:,.1f} ms"
        case "s":
            return str(timedelta(seconds=round(value))) if value >= 60 else f"{value:.2f} s"
        case "bytes":
            return _short(value, " ") + "B"
        case "fraction" | "goodput" | "mfu":
            return f"{value:.1%}"
    whole = isinstance(value, int) or 1e3 <= abs(value) < 1e15
    return f"{value:,.0f}" if whole else f"{value:.4g}"


def _words(record: Record, named: Sequence[str] = ()) -> dict[str, str]:
    plain = [k for k in record if not k.startswith(("step", "heldout_")) and not UNITS.search(k)]
    heldout = [k for k in record if k.startswith("heldout_")]
    rates = [k for k in record if k.endswith("_per_s")]
    said = [k for k in (*(named or plain[:1]), *heldout[:1], *rates[:1]) if k in record]
    # A rate has its name as its unit.
    return {
        k: show(k, record[k]) if k in rates else f"{label(k)} {show(k, record[k])}" for k in said
    }


def _short(value: float, gap: str = "") -> str:
    # Not matplotlib's EngFormatter: every training imports this, and that takes 0.6 s to import.
    value = float(f"{value:.3g}")  # first, so that 999.9 becomes 1k
    scale, letter = pick_unit_and_suffix(int(abs(value)), ["", "k", "M", "G", "T", "P"], 1000)
    return f"{value / scale:g}{gap}{letter}"
