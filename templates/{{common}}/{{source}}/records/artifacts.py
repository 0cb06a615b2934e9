"""Images and texts that show the progress of a run: DIR/artifacts/NAME-STEP.png and .txt.

Imports no JAX: the report reads them too. Does not decide what they show.
"""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from . import store

FILE = re.compile(r"(?P<name>.+)-(?P<step>\d{8,})\.(png|txt)")


def write(run_dir: Path, step: int, name: str, artifact: str | np.ndarray) -> Path:
    """Write text, or an image as uint8 of shape (height, width, 3); returns the file.

    ValueError for another array; OSError where it cannot be written.
    """
    stem = run_dir / "artifacts" / f"{store.plain_name(name)}-{step:08d}"
    # Not synced: the loop waits for this, and nothing depends on the newest of them.
    if isinstance(artifact, str):
        path = stem.with_name(f"{stem.name}.txt")
        store.write(path, artifact, sync=False)
        return path
    image = np.asarray(artifact)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype}{list(image.shape)}"
        raise ValueError(f"artifact {name!r}: got {got}, expected uint8[height, width, 3] or text")
    from PIL import Image  # comes with matplotlib

    path = stem.with_name(f"{stem.name}.png")
    store.write(path, lambda file: Image.fromarray(image).save(file, "PNG"), sync=False)
    return path


def step_of(path: Path) -> int:
    """The step at which a file was written; -1 for the name of another file."""
    found = FILE.fullmatch(path.name)
    return int(found["step"]) if found else -1


def cut(run_dir: Path, step: int) -> None:
    """On resume: delete what is beyond `step`, which will be written again."""
    for paths in by_name(run_dir).values():
        for path in paths:
            if step_of(path) > step:
                store.remove(path)


def are_there(run_dir: Path, step: int) -> bool:
    """Whether any were written at a step."""
    return any(step_of(path) == step for paths in by_name(run_dir).values() for path in paths)


def by_name(run_dir: Path) -> dict[str, list[Path]]:
    """Plain name -> its files, the newest last."""
    folder = run_dir / "artifacts"
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for file_name in store.names(folder):
        if match := FILE.fullmatch(file_name):
            found[match["name"]].append(folder / file_name)
    return {name: sorted(paths, key=step_of) for name, paths in found.items()}
