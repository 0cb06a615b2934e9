"""The files of a source: a file, a folder or a glob, without what this project wrote there.

Opens no image; what is no source of images is counted.
"""

import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..training.given import Counts, count, has_key, is_run, near, spelled, tell
from .settings import ImageConfig

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
ARRAYS = (".npy", ".npz", ".parquet")
IMAGES_HASH = "images_sha256"  # only the manifest of prepared images has this key


def find_files(config: ImageConfig) -> tuple[dict[Path, str], Counts]:
    """Path -> name below the source's folder, in order, and what else there is; UserError if none.

    A folder's files come before those in folders below it, both sorted. Of a glob the folders are
    searched too.
    """
    given, unread, names = config.source, dict[str, Any](), dict[Path, str]()
    path = Path(os.path.expanduser(given)).absolute()  # Path's own raises for an unknown user
    if os.path.lexists(path):  # as it is, even where its name reads as a glob
        root, matches = path if os.path.isdir(path) else path.parent, [path]
    else:
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches = [Path(match) for match in sorted(glob.glob(str(path)))]
    for match in matches:
        for file in _walk(match, config, unread) if os.path.isdir(match) else [match]:
            name = spelled(file.relative_to(root))
            if kind := _why_no_file(file):
                count(unread, kind, name)
            else:
                names[file] = name
    if not names:
        raise UserError(
            got=f"--data.source {given!r} with {tell(unread) or 'no files'}",
            expected="digits, mnist, hf:NAME, or a file, folder or glob of "
            + " ".join((*PICTURES, *ARRAYS)),
            do=f"correct --data.source; {near(path)}",
        )
    return names, unread


def _walk(root: Path, config: ImageConfig, unread: Counts) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        count(unread, str(error.strerror), str(error.filename))

    for folder, below, files in os.walk(root, followlinks=True, onerror=unreadable):
        is_hidden = Path(folder).name.startswith(".") and Path(folder) != root
        if kind := "hidden folder" if is_hidden else _why_no_folder(Path(folder), config):
            count(unread, kind, folder)
            below.clear()
        else:
            below.sort()
            yield from (Path(folder, file) for file in sorted(files))


def _why_no_file(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden file"
    if not path.name.lower().endswith((*PICTURES, *ARRAYS)):
        return f"{path.suffix.lower()} file" if path.suffix else "file without a suffix"
    return "" if os.path.isfile(path) else "no regular file"


def _why_no_folder(folder: Path, config: ImageConfig) -> str:
    """Runs and what was prepared may stand among the images, and links may lead back up."""
    if Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder)):
        return "link to a folder above"
    if is_run(folder):
        return "folder of a run"
    is_own = folder == Path(config.prepared_dir).absolute()
    is_own = is_own or has_key(folder / "manifest.json", IMAGES_HASH)
    return "prepared folder" if is_own else ""
