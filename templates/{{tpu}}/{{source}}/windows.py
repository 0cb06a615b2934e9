"""Files as one long text of bytes, and the windows that are read from it. Knows no order or device.

Nothing is copied or prepared: a window is read from its file when it is needed, by the host that
needs it.
"""

import bisect
import glob
import hashlib
import os
import sysconfig
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from .config import DataConfig
from .errors import UserError
from .training.given import near


def find_files(paths: tuple[str, ...]) -> list[Path]:
    """All files behind files, folders and globs, but hidden ones, ordered by a hash of their names.

    So the last ones are a sample of all. No paths = the modules of Python's own library, without
    those that differ between its builds.
    """
    found: set[Path] = set()
    for given in paths or (sysconfig.get_paths()["stdlib"] + "/[!_]*.py",):
        path = os.path.abspath(os.path.expanduser(given))
        inside = glob.iglob(f"{glob.escape(path)}/**", recursive=True)
        names = [path, *glob.iglob(path, recursive=True), *inside]
        files = {file for file in map(Path, names) if file.is_file()}
        if not files:
            raise UserError(
                got=f"--data.paths {given}: no file there",
                expected="files, folders and globs that every host sees",
                do=f"correct it; {near(Path(path))}",
            )
        found |= files
    return sorted(found, key=lambda file: (zlib.crc32(os.fsencode(file.name)), file))


class Text:
    """The bytes of all files, one after another."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.starts = np.cumsum([0, *(file.stat().st_size for file in files)]).tolist()

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, " {stop}-{start}"]:
        """The bytes [start, stop)."""
        found, at = bytearray(), bisect.bisect_right(self.starts, start) - 1
        while start < stop:
            end = min(stop, self.starts[at + 1])
            with self.files[at].open("rb") as file:
                file.seek(start - self.starts[at])
                piece = file.read(end - start)
            if len(piece) < end - start:
                raise UserError(
                    got=f"{self.files[at]}, which became shorter",
                    expected="files that nothing writes to during a run",
                    do="restore it, or begin another run with the files as they are",
                )
            found += piece
            start, at = end, at + 1
        return np.frombuffer(found, np.uint8)

    def sha256(self) -> str:
        """Of everything: each host reads all of it once at each start, about 1 GB/s."""
        digest, block = hashlib.sha256(), bytearray(1 << 20)
        for path in self.files:
            with path.open("rb", buffering=0) as file:
                while size := file.readinto(block):
                    digest.update(memoryview(block)[:size])
        return digest.hexdigest()


class Windows:
    """Rows of a part of a text: `seq_len` bytes and the one after; each byte a target once."""

    def __init__(self, text: Text, start: int, stop: int, seq_len: int) -> None:
        self.text, self.start, self.seq_len = text, start, seq_len
        self.rows = max(0, stop - start - 1) // seq_len

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> UInt8[np.ndarray, " {self.seq_len}+1"]:
        start = self.start + row * self.seq_len
        return self.text.read(start, start + self.seq_len + 1)


def split(data: DataConfig, text: Text) -> tuple[Windows, Windows]:
    """The windows to train on, and those that are held out: of the last files."""
    size = text.starts[-1]
    cut = round(size * (1 - data.heldout_fraction))
    train, heldout = Windows(text, 0, cut, data.seq_len), Windows(text, cut, size, data.seq_len)
    if not len(heldout):
        raise UserError(
            got=f"{size - cut} held-out bytes of {size}",
            expected=f"more than a row of {data.seq_len}",
            do="give more data, raise --data.heldout-fraction or lower --data.seq-len",
        )
    return train, heldout
