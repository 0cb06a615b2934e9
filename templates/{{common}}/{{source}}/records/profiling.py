"""Profiler traces of some steps: by a setting, or while a run goes on by a file or a signal.

Each process decides for itself, since a trace is its own: nothing waits for another host, and what
goes wrong with a trace is a warning.
"""

import contextlib
import json
import logging
import signal
import time
from pathlib import Path

import jax

from ..run_config import RunConfig
from . import store

log = logging.getLogger(__name__)

REQUEST = "profile.request"
MOST_STEPS = 1000  # a trace takes megabytes a step
LONGEST_BYTES = 10_000
BUCKET_S = 60.0  # between two questions to an object store, by each host

type Request = tuple[bytes, int]
"""Its content, and when the file was written, ns: 0 in an object store."""


class Profiler:
    """The traces of one process: DIR/profile of the first, DIR/profile/host-N of the others."""

    def __init__(self, run_dir: Path, run: RunConfig, process: int) -> None:
        self._run, self._process = run, process
        self._folder = run_dir / "profile" / (f"host-{process}" if process else "")
        self._request = store.place(run.run_dir) / REQUEST
        self._seen: Request | None = None
        self._look_s = 0.0  # not before that time
        self._steps = 0  # asked for, and not begun
        self._last: int | None = None  # step of the trace that goes on

    def listen(self) -> None:
        """From now on SIGUSR1 asks for a trace; of a request that is there already, take note."""
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGUSR1, lambda *_: self._ask(self._run.profile_steps))
        self._seen = self._read()

    def look(self) -> None:
        """Read DIR/profile.request, where it is new; in any thread.

        {"hosts": [0, 3], "steps": 5}: without `hosts` the first one, without `steps` as many as
        `--profile-steps` says. Each is taken once.
        """
        if time.monotonic() < self._look_s or (found := self._read()) in (None, self._seen):
            return
        self._seen = found
        try:
            hosts, steps = _parse(found[0], self._run.profile_steps)
        except ValueError as error:
            log.warning(
                '%s is left aside: %s; expected as {"hosts": [0], "steps": 3}', self._request, error
            )
            return
        if self._process in hosts:
            self._ask(steps)

    def step(self, step: int) -> None:
        """Begin or end a trace; call before each step."""
        if self._last is not None and step > self._last:
            self.close()
        is_set = 0 < self._run.profile_at_step == step
        asked = self._steps or (self._run.profile_steps if is_set else 0)
        if self._last is None and asked:
            self._steps = 0
            try:
                jax.profiler.start_trace(str(self._folder))
                self._last = step + asked - 1
            except Exception as error:  # another one goes on, or the disk is full
                log.warning("no profiler trace: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """End the trace that goes on, if any."""
        if self._last is None:
            return
        self._last = None
        try:
            jax.profiler.stop_trace()
        except Exception as error:
            log.warning("the profiler trace is lost: %s: %s", type(error).__name__, error)
            return
        log.info(
            "profiler trace in %s: `uvx xprof --logdir %s` shows it", self._folder, self._folder
        )

    def _ask(self, steps: int) -> None:
        self._steps = steps

    def _read(self) -> Request | None:
        """The request; None where there is none."""
        with contextlib.suppress(OSError):
            if not isinstance(self._request, Path):
                self._look_s = time.monotonic() + BUCKET_S
                return (store.read(self._request), 0) if store.exists(self._request) else None
            size, time_ns = store.size_and_time(self._request)
            if time_ns:
                content = store.read(self._request) if size <= LONGEST_BYTES else b"too long"
                return content, time_ns
        return None


def _parse(content: bytes, steps: int) -> tuple[list[int], int]:
    """Hosts and steps of a request; ValueError with what is wrong."""
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(asked, dict) or asked.keys() - {"hosts", "steps"}:
        raise ValueError(f"it says {str(asked)[:80]}")
    hosts, steps = asked.get("hosts", [0]), asked.get("steps", steps)
    if not isinstance(hosts, list) or any(type(host) is not int for host in hosts):
        raise ValueError(f"hosts is {str(hosts)[:80]}")
    if type(steps) is not int or not 0 < steps <= MOST_STEPS:
        raise ValueError(f"steps is {str(steps)[:80]}, not from 1 to {MOST_STEPS}")
    return hosts, steps
