"""What compressors make of the held-out text is exact, and computed once."""

import gzip
import json
import lzma
from dataclasses import replace
from pathlib import Path

import pytest

from .. import compressors
from ..compressors import compress_heldout
from ..prepare import prepare
from ..settings import DataConfig
from ..shards import Split, open_split


@pytest.fixture
def heldout(tmp_path: Path) -> Split:
    (tmp_path / "text").mkdir()
    for number in range(12):
        (tmp_path / "text" / f"{number}.txt").write_text(f"text {number}\n" * (9 + number))
    config = DataConfig(
        paths=(str(tmp_path / "text"),),
        prepared_dir=str(tmp_path / "prepared"),
        tokenizer="byte",
        heldout_fraction=0.5,
    )
    prepare(config, show=False)
    return open_split(config.prepared_dir, "heldout")


def refuse(text: bytes) -> bytes:
    raise AssertionError("compressed again")


@pytest.mark.parametrize("documents", [1, 3])
def test_figures_are_those_of_the_compressors(heldout: Split, documents: int) -> None:
    texts = list(heldout.texts())[:documents]
    size = sum(map(len, texts))
    beats: list[None] = []
    found = compress_heldout(heldout, documents, lambda: beats.append(None))
    assert len(beats) == 2 * (documents + 1), "a long text would look like a hang"
    assert found == {
        "gzip_per_file_bits_per_byte": 8 * sum(len(gzip.compress(t, 9)) for t in texts) / size,
        "gzip_joined_bits_per_byte": 8 * len(gzip.compress(b"".join(texts), 9)) / size,
        "xz_per_file_bits_per_byte": 8 * sum(len(lzma.compress(t, preset=9)) for t in texts) / size,
        "xz_joined_bits_per_byte": 8 * len(lzma.compress(b"".join(texts), preset=9)) / size,
    }


def test_they_are_computed_once_for_a_text(heldout: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compress_heldout(heldout, 3)
    with monkeypatch.context() as patch:
        patch.setattr(compressors, "COMPRESSORS", {"gzip": refuse, "xz": refuse})
        assert compress_heldout(heldout, 3) == found
        (shard,) = heldout.shards
        other = replace(heldout, shards=(replace(shard, files=dict.fromkeys(shard.files, "")),))
        for split, documents in ((heldout, 2), (other, 3)):
            with pytest.raises((AssertionError, ValueError)):
                compress_heldout(split, documents)
    for damage in ("", "[]", json.dumps({"figures": {}})):
        (heldout.folder / "baselines-3.json").write_text(damage)
        assert compress_heldout(heldout, 3) == found


def test_a_folder_that_can_only_be_read_gives_the_same(
    heldout: Split, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(path: Path, busy: object) -> None:
        raise PermissionError(13, "read-only", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(compressors.store, "locked", locked)
        found = compress_heldout(heldout, 3)
        assert "cannot be kept" in caplog.text
    assert not (heldout.folder / "baselines-3.json").exists()
    assert compress_heldout(heldout, 3) == found
