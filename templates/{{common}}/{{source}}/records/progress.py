"""What a terminal shows of a run: figures in words, and a live line while it goes on.

The recorder gives the bar to process 0 alone, which keeps the others quiet.
"""

import re
import sys
import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .telemetry import Record

UNITS = re.compile(r"_(per_s|ms|s|bytes|fraction)$")


class ProgressBar:
    """A listener: live bar on a terminal, a plain line per record where stdout is a file (CI)."""

    def __init__(self, total_steps: int, console: Console | None = None) -> None:
        self._total = total_steps
        self._console = console or Console(force_terminal=sys.stdout.isatty())
        self._origin: tuple[int, float] | None = None  # step and time of the first record
        self._shown: dict[str, str] = {}
        columns = "{task.completed}/{task.total}", BarColumn(None), TextColumn("{task.description}")
        # Two redraws a second: the bar shares the cores that train.
        self._live = Progress(*columns, console=self._console, refresh_per_second=2, expand=True)
        self._task = self._live.add_task("compiling", total=total_steps)
        if self._console.is_interactive:
            self._live.start()

    def __call__(self, record: Record) -> None:
        step, now, words = record["step"], time.monotonic(), _words(record)
        first_step, first_s = self._origin = self._origin or (step, now)
        if step > first_step:
            left_s = (now - first_s) / (step - first_step) * (self._total - step)
            words["eta"] = f"ETA {timedelta(seconds=max(0, round(left_s)))}"
        if self._console.is_interactive:
            self._shown |= words  # the last held-out figure stays in sight
            self._live.update(
                self._task, completed=step, description="  ".join(self._shown.values())
            )
        else:
            line = "  ".join((f"step {step}/{self._total}", *words.values()))
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        if self._console.is_interactive:
            self._live.stop()


def label(name: str) -> str:
    """A metric's name in words, without its unit: "heldout_loss" -> "held-out loss"."""
    words = UNITS.sub("", name).replace("_", " ").replace(".", ": ")
    return re.sub(r"^heldout\b", "held-out", words)


def show(name: str, value: Any) -> str:
    """A value with the unit that its name carries: ("step_ms", 12.34) -> "12.3 ms"."""
    if value is None or value != value:  # NaN
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    unit = UNITS.search(name)
    match unit[1] if unit else name:
        case "per_s":
            return f"{_short(value)} {label(name)}/s"
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


def _words(record: Record) -> dict[str, str]:
    rate = next((k for k in record if k.endswith("_per_s")), None)
    heldout = next((k for k in record if k.startswith("heldout_")), None)
    plain = (k for k in record if not k.startswith(("step", "heldout_")) and not UNITS.search(k))
    main = "loss" if "loss" in record else next(plain, None)
    words = {k: f"{label(k)} {show(k, record[k])}" for k in (main, heldout) if k}
    return words | ({rate: show(rate, record[rate])} if rate else {})


def _short(value: float, gap: str = "") -> str:
    scales = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
    scale, letter = next((s for s in scales if abs(value) >= s[0]), scales[-1])
    return f"{value / scale:.3g}{gap}{letter}"
