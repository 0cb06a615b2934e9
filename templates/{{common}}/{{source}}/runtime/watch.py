"""Ends a process that gets nothing done. Knows neither steps nor saves."""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from ..errors import Exit
from . import hosts
from .distributed import POLL_S, end_together
from .private import job


class Watch:
    """A thread that ends this process when `beat` is not called within the timeout."""

    def __init__(self, hang_timeout_s: float) -> None:
        self._timeout_s, self._beat = hang_timeout_s, time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Restart the timeout; call when work has been done."""
        self._beat = time.monotonic()

    @contextmanager
    def waiting(self, limit_s: float) -> Iterator[None]:
        """Allow `limit_s` where that is longer, for a save, which may take longer than a step."""
        timeout_s = self._timeout_s
        self._timeout_s = max(timeout_s, limit_s) if timeout_s else 0.0
        self.beat()
        yield
        self.beat()
        self._timeout_s = timeout_s

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            silent_s = time.monotonic() - self._beat
            if 0 < self._timeout_s < silent_s:
                reason = f"nothing got done for {silent_s:.0f} s{_behind()}"
                print(f"\n{reason}; the stacks follow", file=sys.stderr)
                faulthandler.dump_traceback(sys.stderr)
                end_together(Exit.HUNG, reason)


def _behind() -> str:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return f"; {hosts.furthest_behind()}" if job().client is not None else ""
    return ""
