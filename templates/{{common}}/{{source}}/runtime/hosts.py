"""What each process of a job is doing, told through its key-value store. Ends and decides nothing.

Every process tells it at intervals; any may ask, and process 0 keeps the table in DIR/hosts.json.
A process alone tells nothing.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from ..records import store
from .private import job

TELL_S = 5.0
FILE = "hosts.json"
BEGAN_S = time.monotonic()

type Row = dict[str, Any]
"""process; host; step; doing: a part of telemetry.Clock, or "at" and the name of a barrier; the
seconds since it began that; told: when it said so, in seconds of the epoch."""


@dataclass
class _Own:
    """Of this process: what tells its step, its part and the seconds in it; where it waits."""

    doing: Callable[[], tuple[int, str, float]] = lambda: (0, "startup", time.monotonic() - BEGAN_S)
    barriers: dict[str, float] = field(default_factory=dict)
    folder: Path | None = None


_own = _Own()


def follow(doing: Callable[[], tuple[int, str, float]], run_dir: Path) -> None:
    """From now on this process tells what `doing` returns; process 0 writes below `run_dir`."""
    _own.doing, _own.folder = doing, run_dir


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """This process waits at a barrier of that name."""
    _own.barriers[name] = time.monotonic()
    try:
        yield
    finally:
        del _own.barriers[name]


def keep_telling(stop: threading.Event) -> None:
    """Tell it until `stop`; runs in a thread of its own, since the disk of hosts.json may hang."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the job is gone
        while not stop.wait(TELL_S) and job().client is not None:
            tell()
            if job().process_id == 0 and _own.folder is not None:
                with contextlib.suppress(OSError):  # who needs the disk reports it
                    store.write_json(_own.folder / FILE, table(), sync=False)


def tell() -> None:
    """Tell what this process is doing."""
    own = job()
    step, doing, seconds = _own.doing()
    waits = list(_own.barriers.items())
    if waits:
        doing, seconds = f"at {waits[0][0]}", time.monotonic() - waits[0][1]
    row = {"process": own.process_id, "host": socket.gethostname(), "step": step, "doing": doing}
    row |= {
        "seconds": round(seconds, 1),
        "told": round(time.time(), 1),
        "at": [n for n, _ in waits],
    }
    own.client.key_value_set(f"hosts/{own.process_id}", json.dumps(row), allow_overwrite=True)


def table() -> list[Row]:
    """The newest row of each process that has told one."""
    found = job().client.key_value_dir_get("hosts/")
    return sorted((json.loads(text) for _, text in found), key=lambda row: int(row["process"]))


def missing(name: str) -> str:
    """The processes that have not said that they are at a barrier, in words."""
    rows = {row["process"]: row for row in table()}
    late = [i for i in range(job().num_processes) if name not in rows.get(i, {"at": []})["at"]]
    words = [
        _words(rows[i]) if i in rows else f"process {i}, of which nothing is known" for i in late
    ]
    return listed(words)


def listed(words: list[str]) -> str:
    """The first of what may be thousands, and how many more there are."""
    return "; ".join(words[:8]) + (f"; and {len(words) - 8} more" if len(words) > 8 else "")


def furthest_behind() -> str:
    """The process that the others wait for, in words.

    It is at the lowest step; of those at it, the one that does something by itself: the others are
    in a step, which takes all of them.
    """
    rows = table()
    if not rows:
        return "no process has said what it does"
    behind = min(rows, key=lambda row: (row["step"], row["doing"] == "step", -row["seconds"]))
    others = {f"step {r['step']}, {r['doing']}" for r in rows if r is not behind}
    return f"furthest behind: {_words(behind)} (others: {'; '.join(sorted(others)[:3])})"


def _words(row: Row) -> str:
    silent_s = time.time() - row["told"] - TELL_S
    words = f"process {row['process']} on {row['host']}: step {row['step']}, {row['doing']} "
    words += f"for {row['seconds']:.0f} s"
    return words + (f", silent for {silent_s:.0f} s" if silent_s > TELL_S else "")
