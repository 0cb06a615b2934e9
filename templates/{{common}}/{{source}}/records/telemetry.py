"""`metrics.jsonl`, one record for each logged step, and `attempts.jsonl`, the wall time.

Progress bar and trackers get each record as it is written; plots and report read the files. A
metric may have any name that ends with its unit (`step_ms`, `images_per_s`). The recorder decides
when to write; only process 0 does.
"""

import contextlib
import json
import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from . import store

log = logging.getLogger(__name__)

type Record = dict[str, Any]
"""One line of metrics.jsonl: `step` first, then numbers; None where one was not finite."""
type Listener = Callable[[Record], None]
"""Takes each record as it is written. It may also have `artifact(name, path, step)`, which takes
each file of DIR/artifacts, and `close(code)`, called at the end with the run's exit code."""


class MetricsLog:
    """Appends records to a file of JSON lines and hands each to the listeners."""

    def __init__(self, path: Path, listeners: Iterable[Listener] = ()) -> None:
        self._path, self._lock = path, threading.Lock()
        self._unwritten: deque[str] = deque()  # what the disk has refused, in order
        self._listeners = list(listeners)
        # A separate list: a tracker that fails on a file still gets the metrics.
        self._takes_artifacts = [each for each in self._listeners if hasattr(each, "artifact")]

    def add(self, record: Record) -> None:
        """Append and hand on; neither a full disk nor a broken listener stops the run."""
        clean = {"step": plain(record["step"])} | {k: plain(v) for k, v in record.items()}
        has_failed = bool(self._unwritten)
        self._unwritten.append(json.dumps(clean, allow_nan=False))
        try:
            self.durable()
        except OSError as error:
            if not has_failed:
                log.warning("%s: %s; its records are kept and tried again", self._path, error)
        _call_each(self._listeners, "metrics", "__call__", clean)

    def durable(self) -> None:
        """Write what the disk has refused so far; OSError where it does again. In any thread."""
        with self._lock:
            while self._unwritten:
                store.append(self._path, self._unwritten[0])
                self._unwritten.popleft()

    def add_artifact(self, name: str, path: Path, step: int) -> None:
        """Hand on a file of DIR/artifacts."""
        _call_each(self._takes_artifacts, "artifacts", "artifact", name, path, step)

    def close(self, code: int) -> None:
        """Let every listener finish: stop the bar, flush the trackers."""
        try:
            self.durable()
        except OSError as error:
            log.warning("%s: records are lost: %s", self._path, error)
        closing = [each for each in self._listeners if hasattr(each, "close")]
        _call_each(closing, "metrics", "close", code)


def cut_records(path: Path, step: int) -> None:
    """On resume: drop the records beyond `step`, which will be written again. Atomic."""
    if store.exists(path):
        kept = [
            r for r in store.read_lines(path) if isinstance(at := r.get("step"), int) and at <= step
        ]
        store.write_lines(path, kept)


def record_warnings(run_dir: Path) -> None:
    """From now on this package's log warnings also go to DIR/warnings.log, for the report."""
    handler = _WarningsFile(run_dir / "warnings.log")
    # A logger with a handler no longer uses Python's lastResort handler, which writes to stderr.
    logging.getLogger(str(__package__).partition(".")[0]).handlers[:] = filter(
        None, (handler, logging.lastResort)
    )


class _WarningsFile(logging.Handler):
    """Appends each warning to a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a full disk: stderr shows the warning anyway
            store.append(self._path, self.format(record))


class Clock:
    """Assigns each second since its creation to one part, so that the parts add up to wall time.

    Parts: startup, restore, compile, data_wait, step, evaluate, artifacts, checkpoint (blocking).
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._mark, self._part = now, now(), "startup"
        self._parts_s: defaultdict[str, float] = defaultdict(float)
        self._first_step: int | None = None
        self._earlier: str | None = None  # the lines of earlier attempts
        self.about: Record = {}  # what else the line of this attempt says

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Time inside belongs to `part`; an inner `measure` takes its own share out."""
        outer = self.enter(part)
        try:
            yield
        finally:
            self.enter(outer)

    def enter(self, part: str) -> str:
        """From now on time belongs to `part`; returns the part left."""
        now, left = self._now(), self._part
        self._parts_s[left] += now - self._mark
        self._mark, self._part = now, part
        return left

    def parts_s(self) -> dict[str, float]:
        """Seconds in each part so far."""
        self.enter(self._part)
        return dict(self._parts_s)

    def save(self, path: Path, step: int) -> None:
        """Rewrite this attempt's line of attempts.jsonl; call first right after the restore."""
        if self._first_step is None:
            self._first_step = step
        row = {"first_step": self._first_step, "step": step, "parts_s": self.parts_s()}
        row |= self.about
        # A full disk has been reported by the write to metrics.jsonl.
        with contextlib.suppress(OSError):
            if self._earlier is None:
                self._earlier = store.as_lines(store.read_lines(path))
            # At every record: a wait for the disk each time would slow the steps down.
            store.write(path, self._earlier + store.as_lines([row]), sync=False)


def goodput(attempts: list[Record]) -> Record:
    """Lines of attempts.jsonl -> `goodput` (step time / wall time), `wall_s`, `attempts`, `spent`.

    `spent` has the seconds of each part over all attempts. Steps that a kill lost and a later
    attempt did again count as `redone_s`, not as `step_s`.
    """
    spent: defaultdict[str, float] = defaultdict(float)
    resumed_at = math.inf  # the earliest step that a later attempt began from
    for row in reversed(attempts):
        for part, seconds in row["parts_s"].items():
            spent[f"{part}_s"] += seconds
        done = row["step"] - row["first_step"]
        if done and resumed_at < row["step"]:
            redone_s = row["parts_s"].get("step", 0.0) * min(1.0, (row["step"] - resumed_at) / done)
            spent["step_s"] -= redone_s
            spent["redone_s"] += redone_s
        resumed_at = min(resumed_at, row["first_step"])
    wall_s = sum(spent.values())
    share = spent["step_s"] / wall_s if wall_s else 0.0
    return {"goodput": share, "wall_s": wall_s, "attempts": len(attempts), "spent": dict(spent)}


def plain(value: Any) -> Any:
    """A number of NumPy or JAX as JSON knows it; None where it is not finite."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _call_each(listeners: list[Any], subject: str, method: str, *args: object) -> None:
    """Call a method of each listener; one that raises is removed, with a warning."""
    for listener in tuple(listeners):
        try:
            getattr(listener, method)(*args)
        except Exception as error:  # trackers raise errors of any type
            name = getattr(listener, "__name__", type(listener).__name__)
            log.warning("%s gets no more %s: %s: %s", name, subject, type(error).__name__, error)
            listeners.remove(listener)
