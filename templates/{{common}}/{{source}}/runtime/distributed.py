"""Several processes as one job: start them together, agree on stopping, and end together.

A Python exception in one process does not end the others by itself: they wait in a collective until
JAX aborts them with 134, which schedulers take for a machine fault. So a failing process leaves its
exit code in the coordinator's key-value store, where a thread of every other process finds it. A
process that is killed leaves nothing: it is lost when it does not answer, or when JAX's heartbeats
say so.
"""

import atexit
import concurrent.futures
import contextlib
import ctypes
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..errors import Exit
from . import hosts, rollcall
from .detect import Place
from .private import is_stop_asked, job
from .stop import note_notifier, to_save

log = logging.getLogger(__name__)

POLL_S = 0.5
BARRIER_MS = 24 * 3600 * 1000  # one process may prepare data for hours while the others wait
ANSWER_S = 10.0  # a process that lives answers within
START_S = 1800  # for all to come: the last host of a cold cluster comes minutes after the first
JOIN_S = 300  # for JAX to join those that have come
REPORT_S = 60.0  # between two lines about what is waited for
_last_words: list[Callable[[int], object]] = []
_lost: list[str] = []  # what an abort of JAX means at the moment
_numbers = itertools.count()  # of unique names; all processes reach them in the same order


def join(place: Place) -> None:
    """Join the other processes of a job; ends this one where they do not come."""
    # Before the job is joined, since its coordinator may be killed meanwhile.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    who = f"process {place.index} of {place.count}"
    log.info("%s, by %s", who, place.why)
    _lost.append(f"{who} lost another one while they joined")
    try:
        _wait_for_all_to_come(who, place)
        with telling(lambda: f"{who} waits for JAX to join all that have come"):
            _initialize(
                place.coordinator,
                place.count,
                place.index,
                # JAX would give a process under Slurm or Open MPI one GPU alone.
                place.local_devices,
                cluster_detection_method="deactivate",
                initialization_timeout=JOIN_S,
                heartbeat_timeout_seconds=30,
                shutdown_timeout_seconds=60,
            )
    except (SystemExit, KeyboardInterrupt) as stop:
        code = Exit.INTERRUPTED if isinstance(stop, KeyboardInterrupt) else stop.code
        print("\nstopped while the processes of the job were joining", file=sys.stderr, flush=True)
        os._exit(int(code or 0))  # the others have no way to hear of it, and wait for a new start
    _lost.pop()
    note_notifier()
    left = threading.Event()
    threads = [
        threading.Thread(target=follow, args=(left,), name=follow.__name__, daemon=True)
        for follow in (_follow_peers, hosts.keep_telling)
    ]
    for thread in threads:
        thread.start()

    @atexit.register  # after JAX's own, hence called before it leaves the job
    def end() -> None:
        left.set()
        threads[0].join()


def _wait_for_all_to_come(who: str, place: Place) -> None:
    """Say who is missing, at intervals; this process ends where they do not come in time."""
    end_s, words = time.monotonic() + START_S, "the others"
    with telling(lambda: f"{who} waits for {words}"):
        for words in rollcall.missing(place):
            if time.monotonic() > end_s:
                reason = f"{who} waited in vain for {words}"
                print(f"\n{reason}: run the same command again", file=sys.stderr)
                end_together(Exit.PEER_LOST, reason)


def _initialize(*known: Any, **options: Any) -> None:
    """Join in a thread: no signal is handled in the main one while it is in JAX's code."""
    done: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(jax.distributed.initialize(*known, **options))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="joining", daemon=True).start()
    while not concurrent.futures.wait([done], POLL_S).done:
        pass
    done.result()


def on_end(call: Callable[[int], object]) -> None:
    """Call it with the exit code before this process ends, whichever thread ends it; one alone."""
    _last_words[:] = [call]


def _say_last_words(code: int) -> None:
    """Once, in a thread that may be left behind: what hangs may be the disk that they go to."""
    calls = [_last_words.pop()] if _last_words else []  # of two threads, the first one ends it

    def say() -> None:
        for call in calls:
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
            if own.client is None:
                return
            if any("/asks/" in key for key in _follow_failure()):
                own.client.key_value_set(f"peers/lives/{own.process_id}", "", allow_overwrite=True)
            if not to_save.is_set() and is_stop_asked():
                end_together(Exit.PREEMPTED, "asked to stop, with nothing left to save")


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
        words = _lost[-1] if _lost else "another process of the job is gone"
        os.write(2, f"\n{words}: run the same command again\n".encode())
        os._exit(Exit.PEER_LOST)


def _leave(code: int) -> None:
    _say_last_words(code)
    sys.stderr.flush()
    if job().process_id == 0:  # it holds the store, and losing that aborts the others with 134
        time.sleep(4 * POLL_S)
    # A normal exit would wait in JAX's shutdown barrier for processes that have ended.
    os._exit(code)


def all_agree(ok: bool) -> bool:
    """Whether `ok` holds in every process; call it in every process."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.asarray(ok)).all())


def barrier(name: str) -> None:
    """Wait for all processes, up to a day; a collective would time out."""
    if jax.process_count() > 1:
        wait_for_all(unique(name))


def wait_for_all(name: str) -> None:
    """Wait at the barrier of a unique name; says who is missing, at intervals and at its end."""
    with hosts.waiting(name), telling(lambda: f"waiting at '{name}' for {hosts.missing(name)}"):
        try:
            job().client.wait_at_barrier(name, BARRIER_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            reason = f"waited in vain at '{name}' for {hosts.missing(name)}"
            print(f"\n{reason}", file=sys.stderr)
            end_together(Exit.HUNG, reason)


@contextmanager
def telling(words: Callable[[], str]) -> Iterator[None]:
    """Log `words` every REPORT_S while something is waited for inside."""
    done = threading.Event()

    def tell() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the job is gone
            while not done.wait(REPORT_S):
                log.info("%s", words())

    threading.Thread(target=tell, name="telling", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def unique(name: str) -> str:
    """A name that is used once in a job; call it in all processes in the same order.

    So the main thread calls it alone: other threads keep no order between processes.
    """
    assert threading.current_thread() is threading.main_thread(), name
    return f"{name} {next(_numbers)}"
