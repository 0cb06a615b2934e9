"""Figures of a run, drawn from metrics.jsonl: one a metric, held-out points on a line of their own.

Every numeric metric is drawn, whatever it measures; its name gives the words and the unit.
"""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from . import store
from .progress import UNITS, label, show
from .telemetry import Record

INK, TRAIN, HELDOUT = "#24292f", "#0072b2", "#d55e00"  # of Okabe and Ito, safe for colour blindness
MAX_POINTS = 2000  # of one line: more than a figure has pixels
DPI = 120  # 864 x 468 pixels, sharp on the half of a screen that the report gives a figure
IN_WORDS = {"ms": "milliseconds", "s": "seconds", "bytes": "bytes", "fraction": "fraction"}


def plot_all(run_dir: Path) -> list[Path]:
    """Write DIR/plots/METRIC.png for every metric; returns the files, metrics with held-out
    points first."""
    paths = []
    for name, figure in figures(store.read_lines(run_dir / "metrics.jsonl")).items():
        path = run_dir / "plots" / f"{store.plain_name(name)}.png"
        store.write(path, partial(figure.savefig, format="png", dpi=DPI), sync=False)
        paths.append(path)
    return paths


def figures(records: list[Record]) -> dict[str, Figure]:
    """Metric -> figure. `heldout_x` shares the figure of `x`."""
    names = {k.removeprefix("heldout_"): None for r in records for k in r if k != "step"}
    first = [name for name in names if any(f"heldout_{name}" in record for record in records)]
    drawn = {name: _draw(name, records) for name in dict.fromkeys([*first, *names])}
    return {name: figure for name, figure in drawn.items() if figure}


def series(records: list[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric; NaN where the run was not finite."""
    found = ((r["step"], r[name]) for r in records if name in r)
    rows = [(step, value) for step, value in found if not isinstance(value, (str, bool))]
    steps, values = np.array(rows, dtype=float).reshape(-1, 2).T
    return steps, values


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred, weighted running mean over a thirtieth of the run, of the finite values: no lag."""
    width = min(max(1, len(values) // 30) | 1, len(values))
    window, finite = np.bartlett(width + 2)[1:-1], np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window, "same")
    weight = np.convolve(finite.astype(float), window, "same")
    mean = np.full(len(values), np.nan)
    np.divide(total, weight, out=mean, where=weight > 0)
    return mean


def _draw(name: str, records: list[Record]) -> Figure | None:
    (steps, values), (held_steps, held) = series(records, name), series(records, f"heldout_{name}")
    nothing_skipped = name == "skipped" and not values.any()
    if nothing_skipped or not np.isfinite([*values, *held]).any():
        return None
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.subplots()
    if np.isfinite(values).any():
        trend, every = smooth(values), -(-len(values) // MAX_POINTS)
        noise = np.nanmedian(np.abs(values - trend)) / (np.nanmax(values) - np.nanmin(values) or 1)
        if noise < 0.002 or len(values) < 80:  # a schedule or a few points: not smoothed
            trend = values
        else:
            axes.plot(steps[::every], values[::every], color=TRAIN, alpha=0.28, linewidth=0.8)
        # As the terminal and the summary say it: the last record, not the trend.
        text = ("training " if len(held) else "last ") + show(name, float(values[-1]))
        form = "-" if len(values) > 2 else "o-"
        axes.plot(steps[::every], trend[::every], form, color=TRAIN, linewidth=1.7, label=text)
    if len(held):
        text = "held out " + show(name, float(held[-1]))
        axes.plot(held_steps, held, "o-", color=HELDOUT, linewidth=1.1, markersize=4, label=text)
    axes.set_xlim(0, 1.012 * max((1, *steps, *held_steps)))
    _dress(axes, name)
    return figure


def _dress(axes: Axes, name: str) -> None:
    unit, words = UNITS.search(name), label(name)
    y_words = IN_WORDS.get(unit[1], words) if unit else words
    texts = [axes.set_title(words[:1].upper() + words[1:], loc="left", fontsize=13)]
    texts += [axes.set_xlabel("step"), axes.set_ylabel(y_words)]
    legend = axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    for text in (*texts, *legend.get_texts()):
        text.set(color=INK, parse_math=False)  # a dollar sign in a name is no formula
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if name.endswith(("_per_s", "_bytes")):
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.7)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=INK, alpha=0.4)
