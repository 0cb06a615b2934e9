"""Prepared images in a bucket, made on one host and read on another."""

from pathlib import Path

import numpy as np
import pytest

from ...records import objects, store
from ...records.mirror import Mirror
from ...runtime.tests.buckets import bucket
from ..prepare import prepare
from ..settings import DataConfig
from ..shards import open_split

__all__ = ["bucket"]  # a fixture


def test_prepared_images_go_to_a_bucket_and_come_from_it(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8)
    np.save(tmp_path / "a.npy", images)
    settings = DataConfig(source=str(tmp_path / "a.npy"), prepared_dir=f"{bucket}/images")
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    with monkeypatch.context() as broken:
        broken.setattr(Mirror, "send", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(settings, show=False)
    for host in ("one", "two"):
        (tmp_path / host).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / host)
        manifest = prepare(settings, show=False)
        sent = objects.found(store.place(settings.prepared_dir))
        assert {"manifest.json", *manifest.files} == sent.keys()
        split = open_split(settings.prepared_dir, "train")
        assert len(split) == manifest.images["train"]
        assert {image.tobytes() for image in split.pixels.read(range(len(split)))} <= {
            image.tobytes() for image in images
        }
        monkeypatch.setattr(Mirror, "send", lambda *_, **__: pytest.fail("sent again"))
