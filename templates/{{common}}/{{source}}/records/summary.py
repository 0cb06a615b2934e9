"""The figures of a run, in the order in which a person looks for them. Reads files of DIR only.

The recorder makes the summary at the end of a run; before that its newest records stand for it.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import store
from .telemetry import Record, goodput, plain


def ranked(figures: Record, means: Iterable[str]) -> Record:
    """Held-out metrics, the workload's means, the rate, size and time first; then as they came.

    What has no value is last.
    """
    means = tuple(means)
    known = ("parameters", "wall_s", "mfu", "goodput", "peak_memory_bytes", "step_ms")
    rank = {name: place for place, name in enumerate((*means, "_per_s", *known), start=1)}

    def place(name: str) -> int:
        if found[name] is None:
            return len(rank) + 2
        name = "_per_s" if name.endswith("_per_s") else name
        return 0 if name.startswith("heldout_") else rank.get(name, len(rank) + 1)

    # A record has `skipped` beside other figures of its step; here its unit is missing.
    found = {"skipped_steps" if n == "skipped" else n: plain(v) for n, v in figures.items()}
    return {name: found[name] for name in sorted(found, key=place)}


def figures(run_dir: Path) -> tuple[Record, bool]:
    """The figures of a run, and whether they are those of its end: of one that was stopped or goes
    on, the newest value of each metric."""
    summary, records = facts(run_dir / "summary.json"), store.read_lines(run_dir / "metrics.jsonl")
    means = facts(run_dir / "config.json").get("means", ["loss"])  # as in release 0.2.0
    if not records or summary.get("steps") == records[-1]["step"]:
        return ranked(summary, means), True
    newest = {name: value for record in records for name, value in record.items()}
    newest = {"steps": newest.pop("step")} | newest | size(run_dir)
    newest |= goodput(store.read_lines(run_dir / "attempts.jsonl"))
    return ranked(newest, means), False


def size(run_dir: Path) -> Record:
    """The number of parameters, where the kind has any."""
    found = facts(run_dir / "config.json").get("parameters")
    return {} if found is None else {"parameters": found}


def facts(path: Path) -> dict[str, Any]:
    """One JSON object of a run; empty where there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return dict(store.read_json(path))
    return {}
