"""`metrics.jsonl`, the one truth about a run, and the ledger of where its wall time went.

Progress bar, trackers, plots and report only read these records. Metric names are open;
a name carries its unit (`step_ms`, `images_per_s`). Decides nothing: that only process 0 writes,
and when, is the loop's business.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

type Record = dict[str, Any]
"""One line of metrics.jsonl: `step` first, then numbers; None where one was not finite."""
type Listener = Callable[[Record], None]
"""Takes each record as it is written; its `close()`, if it has one, is called at the end."""


class MetricsLog:
    """Appends records to a file of JSON lines and hands each to the listeners."""

    def __init__(self, path: Path, listeners: Iterable[Listener] = ()) -> None:
        self._path, self._listeners, self._disk_failed = path, list(listeners), False

    def write(self, record: Record) -> None:
        """Append and hand on; neither a full disk nor a broken listener stops the run."""
        clean = {"step": plain(record["step"])} | {k: plain(v) for k, v in record.items()}
        try:
            _append(self._path, json.dumps(clean, allow_nan=False))
        except OSError as error:
            if not self._disk_failed:
                log.warning("%s: records are being lost (%s); the run goes on", self._path, error)
            self._disk_failed = True
        for listener in tuple(self._listeners):
            self._call(listener, listener, clean)

    def close(self) -> None:
        """Let every listener finish: stop the bar, flush the trackers."""
        for listener in tuple(self._listeners):
            self._call(listener, getattr(listener, "close", lambda: None))

    def _call(self, listener: Listener, act: Callable[..., None], *args: Record) -> None:
        try:
            act(*args)
        except Exception as error:  # a tracker may raise anything, and none is worth a run
            name = getattr(listener, "__name__", type(listener).__name__)
            log.warning("%s gets no more metrics: %s: %s", name, type(error).__name__, error)
            self._listeners.remove(listener)


def read(path: Path) -> list[Record]:
    """All whole records; a line torn by a kill or a full disk is passed over."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            if isinstance(record := json.loads(line), dict):
                records.append(record)
    return records


def cut(path: Path, step: float) -> None:
    """On resume: drop the records beyond `step`, which will be written again. Atomic."""
    if path.exists():
        kept = [record for record in read(path) if record.get("step", 0) <= step]
        part = path.with_name(path.name + ".part")
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def record_warnings(run_dir: Path) -> None:
    """From now on this package's log warnings also go to DIR/warnings.log, for the report."""
    file = logging.FileHandler(run_dir / "warnings.log", delay=True, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    file.setLevel(logging.WARNING)
    file.handleError = lambda record: None  # type: ignore[method-assign]  # full; stderr has it
    # With a handler of its own the package would no longer reach Python's last resort, stderr.
    logging.getLogger(str(__package__).partition(".")[0]).handlers[:] = filter(
        None, (file, logging.lastResort)
    )


class Clock:
    """Every second since it was made belongs to exactly one part: they add up to wall time.

    Parts: startup, restore, compile, data_wait, step, evaluate, checkpoint (what blocks).
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._mark, self._part = now, now(), "startup"
        self._spent_s: defaultdict[str, float] = defaultdict(float)
        self._offset: int | None = None  # of this attempt's line
        self._first_step = 0

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
        self._spent_s[left] += now - self._mark
        self._mark, self._part = now, part
        return left

    def parts_s(self) -> dict[str, float]:
        """Seconds in each part so far."""
        self.enter(self._part)
        return dict(self._spent_s)

    def save(self, path: Path, step: int) -> None:
        """Write this attempt's line of attempts.jsonl anew; call first right after the restore."""
        # The same disk holds metrics.jsonl: when it is full, the warning has been given there.
        with contextlib.suppress(OSError):
            if self._offset is None:
                cut(path, math.inf)
                path.touch()
                self._offset, self._first_step = path.stat().st_size, step
            row = {"first_step": self._first_step, "step": step, "parts_s": self.parts_s()}
            with path.open("r+b", buffering=0) as file:
                file.seek(self._offset)  # the lines of earlier attempts stay untouched
                file.write(json.dumps(row).encode() + b"\n")
                file.truncate()


def goodput(attempts: list[Record]) -> Record:
    """Attempts of one run -> `goodput` (step time / wall time), `wall_s`, `attempts`, `spent`.

    Steps that a kill lost and a later attempt did again count as `redone_s`, not as `step_s`.
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


def _append(path: Path, line: str) -> None:
    # Opened anew each time: no handle outlives a `cut`, and a disk that is freed is used again.
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + line.encode() + b"\n"
        if file.write(data) != len(data):
            raise OSError("only a part of the line was written")
