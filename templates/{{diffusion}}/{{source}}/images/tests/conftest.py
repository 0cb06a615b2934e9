"""A folder of pictures that several tests prepare."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .. import prepare as prepare_module
from ..settings import DataConfig


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Sixty pictures of 6 x 5 pixels in three classes, in about five shards."""
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 400)
    monkeypatch.setattr(prepare_module, "BATCH_IMAGES", 7)
    random = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "pictures" / ["axe", "bee", "öl"][number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (6, 5), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return DataConfig(
        source=str(tmp_path / "pictures"),
        prepared_dir=str(tmp_path / "prepared"),
        heldout_fraction=0.3,
    )
