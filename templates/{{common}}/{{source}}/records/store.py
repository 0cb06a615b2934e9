"""All reads and writes in a run folder, on a disk or, by objects.py, in a bucket.

A file appears whole or not at all. Knows no file by name. Orbax writes the arrays of
checkpoints itself, the trackers their logs and JAX's profiler its traces. Functions that take a
`PurePath` take objects too.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from ..errors import UserError
from . import objects

log = logging.getLogger(__name__)

PART = ".part"  # how the name of a file ends while it is written; a kill leaves it
RETRY_S = (0.5, 2.0, 5.0)  # between tries to read what could not be read
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # the file system has none


def place(text: str) -> PurePath:
    """The path of a folder or file that a setting names, on a disk or in a bucket."""
    return objects.path_of(text) if objects.is_url(text) else Path(text)


def on_disk(folder: str) -> Path:
    """The folder that a command writes for other tools; UserError for one in a bucket."""
    if objects.is_url(folder):
        raise UserError(
            got=f"--to {folder}",
            expected="a folder on a disk",
            do="write it to a disk, then copy it with the tools of the bucket",
        )
    return Path(folder)


def write(
    path: PurePath, content: bytes | str | Callable[[BinaryIO], object], *, sync: bool = True
) -> None:
    """Put a file in place by a rename; `content` may be a function that fills an open file.

    `sync` waits until the content is on disk.
    """
    if not isinstance(path, Path):
        assert not callable(content)
        objects.write(path, content.encode() if isinstance(content, str) else content)
        return
    make_folder(path.parent)
    # A name of its own: two processes that write one file must not share a half of it.
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with part.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], object]) -> Iterator[None]:
    """Hold the exclusive lock of a file, which is made where it is missing and stays, empty.

    Where another process holds it, `busy` gets what that one wrote of itself; it may raise, else
    this process waits. The kernel frees the lock of a process that ends, however it ends. Hosts
    exclude each other only where their file system passes locks on, as NFS 4 does.
    """
    with _open_locked(path, busy) as file:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the words
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            # Closing would not do: a process that was forked meanwhile shares the lock.
            with contextlib.suppress(OSError):
                file.truncate(0)
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def _open_locked(path: Path, busy: Callable[[str], object]) -> BinaryIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy(read(path).decode(errors="replace") or "another process")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                log.warning("%s cannot be locked: %s; start one process at a time", path, error)
            # While this one waited, the file may have been deleted, and made anew by a third.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def create(path: PurePath, content: bytes) -> bool:
    """Write a file unless there is one of its name; whether this call did."""
    if not isinstance(path, Path):
        return objects.create(path, content)
    with contextlib.suppress(FileExistsError), path.open("xb") as file:
        file.write(content)
        return True
    return False


def read(path: PurePath) -> bytes:
    """The content of a file; OSError where it cannot be read."""
    return path.read_bytes() if isinstance(path, Path) else objects.read(path)


def reading(path: Path) -> BinaryIO:
    """A file open for reading, to be used in a `with`."""
    return path.open("rb")


def exists(path: PurePath) -> bool:
    """Whether there is a file or folder of this name; OSError where that cannot be told."""
    if not isinstance(path, Path):
        return objects.exists(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_json(path: PurePath, value: Any, *, sync: bool = True) -> None:
    """One JSON document."""
    write(path, json.dumps(value, indent=1), sync=sync)


def read_json(path: PurePath) -> Any:
    """What `write_json` wrote; OSError or ValueError where it cannot be read."""
    return json.loads(read(path))


def append(path: Path, line: str) -> None:
    """Add a line. A line that a kill cut short before it stays a line of its own."""
    # Opened anew each time: no handle outlives a rewrite, and a disk that is freed is used again.
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + line.encode() + b"\n"
        if file.write(data) != len(data):
            raise OSError("only a part of the line was written")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole JSON objects of a file of lines, without a torn one; none if there is no file."""
    if not exists(path):
        return []
    found = []
    for line in read(path).splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(record := json.loads(line), dict):
                found.append(record)
    return found


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """JSON objects, one a line."""
    write(path, as_lines(records))


def as_lines(records: Iterable[dict[str, Any]]) -> str:
    """What `write_lines` writes."""
    return "".join(json.dumps(record) + "\n" for record in records)


def plain_name(text: str) -> str:
    """A file name for any text; characters other than letters, digits, `.` and `-` become `_`."""
    return re.sub(r"[^\w.-]+", "_", text)


def names(folder: PurePath) -> list[str]:
    """Names in a folder, sorted; none where there is no folder."""
    if not isinstance(folder, Path):
        return objects.names(folder)
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def files(folder: Path) -> list[Path]:
    """Every file below a folder, relative to it, sorted."""
    return sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file())


def patiently[P: PurePath, T](read: Callable[[P], T], path: P) -> T:
    """What `read` makes of a file, tried again for some seconds where reading fails.

    A file that is not there, or holds something else than it should, is not tried again.
    """
    for wait_s in RETRY_S:
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("%s: %s; trying again in %g s", path, error, wait_s)
            time.sleep(wait_s)
    return read(path)


def make_new_folder(folder: PurePath) -> None:
    """Make a folder and those above it; FileExistsError where it is there."""
    if not isinstance(folder, Path):
        if objects.names(folder):
            raise FileExistsError(errno.EEXIST, "there are objects", str(folder))
        return
    make_folder(folder.parent)
    folder.mkdir()


def size_bytes(folder: Path) -> int:
    """The sizes of all files below a folder, added up."""
    return sum((folder / file).lstat().st_size for file in files(folder))


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes of a file and when it was last written, ns; zeros where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # as below /proc; elsewhere it would mean a bug
        raise NotADirectoryError(errno.ENOTDIR, "no folder can be made", str(folder)) from error


def remove(path: PurePath) -> None:
    """Delete a file or a folder with all that is in it; nothing where there is none."""
    if not isinstance(path, Path):
        objects.remove(path)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Delete the halves of files that a killed process left; the caller holds the folder's lock."""
    for name in names(folder):
        if name.endswith(PART):
            remove(folder / name)


def rename(old: Path, new: Path) -> None:
    """Give a file or folder another name."""
    old.rename(new)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
