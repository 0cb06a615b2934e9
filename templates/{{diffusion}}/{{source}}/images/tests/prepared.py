"""What the tests of prepared images look at."""

from pathlib import Path

import numpy as np

from ..settings import DataConfig
from ..shards import Split, open_split


def files_of(config: DataConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(config.prepared_dir).iterdir()}


def open_both(config: DataConfig) -> list[Split]:
    return [open_split(config.prepared_dir, name) for name in ("train", "heldout")]


def pictures(config: DataConfig) -> list[Path]:
    return sorted(Path(config.source).rglob("*.png"))


def in_both(config: DataConfig) -> dict[bytes, int]:
    """Pixels -> label of every prepared image."""
    rows = [split.pixels.read(range(len(split))) for split in open_both(config)]
    labels = [split.labels for split in open_both(config)]
    pairs = zip(np.concatenate(rows), np.concatenate(labels).tolist(), strict=True)
    return {image.tobytes(): label for image, label in pairs}


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the code may catch it."""
