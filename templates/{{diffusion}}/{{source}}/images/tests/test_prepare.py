"""Prepared are all images, once, in the right split, whatever kills the process meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ...errors import UserError
from .. import prepare as prepare_module
from ..prepare import prepare
from ..rows import Rows
from ..settings import DataConfig
from ..shards import describe, open_split, read_manifest
from .prepared import KilledError, files_of, in_both, open_both, pictures


def test_every_picture_is_in_one_split_and_comes_back(config: DataConfig) -> None:
    manifest = prepare(config, show=False)
    assert manifest == read_manifest(config.prepared_dir)
    assert manifest.class_names == ["axe", "bee", "öl"]
    assert (manifest.classes, manifest.shape, manifest.levels) == (3, (6, 5, 1), 256)
    assert manifest.shards > 3
    expected = {
        np.array(Image.open(path)).tobytes(): manifest.class_names.index(path.parent.name)
        for path in pictures(config)
    }
    assert in_both(config) == expected
    train, heldout = open_both(config)
    assert len(train) + len(heldout) == 60
    assert [*manifest.images.values()] == [len(train), len(heldout)]
    assert manifest.brightest == 255
    for split in (train, heldout):
        assert split.labels.dtype == np.int32
        assert split.latents is None
        rows = Rows(split)
        assert len(rows) == len(split)
        for row in (0, len(split) // 2, len(split) - 1):
            np.testing.assert_array_equal(rows[row]["image"], split.pixels.read([row])[0])
            assert rows[row]["image"].dtype == np.uint8
            assert rows[row]["label"] == split.labels[row]
        for row in (-1, len(split)):
            with pytest.raises(IndexError):
                split.pixels[row]


def test_the_demo_images_are_prepared(tmp_path: Path) -> None:
    manifest = prepare(DataConfig(prepared_dir=str(tmp_path / "digits")), show=False)
    assert manifest.images == {"train": 1437, "heldout": 360}
    assert (manifest.levels, manifest.brightest, manifest.classes) == (17, 16, 10)
    assert manifest.shape == (8, 8, 1)
    assert (
        "1,437 images to train on, 360 held out\n8 x 8 x 1, values up to 16 of 16, 10 classes"
        in (describe(manifest))
    )


def test_the_split_is_by_content_whatever_the_names_and_the_order(config: DataConfig) -> None:
    prepare(config, show=False)
    first, second = open_both(config)
    before = {image.tobytes() for image in first.pixels.read(range(len(first)))}
    assert 8 <= len(second) <= 28  # 18 of 60 on the average, with a standard deviation of 3.5
    for number, path in enumerate(pictures(config)):
        path.rename(path.with_name(f"{97 * number % 60:02d}x.png"))
    shutil.rmtree(config.prepared_dir)
    prepare(config, show=False)
    first, _ = open_both(config)
    assert {image.tobytes() for image in first.pixels.read(range(len(first)))} == before
    # A larger share holds out the same images and others.
    shutil.rmtree(config.prepared_dir)
    prepare(replace(config, heldout_fraction=0.5), show=False)
    first, _ = open_both(config)
    assert {image.tobytes() for image in first.pixels.read(range(len(first)))} < before


def test_equal_images_are_counted_and_in_one_split(config: DataConfig) -> None:
    for number, path in enumerate(pictures(config)):
        if number % 2:
            Image.open(path).save(path.with_name(f"{number}again.tif"))
    manifest = prepare(config, show=False)
    assert manifest.repeated == 30
    assert "30 images equal another one" in describe(manifest)
    train, heldout = (
        {image.tobytes() for image in split.pixels.read(range(len(split)))}
        for split in open_both(config)
    )
    assert not train & heldout


def test_two_at_once_work_as_one(
    config: DataConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(config, prepared_dir=config.prepared_dir + "-whole")
    prepare(whole, show=False)
    caplog.set_level("INFO")
    opened, open_source = [], prepare_module.open_source
    monkeypatch.setattr(
        prepare_module, "open_source", lambda given: opened.append(given) or open_source(given)
    )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prepare(config, show=False), range(4)))
    assert files_of(config) == files_of(whole)
    assert all(manifest.complete for manifest in found)
    assert "waiting for it" in caplog.text
    assert len(opened) == 1


def test_a_second_call_does_nothing(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(config, show=False)
    before = {p: p.stat().st_mtime_ns for p in Path(config.prepared_dir).iterdir()}
    monkeypatch.setattr(prepare_module, "open_source", lambda _: pytest.fail("read again"))
    assert prepare(config, show=False) == first
    assert before == {p: p.stat().st_mtime_ns for p in Path(config.prepared_dir).iterdir()}


def test_parts_of_a_killed_process_are_cleared_away(config: DataConfig) -> None:
    litter = Path(config.prepared_dir) / "train-00000.pixels.npy.0123abcd.part"
    litter.parent.mkdir()
    litter.write_bytes(b"half")
    prepare(config, show=False)
    assert not litter.exists()


def test_prepared_images_among_the_pictures_are_not_prepared_again(config: DataConfig) -> None:
    config = replace(config, prepared_dir=str(Path(config.source) / "axe" / "prepared"))
    first = prepare(config, show=False)
    again = replace(config, prepared_dir=str(Path(config.source) / "again"))
    assert prepare(config, show=False).images_sha256 == first.images_sha256
    assert prepare(again, show=False).images_sha256 == first.images_sha256


@pytest.mark.parametrize(
    "change",
    [
        {"size": 4},
        {"colour": True},
        {"image_field": "img"},
        {"label_field": ""},
        {"heldout_fraction": 0.4},
        {"autoencoder": "a:b"},
        {"source": "digits"},
    ],
    ids=str,
)
def test_another_request_for_the_same_folder_is_refused(config: DataConfig, change: dict) -> None:
    prepare(config, show=False)
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=rf"{name}={value!r}") as caught:
        prepare(replace(config, **change), show=False)
    assert f"{name}={getattr(config, name)!r}" in str(caught.value)


def test_other_pictures_for_the_same_folder_are_refused(config: DataConfig, tmp_path: Path) -> None:
    prepare(config, show=False)
    Image.new("L", (6, 5)).save(Path(config.source) / "axe" / "new.png")
    with pytest.raises(UserError, match="files="):
        prepare(config, show=False)
    Path(config.source).rename(tmp_path / "moved")  # as on a machine that got only the shards
    assert prepare(config, show=False).complete
    with pytest.raises(UserError, match=r"picturez.*no files"):  # said before other differences
        prepare(replace(config, source=str(tmp_path / "picturez")), show=False)


def test_a_folder_that_is_a_file_is_refused(config: DataConfig) -> None:
    with pytest.raises(UserError, match="which is a file"):
        prepare(replace(config, prepared_dir=str(pictures(config)[0])), show=False)


def test_a_kill_before_any_write_loses_at_most_that_shard(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):  # what is counted is not counted twice
        (Path(config.source) / "bee" / f"x{number}.png").touch()
    config = replace(config, max_unusable_fraction=0.1)
    whole = replace(config, prepared_dir=config.prepared_dir + "-whole")
    writes, shards, left = 0, 0, -1
    move, write_shard = Path.replace, prepare_module._write_shard

    def counted_replace(self: Path, target: Path) -> Path:
        nonlocal writes, left
        writes, left = writes + 1, left - 1
        if left == 0:
            raise KilledError
        return move(self, target)

    def counted_shard(*args: object) -> None:
        nonlocal shards
        shards += 1
        write_shard(*args)

    monkeypatch.setattr(Path, "replace", counted_replace)
    monkeypatch.setattr(prepare_module, "_write_shard", counted_shard)
    prepare(whole, show=False)
    total, expected, count = writes, files_of(whole), shards
    assert count > 3
    for kill_at in range(1, total + 1, 3):
        left, shards = kill_at, 0
        with pytest.raises(KilledError):
            prepare(config, show=False)
        if (Path(config.prepared_dir) / "manifest.json").exists():
            with pytest.raises(UserError, match="goes on where it stopped"):
                open_split(config.prepared_dir, "train")
        prepare(config, show=False)
        assert shards <= count + 1
        assert files_of(config) == expected
        shutil.rmtree(config.prepared_dir)


def test_a_killed_process_is_gone_on_with(config: DataConfig) -> None:
    package = __package__.rpartition(".")[0]
    script = f"""
import time, {package}.prepare as p, {package}.settings as c
p.SHARD_BYTES, p.BATCH_IMAGES, write = 400, 7, p._write_shard
p._write_shard = lambda *args: (time.sleep(0.05), write(*args))[1]
p.prepare(c.DataConfig(**{vars(config)!r}), show=False)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    second = Path(config.prepared_dir) / "train-00001.pixels.npy"
    while process.poll() is None and not second.exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not read_manifest(config.prepared_dir).complete
    times = {p: p.stat().st_mtime_ns for p in second.parent.glob("train-00000.*")}
    prepare(config, show=False)
    assert times == {p: p.stat().st_mtime_ns for p in second.parent.glob("train-00000.*")}
    whole = replace(config, prepared_dir=config.prepared_dir + "-whole")
    prepare(whole, show=False)
    assert files_of(config) == files_of(whole)


def test_preparing_needs_no_jax() -> None:
    package = __package__.rpartition(".")[0]
    script = f"import sys, {package}.prepare; sys.exit('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0
