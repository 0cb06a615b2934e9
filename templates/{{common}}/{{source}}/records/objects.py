"""Objects in a bucket, by URL: `gs://bucket/name` and `s3://bucket/name`. store.py calls it.

An object appears whole or not at all; nothing is renamed, nothing is appended to. Folders are the
beginnings of names. A call that fails for a moment is tried again for half a minute.
"""

import errno
import functools
import importlib
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from ..errors import UserError

log = logging.getLogger(__name__)

MODULES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme -> what reads it, its extra
URL = re.compile(r"(gs|s3)://[^/]+/.+")
RETRY_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between tries; a store that is overloaded answers 503
PATIENCE_S = 45.0  # after which there is no other try, however many there were
# Of fsspec's answers, those that another try does not change.
LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError)
FULL = (errno.ENOSPC, errno.EDQUOT)  # of the disk of the local copy


def is_url(text: object) -> bool:
    """Whether a path is a folder or an object in a bucket."""
    return URL.fullmatch(str(text)) is not None


def path_of(url: str) -> Any:
    """A path that Orbax takes too: `/`, `.name`, `.parent`; its own reads and writes go unused."""
    from etils import epath  # of Orbax

    return epath.Path(url)


def read(path: PurePath) -> bytes:
    """The content of an object."""
    return bytes(_call(path, "cat_file"))


def write(path: PurePath, content: bytes) -> None:
    """Put an object in place; NotADirectoryError where its bucket is not there."""
    try:
        _call(path, "pipe_file", content)
    except FileNotFoundError as error:
        raise NotADirectoryError(errno.ENOTDIR, "no such bucket", str(path)) from error


def create(path: PurePath, content: bytes) -> bool:
    """Put an object in place unless there is one; whether this call did, by its content.

    The content is of this call alone: of two tries, the first may have got through unanswered.
    """
    try:
        _call(path, "pipe_file", content, mode="create")
    except FileExistsError:
        return read(path) == content
    except FileNotFoundError as error:
        raise NotADirectoryError(errno.ENOTDIR, "no such bucket", str(path)) from error
    return True


def upload(file: Path, path: PurePath) -> None:
    """Put a local file in place as an object."""
    _call(path, "put_file", file, first=True)


def download(path: PurePath, file: str) -> None:
    """The content of an object into a local file."""
    _call(path, "get_file", file)


def found(folder: PurePath) -> dict[str, str]:
    """Name below a folder -> digest by the store, of every object there; none where it is empty.

    Without the empty objects `name/` by which a web console shows a folder.
    """
    try:
        listed = _call(folder, "find", detail=True)
    except FileNotFoundError as error:
        raise NotADirectoryError(errno.ENOTDIR, "no such bucket", str(folder)) from error
    start = str(folder).split("://")[1].rstrip("/") + "/"
    return {
        name.removeprefix(start): _digest(info)
        for name, info in sorted(listed.items())
        if name.startswith(start) and not name.endswith("/")
    }


def names(folder: PurePath) -> list[str]:
    """Names in a folder, sorted; none where there is none."""
    try:
        listed = _call(folder, "ls", detail=False)
    except FileNotFoundError:
        return []
    own = str(folder).split("://")[1].strip("/")
    listed = [name.rstrip("/") for name in listed]
    return sorted({name.split("/")[-1] for name in listed if name != own} - {""})


def exists(path: PurePath) -> bool:
    """Whether there is an object of this name."""
    try:
        _call(path, "info")
    except FileNotFoundError:
        return False
    return True


def digest(path: PurePath) -> str:
    """What the store says of the content of an object: its MD5, CRC-32C or ETag."""
    return _digest(_call(path, "info"))


def remove(path: PurePath) -> None:
    """Delete an object, or all objects below a folder."""
    try:
        _call(path, "rm", recursive=True)
    except FileNotFoundError:
        return


def _digest(info: dict[str, Any]) -> str:
    for name in ("md5Hash", "crc32c", "ETag"):
        if value := info.get(name):
            return f"{name} {str(value).strip(chr(34))}"
    return f"size {info.get('size')}"


def _call(path: PurePath, name: str, *args: Any, first: bool = False, **options: Any) -> Any:
    """A method of fsspec's file system on an object; `first`: `args` come before its name."""
    method: Callable[..., Any] = getattr(_filesystem(path), name)
    words = (*map(str, args), str(path)) if first else (str(path), *args)
    began_s = time.monotonic()
    for wait_s in (*RETRY_S, None):
        try:
            return method(*words, **options)
        except Exception as error:
            if _is_refusal(error):
                raise PermissionError(errno.EACCES, _words(error), str(path)) from error
            if isinstance(error, LASTING) or getattr(error, "errno", None) in FULL:
                raise
            if wait_s is None or time.monotonic() - began_s + wait_s > PATIENCE_S:
                text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                raise OSError(errno.EIO, text, str(path)) from error
            log.warning("%s: %s; trying again in %g s", path, _words(error), wait_s)
            time.sleep(wait_s)
    raise AssertionError


def _is_refusal(error: Exception) -> bool:
    named = "Credentials" in type(error).__name__ or "Forbidden" in str(error)
    return named or isinstance(error, PermissionError)


def _words(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


def _filesystem(path: PurePath) -> Any:
    return _open(str(path).split("://")[0], os.getpid())


@functools.cache
def _open(scheme: str, _: int) -> Any:
    """The file system of a scheme in this process: its threads do not survive a fork."""
    module, extra = MODULES[scheme]
    try:
        importlib.import_module(module)
        import fsspec
    except ImportError as error:
        raise UserError(
            got=f"{scheme}://, and no {module}",
            expected=f"the extra {extra}",
            do=f"install it: `uv sync --extra {extra}`",
        ) from error
    logging.getLogger(module).setLevel(logging.CRITICAL)  # what fails is reported by us
    # Without its cache, since other hosts write there too.
    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
