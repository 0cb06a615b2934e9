"""Data that are prepared once into a folder and then only read. Knows no text and no image.

One process at a time prepares a folder, on any machine; a second one waits for it. The folder
counts once its manifest is `complete`. Imports no JAX but for a folder in a bucket.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np

from ..errors import UserError
from ..records import store
from ..records.mirror import Mirror, local
from ..records.summary import facts

log = logging.getLogger(__name__)

LOCK = ".lock"  # of a prepared folder, held by who writes in it
MANIFEST = "manifest.json"


@runtime_checkable
class Prepared(Protocol):
    """What a manifest has, whatever it is of."""

    @property
    def request(self) -> dict[str, Any]:
        """Name -> value of all that decided the result."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be done."""


def prepare_once[M: Prepared](
    prepared_dir: str,
    request: dict[str, Any],
    missing: UserError | None,
    read: Callable[[Path], M],
    make: Callable[[M | None], M],
) -> M:
    """The manifest of a folder, on a disk or in a bucket, which `make` fills unless that is done.

    request: what decides the result; None for what cannot be told, as the source is not here. Then
    `missing` says why, and is raised unless the folder is complete. read: local folder -> manifest.
    make: manifest of an attempt that was stopped, if there is one -> the complete manifest.
    """
    copy = Mirror(prepared_dir)
    folder, manifest = copy.local, copy.folder / MANIFEST
    is_there = store.exists(manifest)
    if is_there:  # else a preparation may go on in the copy, or one was not sent
        copy.fetch()
    else:
        copy.forget()
    found = _find(folder, request, missing, read)
    if found and found.complete and is_there:  # no lock: the folder may be one for reading alone
        return found
    if missing and not (found and found.complete):
        raise missing
    if folder.exists() and not folder.is_dir():
        raise UserError(
            got=f"--data.prepared-dir {folder}, which is a file",
            expected="a folder for the prepared data, or a new name",
            do="choose another --data.prepared-dir",
        )

    def wait(holder: str) -> None:
        log.info("%s prepares %s; waiting for it", holder, copy.folder)

    with contextlib.ExitStack() as stack:
        stack.enter_context(store.locked(folder / LOCK, wait))
        if copy.is_remote:  # no lock of a disk keeps other machines away
            from ..runtime.lock import held  # it needs JAX

            copy.confirm = stack.enter_context(held(folder, copy.folder, wait))
            if store.exists(manifest):  # made meanwhile
                copy.fetch()
        found = _find(folder, request, missing, read)
        if not (found and found.complete):
            store.remove_parts(folder)
            found = make(found)
        copy.send(last=MANIFEST)
        return found


def _find[M: Prepared](
    folder: Path, request: dict[str, Any], missing: UserError | None, read: Callable[[Path], M]
) -> M | None:
    """The manifest of this request, complete or not, if there is one.

    Data that were copied to a machine without their source are accepted.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = read(folder)
    got = manifest.request
    differ = [k for k, value in request.items() if value is not None and value != got.get(k)]
    if differ and missing:  # a mistyped path, rather than other data
        raise missing
    if differ:
        raise UserError(
            got=f"{folder}, prepared with {', '.join(f'{k}={got.get(k)!r}' for k in differ)}",
            expected=", ".join(f"{k}={request[k]!r}" for k in differ),
            do="choose another --data.prepared-dir, or delete that folder",
        )
    return manifest


def places(run_dir: Path, given: str, needed: Sequence[str] = ("",)) -> list[Path]:
    """Where the prepared folder of a run may be: beside the run or above it, below the working
    folder, and where the training had it. Of a bucket the `needed` parts are fetched first."""
    had = facts(run_dir / "config.json").get("paths_absolute", {}).get("data.prepared_dir", given)
    copy = Mirror(given, reader=True)
    for part in needed:
        copy.fetch(part)
    # A copy of what is in a bucket has an absolute path, and so is one place.
    near = copy.local.absolute() if copy.is_remote else Path(given)
    found = [*(folder / near for folder in (*run_dir.absolute().parents, Path())), Path(had)]
    return [place for place in dict.fromkeys(found) if place.is_dir()]


def parse[M](folder: str | Path, form: int, make: Callable[[dict[str, Any]], M]) -> M:
    """The manifest of a folder, complete or not: what `make` makes of it. form: its `format`."""
    path = local(str(folder)) / MANIFEST
    try:
        plain = store.read_json(path)
        if plain["format"] != form:
            raise ValueError(f"format {plain['format']}")
        return make(plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            got=f"{path}: {error}",
            expected=f"a manifest of this kind of data, of format {form}",
            do="run `prepare` with another --data.prepared-dir; every host must see its files",
        ) from error


def check_complete(folder: Path, manifest: Prepared, shards: int) -> None:
    """Raise UserError where the preparation of a folder was stopped, after some shards."""
    if not manifest.complete:
        raise UserError(
            got=f"{folder}, where `prepare` was stopped after {shards} shards",
            expected="all shards",
            do="run `prepare` with the same --data settings; it goes on where it stopped",
        )


def write_manifest(folder: Path, manifest: Any) -> None:
    """Make the files that a manifest, a dataclass, names count."""
    store.write_json(folder / MANIFEST, asdict(manifest))


def put(path: Path, content: bytes | np.ndarray) -> str:
    """Put a file in place, whole or not at all -> its SHA-256."""

    def fill(file: BinaryIO) -> None:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content)

    store.write(path, fill)
    return store.sha256(path)


def check_files(files: Mapping[Path, str]) -> None:
    """Raise UserError where the SHA-256 of a file is not the one beside its path."""
    with ThreadPoolExecutor() as pool:  # hashlib releases the GIL
        list(pool.map(_check, files, files.values()))


def _check(path: Path, sha256: str) -> None:
    try:
        digest = store.sha256(path)
        got = f"{path.stat().st_size} bytes with SHA-256 {digest}"
    except OSError as error:
        digest, got = "", str(error)
    if digest != sha256:
        raise UserError(
            got=f"{path}: {got}",
            expected=f"SHA-256 {sha256}, as its manifest says",
            do="put back the file that was there, or run `prepare` with another "
            "--data.prepared-dir: the run goes on with the same data wherever they are",
        )


@lru_cache(maxsize=256)  # each holds a file descriptor, of which a process often has 1024
def map_array(path: Path, sha256: str) -> np.ndarray:
    """A memory-mapped `.npy` file. Its hash is part of the cache's key: a folder may be prepared
    again under the same names."""
    return np.load(path, mmap_mode="r")
