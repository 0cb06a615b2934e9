"""`metrics.jsonl`, one record for each logged step, and `attempts.jsonl`, the wall time.

Progress bar and trackers get each record as it is written; plots and report read the files. A
metric may have any name that ends with its unit (`step_ms`, `images_per_s`). The recorder decides
when to write; only process 0 does.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import Exit
from . import store

log = logging.getLogger(__name__)
_runs = itertools.count()  # of this process

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
    """Assigns each second since the process began to one part: the parts add up to wall time.

    Parts: startup (imports, joining the job), restore, compile, data_wait, step, evaluate,
    artifacts, checkpoint (blocking), preemption (the save of a stop) and hang. Threads may read it
    and save it, one enters parts.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, age_s: float = 0.0) -> None:
        """`age_s`: for how long the process has lived already."""
        self._now, self._mark, self._part = now, now(), "startup"
        self._parts_s = defaultdict(float, {"startup": age_s})
        self._entered = self._mark  # when work last went on to another part
        self._began = time.time() - age_s
        self._first_step: int | None = None
        self._earlier: str | None = None  # the lines of earlier attempts
        self._lock, self._writing = threading.RLock(), threading.Lock()
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
        with self._lock:
            left = self._count()
            self._part, self._entered = part, self._mark
        return left

    def doing(self) -> tuple[str, float]:
        """The part that work is in, and for how many seconds."""
        with self._lock:
            return self._part, self._now() - self._entered

    def parts_s(self) -> dict[str, float]:
        """Seconds in each part so far."""
        with self._lock:
            self._count()
            return dict(self._parts_s)

    def end(self, code: int) -> None:
        """Note the exit code; of a hang and of a lost peer, what was waited for in vain too."""
        with self._lock:
            left = self._count()
            if code in (Exit.HUNG, Exit.PEER_LOST):
                vain_s = self._mark - self._entered
                self._parts_s[left] -= vain_s
                self._parts_s["hang"] += vain_s
                self._entered = self._mark  # it may be called twice
            self.about["code"] = int(code)

    def save(self, path: Path, step: int) -> None:
        """Rewrite this attempt's line of attempts.jsonl; call first right after the restore."""
        # Two locks: whoever enters a part does not wait for a disk.
        with self._writing, contextlib.suppress(OSError):  # metrics.jsonl has told of a full disk
            with self._lock:
                if self._first_step is None:
                    self._first_step = step
                row: Record = {"first_step": self._first_step, "step": step, "began": self._began}
                row |= {"parts_s": self.parts_s()} | self.about
            if self._earlier is None:
                self._earlier = store.as_lines(store.read_lines(path))
            # At every record: a wait for the disk each time would slow the steps down.
            store.write(path, self._earlier + store.as_lines([row]), sync=False)

    def _count(self) -> str:
        """Give the time since the last call to the part that it was spent in, and name it."""
        now = self._now()
        self._parts_s[self._part] += now - self._mark
        self._mark = now
        return self._part


def age_s() -> float:
    """Seconds since this process began, by Linux; 0 where the system does not say, and for a
    second run in one process."""
    if next(_runs):
        return 0.0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # After the name, which may hold spaces: field 22 of proc(5), in ticks since the boot.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_s)
    return 0.0


def split(attempts: list[Record]) -> list[dict[str, float]]:
    """Lines of attempts.jsonl -> for each the seconds of its parts, and of what came of it.

    redone: of `step` and `data_wait`, those of the steps that a kill lost and a later attempt did
    again. restart: from its last line to the begin of the next. Lines of 0.5 tell no begin.
    """
    found: list[dict[str, float]] = []
    resumed_at = math.inf  # the earliest step that a later attempt began from
    next_began: float | None = None
    for row in reversed(attempts):
        parts = defaultdict(float, row["parts_s"])
        began = row.get("began")
        if began is not None and next_began is not None:
            # Below 0 where a clock was set back meanwhile.
            parts["restart"] = max(0.0, next_began - began - sum(row["parts_s"].values()))
        done = row["step"] - row["first_step"]
        if done and resumed_at < row["step"]:
            share = min(1.0, (row["step"] - resumed_at) / done)
            for part in ("step", "data_wait"):
                redone_s = share * row["parts_s"].get(part, 0.0)
                parts[part] -= redone_s
                parts["redone"] += redone_s
        resumed_at, next_began = min(resumed_at, row["first_step"]), began
        found.append({part: seconds for part, seconds in parts.items() if seconds})
    return found[::-1]


def goodput(attempts: list[Record]) -> Record:
    """Lines of attempts.jsonl -> `goodput` (step time / wall time), `wall_s`, `attempts`, `spent`.

    `spent` has the seconds of each part over all attempts, as `split` tells them.
    """
    spent: defaultdict[str, float] = defaultdict(float)
    for parts in split(attempts):
        for part, seconds in parts.items():
            spent[f"{part}_s"] += seconds
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
