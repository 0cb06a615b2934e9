"""One process at a time drives a run folder; a killed one leaves nothing locked. No wall clock.

On one machine the kernel's lock of DIR/lock decides. Machines that share a folder may not share
locks, so the holder counts up in DIR/lock.json, and a newcomer on another machine watches that
number for a while of its own monotonic clock. Of two that begin at the same moment there, one ends
within seconds, when it finds the other's number. A holder that was cut off for that while finds out
before it commits anything: `confirm`.
"""

import contextlib
import itertools
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from ..errors import Exit, UserError
from ..records import store
from .distributed import end_together

log = logging.getLogger(__name__)
COUNT = "lock.json"
COUNT_S = 5.0  # between two numbers of the holder
WATCH_S = 4 * COUNT_S  # for which a newcomer on another machine watches them,
BUCKET_WATCH_S = 12 * COUNT_S  # longer where a write is tried again: objects.PATIENCE_S


@contextlib.contextmanager
def only_run_in(run_dir: Path, shared: PurePath | None = None) -> Iterator[Callable[[], None]]:
    """Hold the folder until the block ends; UserError where another process drives a run there.

    `shared`: the folder in a bucket that `run_dir` is the copy of. Gives `confirm`, as `held` does.
    """
    shared = shared or run_dir

    def refuse(holder: str) -> None:
        raise UserError(
            got=f"{shared}, where {holder} drives a run",
            expected="one run at a time in a folder",
            do="wait until it has ended, or take another --run-dir",
        )

    with store.locked(run_dir / "lock", refuse), held(run_dir, shared, refuse) as confirm:
        yield confirm


@contextlib.contextmanager
def held(
    local: Path, shared: PurePath, busy: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Hold a folder against other machines. The caller holds it on this one, where it is `local`.

    `busy` gets who holds it and may raise, else this process goes on watching. `confirm()` is to be
    called before a commit: it ends this process where another one has taken the folder since.
    OSError where that cannot be told.
    """
    count_file, machine, remote = shared / COUNT, _machine(), shared != local
    if remote:  # the kernel knows of those alone that have the same copy
        machine += f" {local.absolute()}"
    about = {"machine": machine, "holder": f"process {os.getpid()} on {socket.gethostname()}"}
    about |= {"token": secrets.token_hex(8)}
    while True:
        last = _last_count(count_file)
        if last is not None and last["machine"] != machine and _is_counting(count_file, last):
            busy(last["holder"])
            continue
        if last is not None and _last_count(count_file) == last:
            store.remove(count_file)  # of a process that is gone
        if not remote or store.create(count_file, json.dumps(about).encode()):
            break
        busy("another process")
    store.remove_parts(local)
    stop = threading.Event()

    def is_ours(found: dict[str, Any] | None) -> bool:
        return found is None or found.get("token") == about["token"]

    def confirm() -> None:
        with contextlib.suppress(FileNotFoundError):  # deleted by hand: counting writes it again
            if not is_ours(store.read_json(count_file)):
                _end(shared)

    def count() -> None:
        written = False
        for number in itertools.count():
            # Two that began at once, on machines without common locks, meet here.
            if written and not is_ours(_last_count(count_file)):
                _end(shared)
            # A disk that is full, or away for a moment, is reported by those who need it.
            with contextlib.suppress(OSError):
                store.write_json(count_file, about | {"count": number}, sync=False)
                written = True
            if stop.wait(COUNT_S):
                return

    thread = threading.Thread(target=count, name="lock", daemon=True)
    thread.start()
    try:
        yield confirm
    finally:
        stop.set()
        thread.join()
        if is_ours(_last_count(count_file)):
            store.remove(count_file)


def _end(shared: PurePath) -> None:
    reason = f"another process has taken {shared}"
    print(f"\n{reason}", file=sys.stderr)
    end_together(Exit.USER, reason)


def _is_counting(count_file: PurePath, last: dict[str, Any]) -> bool:
    watch_s = WATCH_S if isinstance(count_file, Path) else BUCKET_WATCH_S
    log.info("%s was held from elsewhere: watching it for %.0f s", count_file.parent, watch_s)
    time.sleep(watch_s)
    return _last_count(count_file) != last


def _last_count(path: PurePath) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return dict(store.read_json(path))
    return None


def _machine() -> str:
    """This machine since it was started: processes with the same one share a kernel's locks."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
