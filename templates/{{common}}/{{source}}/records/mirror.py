"""The local copy of a folder in a bucket: what reads and writes files works there.

A folder on a disk is its own copy, and nothing is sent or fetched. Checkpoints and locks are left
out: `runtime` reads and writes those in the bucket itself.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from . import objects, store

log = logging.getLogger(__name__)

STAGED = Path(".staged")  # below the working folder; git ignores it
KNOWN = ".known-"  # begins a file of each process: name -> digest in the bucket, size and time
NOT_COPIED = ("checkpoints/", "lock", ".lock", ".shared-", KNOWN)  # beginnings of names
THREADS = 8


def local(folder: str, reader: bool = False) -> Path:
    """Where the copy of a folder is; `reader`: one beside that of a run that goes on here."""
    if not objects.is_url(folder):
        return Path(folder)
    return STAGED / ("read" if reader else "run") / folder.replace("://", "/").rstrip("/")


class Mirror:
    """A folder that a setting names, and its copy."""

    def __init__(self, folder: str, *, process: int = 0, reader: bool = False) -> None:
        self.folder: PurePath = store.place(folder)
        self.local = local(folder, reader)
        self.is_remote = objects.is_url(folder)
        self.confirm: Callable[[], None] = lambda: None
        """Called before anything is sent or committed: raises, or ends, where that must not be."""
        self.is_current = False
        """All of it was fetched: what is in it now may be sent."""
        self._list = self.local / f"{KNOWN}{process}.json"
        self._lock = threading.Lock()

    def fetch(self, under: str = "") -> None:
        """Make the copy, or the part of it below `under`, what is in the bucket."""
        if not self.is_remote:
            return
        with self._lock:
            known, there = self._known(), self._found(under)
            for name in self._names(under):
                if name not in there:
                    store.remove(self.local / name)
                    known.pop(name, None)
            stale = [n for n, digest in there.items() if known.get(n) != self._facts(n, digest)]
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(self._download, stale))
            known |= {name: self._facts(name, there[name]) for name in stale}
            store.write_json(self._list, known, sync=False)
            self.is_current |= not under

    def send(self, under: str = "", last: str = "") -> None:
        """Put into the bucket what has changed in the copy, and delete there what is gone here.

        `last` is sent after the rest: what a reader takes for the sign that all is there.
        """
        self.confirm()
        if not self.is_remote:
            return
        with self._lock:
            known, names = self._known(), self._names(under)
            for name in [n for n in known if n.startswith(under) and n not in names]:
                store.remove(self.folder / name)
                del known[name]
            was = {name: known.get(name, [None])[0] for name in names}
            changed = [name for name in names if known.get(name) != self._facts(name, was[name])]
            with ThreadPoolExecutor(THREADS) as pool:
                sent = dict(pool.map(self._upload, [n for n in changed if n != last]))
            if last in changed:
                sent |= [self._upload(last)]
            store.write_json(self._list, known | sent, sync=False)

    def send_rest(self, *, required: bool) -> None:
        """The last `send` of a run; where it fails and is not required, a warning."""
        try:
            self.send()
        except Exception as error:
            if required:
                raise
            log.warning("not sent, of what was written after the last save: %s", error)

    def forget(self) -> None:
        """Take nothing for sent: the next `send` puts all of the copy there."""
        if self.is_remote:
            store.remove(self._list)

    def _known(self) -> dict[str, list[object]]:
        with contextlib.suppress(OSError, ValueError):  # then all is compared anew
            return dict(store.read_json(self._list))
        return {}

    def _found(self, under: str) -> dict[str, str]:
        there = objects.found(self.folder)
        return {n: d for n, d in there.items() if n.startswith(under) and _is_copied(n)}

    def _names(self, under: str) -> list[str]:
        found = map(str, store.files(self.local))
        return [n for n in found if n.startswith(under) and _is_copied(n)]

    def _facts(self, name: str, digest: object) -> list[object]:
        size, time_ns = store.size_and_time(self.local / name)
        return [digest, size, time_ns]

    def _download(self, name: str) -> None:
        store.write(self.local / name, lambda file: objects.download(self.folder / name, file.name))

    def _upload(self, name: str) -> tuple[str, list[object]]:
        size, time_ns = store.size_and_time(self.local / name)  # of before: it may be rewritten
        try:
            objects.upload(self.local / name, self.folder / name)
        except FileNotFoundError:
            if store.exists(self.local / name):
                raise
            return name, [None, 0, 0]  # a tracker has deleted a file of its own meanwhile
        return name, [objects.digest(self.folder / name), size, time_ns]


def _is_copied(name: str) -> bool:
    return not name.startswith(NOT_COPIED) and not name.endswith(store.PART)
