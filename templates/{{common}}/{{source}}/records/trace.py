"""The operations that took the most time, read from the profiler trace that JAX wrote.

JAX writes `*.xplane.pb`, for its viewers, and `*.trace.json.gz`, Chrome's trace events, which this
module reads. Knows the run by its profile folder alone and draws nothing.
"""

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from . import store

# What another program's file or a truncated one raises.
UNREADABLE = (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zlib.error)


class Operation(NamedTuple):
    """An operation of a compiled program, summed over its calls and over the devices."""

    name: str
    calls: int
    time_ms: float
    fraction: float  # of the time of all operations


def top_operations(profile: Path, most: int = 10) -> list[Operation]:
    """Operations of the newest trace in a folder, the longest first; none if it cannot be read."""
    calls: defaultdict[str, int] = defaultdict(int)
    spent_us: defaultdict[str, float] = defaultdict(float)
    try:
        for path in _newest(profile):
            for name, time_us in _operations(json.loads(gzip.decompress(store.read(path)))):
                calls[name] += 1
                spent_us[name] += time_us
    except UNREADABLE:
        return []
    total_us = sum(spent_us.values()) or 1.0
    names = sorted(spent_us, key=lambda name: -spent_us[name])[:most]
    return [Operation(n, calls[n], spent_us[n] / 1e3, spent_us[n] / total_us) for n in names]


def _newest(profile: Path) -> list[Path]:
    """One file for each host. Folders are named after the time at which a trace began."""
    paths = [
        profile / path for path in store.files(profile) if path.name.endswith(".trace.json.gz")
    ]
    return [path for path in paths if path.parent == paths[-1].parent]


def _operations(trace: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and microseconds of each operation, without the operations inside it (of a loop)."""
    events = [event for event in trace["traceEvents"] if event]
    # An accelerator has rows of its own for them; on the CPU they stand among the host's events.
    rows = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"]["name"] == "XLA Ops"
    }

    def row(event: dict[str, Any]) -> tuple[int, int]:
        return event["pid"], event["tid"]

    operations = [
        event
        for event in events
        if event.get("ph") == "X"
        and (row(event) in rows if rows else "hlo_op" in event.get("args", {}))
    ]
    operations.sort(key=lambda event: (row(event), event["ts"], -event["dur"]))
    for _, of_row in groupby(operations, key=row):
        around: list[tuple[float, dict[str, Any]]] = []  # the end of an operation, and its event
        for event in of_row:
            event["own"] = event["dur"]
            while around and around[-1][0] <= event["ts"]:
                around.pop()
            if around:
                around[-1][1]["own"] -= event["dur"]
            around.append((event["ts"] + event["dur"], event))
    yield from ((event["name"], event["own"]) for event in operations)
