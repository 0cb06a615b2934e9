"""A corpus that several tests prepare."""

from pathlib import Path

import pytest

from .. import prepare as prepare_module
from ..settings import DataConfig


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Sixty short documents in about ten shards."""
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 3000)
    monkeypatch.setattr(prepare_module, "BATCH_DOCUMENTS", 3)
    (tmp_path / "text").mkdir()
    for number in range(60):
        text = f"# {number}\n" + f"def f{number}(é):\n    return {number} + é\n" * (number % 17 + 1)
        (tmp_path / "text" / f"{number:02d}.txt").write_bytes(text.encode())
    return DataConfig(
        paths=(str(tmp_path / "text"),),
        prepared_dir=str(tmp_path / "prepared"),
        tokenizer="byte",
        heldout_fraction=0.25,
    )
