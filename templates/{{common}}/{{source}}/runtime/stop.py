"""The wish to stop, by SIGTERM or Ctrl-C, as one decision that all processes take at one point.

Saves nothing: the loop does. Where nothing is left to save, `distributed` ends the process.
"""

import ctypes
import itertools
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

from ..contract import Beat
from ..errors import Exit

log = logging.getLogger(__name__)

REPEAT_S = 2.0  # a launcher such as `uv run` forwards the signal that the terminal sends us too
BEATS = 20_000  # of one call of work at which it may be stopped; the rest are polled in 0.03 s
to_save = threading.Event()
"""Set while there may be steps that no checkpoint holds."""
_polls = itertools.count(1)  # JAX decides for one of these numbers: no process may skip one
_libc = ctypes.CDLL(None)
_notifiers: list[bytes] = []  # what sigaction(2) tells of SIGTERM once JAX listens to it


class Stopped(BaseException):
    """Leaves work that the next start does again; no `except Exception` of it holds this up."""


class StopRequest:
    """SIGTERM or Ctrl-C as one decision that all processes take at the same step or beat."""

    def __init__(self) -> None:
        self.code: Exit | None = None
        """What the run is stopped with, once that is decided."""
        self._signal: int | None = None
        self._signal_s = 0.0  # of the last one that was no repeat
        self._insisted = False

    def decide(self, step: int) -> Exit | None:
        """The exit code to stop with after `step`, or None. Every process calls it as often."""
        if self.code is None and self._is_decided():
            by_user = self._signal == signal.SIGINT
            self.code = Exit.INTERRUPTED if by_user else Exit.PREEMPTED
            log.info("stopping: saving step %d", step)
        return self.code

    def _is_decided(self) -> bool:
        if jax.process_count() == 1:
            return self._signal is not None
        keep_notifier()
        # JAX's own notifier listens to SIGTERM; a Python handler would silently replace it.
        return bool(multihost_utils.reached_preemption_sync_point(next(_polls)))

    def unless_stopped[T](self, work: Callable[[Beat], T], step: int, beat: Beat) -> T | None:
        """What `work` after a step returns; None where a stop is decided meanwhile, in all.

        A stop leaves it at a beat. Where it has collectives, processes have to beat at the same
        points of it: one that left would be waited for. Where they do not, they agree after it.
        """
        several = jax.process_count() > 1
        left: float = BEATS if several else math.inf

        def beat_and_poll() -> None:
            nonlocal left
            beat()
            if left:
                left -= 1
                if self.decide(step) is not None:
                    raise Stopped

        try:
            made = work(beat_and_poll)
        except Stopped:
            return None
        while several and left and self.decide(step) is None:
            left -= 1
        return made if self.code is None else None

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle the signals; a second Ctrl-C after REPEAT_S raises KeyboardInterrupt, a
        third one ends the process at once."""
        numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        keep_notifier()
        to_save.set()
        try:
            yield self
        finally:
            # After a request to stop, repeats of the signal may come while the save is written.
            if self._signal is None:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._signal is None:
            self._signal, self._signal_s = number, now_s
            print("\nstopping after this step; saving first", file=sys.stderr, flush=True)
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # the notifier tells the other processes
        elif number == signal.SIGINT and now_s - self._signal_s > REPEAT_S:
            if self._insisted:  # what the second one ended does not end
                os._exit(Exit.INTERRUPTED)
            self._insisted, self._signal_s = True, now_s
            raise KeyboardInterrupt


def note_notifier() -> None:
    """Remember the handler of SIGTERM that JAX has just installed."""
    _notifiers[:] = [_action()]


def keep_notifier() -> None:
    """Put JAX's handler of SIGTERM back where a library has replaced it, and say so.

    Nothing else would tell: that library's handler runs, and no process ever stops.
    """
    if _notifiers and _action()[:8] != _notifiers[0][:8]:
        other = signal.getsignal(signal.SIGTERM)
        log.warning("SIGTERM went to %s, which would lose the save of a stop; put back", other)
        _libc.sigaction(signal.SIGTERM, _notifiers[0], None)


def _action() -> bytes:
    """`struct sigaction` of SIGTERM, which begins with the address of the handler."""
    found = ctypes.create_string_buffer(256)  # longer than it is on any system
    _libc.sigaction(signal.SIGTERM, None, found)
    return found.raw
