"""Several processes as one job: start them together, agree on stopping, and end together.

A Python exception in one process does not end the others by itself: they wait in a collective until
JAX aborts them with 134, which schedulers take for a machine fault. So a failing process leaves its
exit code in the coordinator's key-value store, where a thread of every other process finds it. A
process that is killed leaves nothing: it is lost when it does not answer, or when JAX's heartbeats
say so.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..errors import Exit
from ..run_config import job_variables
from .private import job, tpu_hosts

POLL_S = 0.5
BARRIER_MS = 24 * 3600 * 1000  # one process may prepare data for hours while the others wait
ANSWER_S = 10.0  # a process that lives answers within
REPEAT_S = 2.0  # a launcher such as `uv run` forwards the signal that the terminal sends us too
_last_words: list[Callable[[int], object]] = []
_numbers = itertools.count()  # of unique names; all processes reach them in the same order


def start_processes() -> None:
    """Join the job that the environment describes; without one, stay a single process.

    JAX does not read the process count from its own variables, so they are read here; Kubeflow
    Trainer sets them too. JAX itself detects Slurm and TPU slices.
    """
    options: dict[str, Any] = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 60}
    if (given := job_variables()) is not None:
        if given[1] > 1:
            _join(*given, **options)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or tpu_hosts() > 1:
        _join(**options)


def _join(*place: Any, **options: Any) -> None:
    # Before the job is joined, since its coordinator may be killed meanwhile.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    jax.distributed.initialize(*place, **options)
    stop = threading.Event()
    thread = threading.Thread(target=_follow_peers, args=(stop,), name="peers", daemon=True)
    thread.start()

    @atexit.register  # after JAX's own, hence called before it leaves the job
    def end() -> None:
        stop.set()
        thread.join()


def on_end(call: Callable[[int], object]) -> None:
    """Call it with the exit code before this process ends, whichever thread ends it; one alone."""
    _last_words[:] = [call]


def _say_last_words(code: int) -> None:
    """In a thread that may be left behind: what hangs may be the disk that they go to."""

    def say() -> None:
        for call in _last_words:
            with contextlib.suppress(Exception):  # the code is what counts
                call(code)

    saying = threading.Thread(target=say, daemon=True)
    saying.start()
    saying.join(4 * POLL_S)


def end_together(code: int, reason: str) -> None:
    """End with `code`; the other processes end with it too where there is a reason to tell them."""
    sys.stdout.flush()
    own = job()
    if own.client is None:
        _say_last_words(code)
        if not reason:
            sys.exit(code)
        sys.stderr.flush()
        os._exit(code)  # a normal exit would wait for threads, and one that makes a batch may hang
    if not reason:
        # JAX would do so in an exit hook, which comes after Python has waited for all threads,
        # among them those of saves that were given up; leaving the job is what ends these.
        jax.distributed.shutdown()
        _say_last_words(code)
        sys.exit(code)
    try:
        _follow_failure()  # a collective that broke shows that another process ended first
        # A lost peer shows as a broken collective, or as one that never ends.
        if code in (Exit.BUG, Exit.HUNG) and (lost := _silent_peers()):
            code, reason = Exit.PEER_LOST, f"process {min(lost)} is gone"
            print(f"\n{reason}: run the same command again", file=sys.stderr)
        own.client.key_value_set(
            f"peers/failed/{own.process_id}", f"{code} {reason}", allow_overwrite=True
        )
    except jax.errors.JaxRuntimeError:  # the coordinator is gone, with the store
        code = Exit.PEER_LOST
    _leave(code)


def _follow_peers(stop: threading.Event) -> None:
    """End this process when another one fails, and answer those that ask whether it lives."""
    own = job()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # JAX aborts, or has left the job
        while not stop.wait(POLL_S):
            if any("/asks/" in key for key in _follow_failure()):
                own.client.key_value_set(f"peers/lives/{own.process_id}", "", allow_overwrite=True)


def _follow_failure() -> list[str]:
    """End with the exit code of another process, if one has failed; else the keys that are set."""
    own = job()
    found = own.client.key_value_dir_get("peers/") if own.client else []
    for key, value in found:
        _, kind, index = key.split("/")
        if kind == "failed" and index != str(own.process_id):
            code, reason = value.split(" ", 1)
            print(f"\nended because process {index} did: {reason}", file=sys.stderr)
            _leave(int(code))
    return [key for key, _ in found]


def _silent_peers() -> set[int]:
    """The processes that do not answer in time; those that failed by themselves end this one."""
    own = job()
    own.client.key_value_set(f"peers/asks/{own.process_id}", "", allow_overwrite=True)
    end_s = time.monotonic() + ANSWER_S
    while True:
        lives = {int(key.split("/")[-1]) for key in _follow_failure() if "/lives/" in key}
        silent = set(range(own.num_processes)) - lives - {own.process_id}
        if not silent or time.monotonic() > end_s:
            return silent
        time.sleep(POLL_S)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    """End with PEER_LOST where JAX aborts because the coordinator or another process is gone.

    Python's own handlers run too late for an abort. JAX aborts while it holds the client's lock, so
    the client is asked in a thread that may be left behind. A client that answers shows that the
    abort has another cause: it goes on, and ends with 134.
    """
    answers: list[object] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            answers.append(job().client.key_value_dir_get("peers/"))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(4 * POLL_S)
    if not answers:
        _say_last_words(Exit.PEER_LOST)
        os.write(2, b"\nanother process of the job is gone: run the same command again\n")
        os._exit(Exit.PEER_LOST)


def _leave(code: int) -> None:
    _say_last_words(code)
    sys.stderr.flush()
    if job().process_id == 0:  # it holds the store, and losing that aborts the others with 134
        time.sleep(4 * POLL_S)
    # A normal exit would wait in JAX's shutdown barrier for processes that have ended.
    os._exit(code)


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
                reason = f"nothing got done for {silent_s:.0f} s"
                print(f"\n{reason}; the stacks follow", file=sys.stderr)
                faulthandler.dump_traceback(sys.stderr)
                if job().client is not None:
                    end_together(Exit.HUNG, reason)
                _say_last_words(Exit.HUNG)
                os._exit(Exit.HUNG)  # a thread's sys.exit would end the thread alone


class StopRequest:
    """SIGTERM or Ctrl-C as one decision that all processes take at the same step."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._signal_s = 0.0  # of the last one that was no repeat
        self._insisted = False

    def decide(self, step: int) -> Exit | None:
        """The exit code to stop with, or None. Call after each step, in every process."""
        if jax.process_count() > 1:
            # JAX's own notifier listens to SIGTERM; a Python handler would silently replace it.
            stop = multihost_utils.reached_preemption_sync_point(step)
        else:
            stop = self._signal is not None
        if not stop:
            return None
        return Exit.INTERRUPTED if self._signal == signal.SIGINT else Exit.PREEMPTED

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle the signals; a second Ctrl-C after REPEAT_S raises KeyboardInterrupt, a
        third one ends the process at once."""
        numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
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


def all_agree(ok: bool) -> bool:
    """Whether `ok` holds in every process; call it in every process."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.asarray(ok)).all())


def barrier(name: str) -> None:
    """Wait for all processes, up to a day; a collective would time out."""
    if jax.process_count() > 1:
        job().client.wait_at_barrier(unique(name), BARRIER_MS)


def unique(name: str) -> str:
    """A name that is used once in a job; call it in all processes in the same order."""
    return f"{name} {next(_numbers)}"
