"""Shards hold the images exactly, survive a kill at any point, and never pass when damaged."""

import itertools
import json
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
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ...errors import UserError
from .. import prepare as prepare_module
from ..prepare import prepare
from ..rows import Rows
from ..settings import DataConfig
from ..shards import Split, _stack, describe, manifest_file, open_split, read_manifest

SPLITS = ("train", "heldout")


def files_of(config: DataConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(config.prepared_dir).iterdir()}


def open_both(config: DataConfig) -> list[Split]:
    return [open_split(config.prepared_dir, name) for name in SPLITS]


def pictures(config: DataConfig) -> list[Path]:
    return sorted(Path(config.source).rglob("*.png"))


def in_both(config: DataConfig) -> dict[bytes, int]:
    """Pixels -> label of every prepared image."""
    rows = [split.pixels.read(range(len(split))) for split in open_both(config)]
    labels = [split.labels for split in open_both(config)]
    pairs = zip(np.concatenate(rows), np.concatenate(labels).tolist(), strict=True)
    return {image.tobytes(): label for image, label in pairs}


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


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_rows_are_found_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: object
) -> None:
    parts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    folder, files, sizes = tmp_path_factory.mktemp("stack"), [], np.cumsum([0, *parts])
    every = np.arange(2 * sizes[-1]).reshape(-1, 2)
    for start, end in itertools.pairwise(sizes):
        np.save(folder / f"{start}.npy", every[start:end])
        files.append((folder / f"{start}.npy", "sha"))
    stack = _stack(tuple(files))
    rows = data.draw(st.lists(st.integers(0, int(sizes[-1]) - 1), min_size=1))
    np.testing.assert_array_equal(stack.read(rows), every[rows])
    assert len(stack) == sizes[-1]


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


# What is in the folder beside sixty pictures of 6 x 5, in three classes -> words of the report.
FAULTS: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "cut": (
        [("axe/x.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")],
        "left out 1 of 61 images; damaged: 1 (axe/x.png)",
    ),
    "empty": (
        [(f"axe/x{n}\n.png", b"") for n in range(6)],
        r"left out 6 of 66 images; not an image: 6 ('axe/x0\n.png', 'axe/x1\n.png', "
        r"'axe/x2\n.png', 'axe/x3\n.png', 'axe/x4\n.png', ...)",
    ),
    "loose": ([("a.png", b"")], "no label: 1 (a.png)"),
    "other": ([("a.txt", b""), ("axe/.DS_Store", b"")], "not read: .txt file: 1 (a.txt); hidden"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_unusable_pictures_are_counted_named_and_refused(config: DataConfig, case: str) -> None:
    beside, words = FAULTS[case]
    for name, content in beside:
        (Path(config.source) / name).write_bytes(content)
    manifest = prepare(replace(config, max_unusable_fraction=0.1), show=False)
    assert words in describe(manifest)
    assert manifest.examples == 60 + (0 if case == "other" else len(beside))
    assert sum(manifest.images.values()) == 60
    # What was prepared once is opened without a word: its runs go on.
    assert prepare(replace(config, max_unusable_fraction=0.0), show=False).complete
    shutil.rmtree(config.prepared_dir)
    if case == "other":
        prepare(replace(config, max_unusable_fraction=0.0), show=False)
        return
    share = len(beside) / (60 + len(beside))
    prepare(replace(config, max_unusable_fraction=share), show=False)
    shutil.rmtree(config.prepared_dir)
    with pytest.raises(UserError, match=r"--data.max-unusable-fraction") as caught:
        prepare(replace(config, max_unusable_fraction=0.99 * share), show=False)
    assert words in str(caught.value)
    assert os.listdir(config.prepared_dir) == [".lock"]


def test_what_is_done_to_pictures_is_said(config: DataConfig) -> None:
    settings = replace(config, size=7, colour=True)
    manifest = prepare(settings, show=False)
    assert manifest.shape == (7, 7, 3)
    names = "(axe/00.png, axe/03.png, axe/06.png, axe/09.png, axe/12.png, ...)"
    expected = f"changed: grey to colour: 60 {names}; enlarged: 60 {names}"
    assert expected in describe(manifest)


def test_images_of_two_sizes_are_refused_with_both(config: DataConfig) -> None:
    Image.new("L", (9, 8)).save(Path(config.source) / "bee" / "odd.png")
    with pytest.raises(
        UserError, match=r"(?s)bee/odd.png with 8 x 9 pixels.*6 x 5 pixels.*--data.size 5"
    ):
        prepare(config, show=False)
    assert os.listdir(config.prepared_dir) == [".lock"]
    assert prepare(replace(config, size=5), show=False).shape == (5, 5, 1)


def test_labels_of_two_types_are_refused(config: DataConfig) -> None:
    folder = Path(config.source)
    np.save(folder / "axe" / "more.npy", np.zeros((1, 6, 5), np.uint8))
    with pytest.raises(UserError, match=r"(?s)more.npy:0 .*type NoneType.*--data.label-field"):
        prepare(config, show=False)
    assert prepare(replace(config, label_field=""), show=False).classes == 0


@pytest.mark.parametrize(
    ("labels", "classes"), [([0] * 9, 1), ([3] * 9, 4), (["b"] * 8 + ["a"], 2), (None, 0)]
)
def test_classes_are_counted(tmp_path: Path, labels: list | None, classes: int) -> None:
    given = {} if labels is None else {"y": np.array(labels)}
    images = np.arange(9 * 4, dtype=np.uint8).reshape(9, 2, 2)
    np.savez(tmp_path / "a.npz", x=images, **given)
    config = DataConfig(source=str(tmp_path / "a.npz"), prepared_dir=str(tmp_path / "prepared"))
    manifest = prepare(replace(config, heldout_fraction=0.5), show=False)
    assert manifest.classes == classes
    assert manifest.class_names == (["b", "a"] if classes == 2 else [])
    assert f"{classes or 'no'} classes" in describe(manifest)
    expected = dict(zip(map(np.ndarray.tobytes, images), labels or [0] * 9, strict=True))
    names = {"b": 0, "a": 1}
    assert in_both(config) == {key: names.get(label, label) for key, label in expected.items()}


def test_one_image_is_too_few(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 2, 2), np.uint8))
    config = DataConfig(source=str(tmp_path / "a.npy"), prepared_dir=str(tmp_path / "prepared"))
    with pytest.raises(UserError, match=r"(?s)left out 0 of 1 images.*--data.heldout-fraction"):
        prepare(config, show=False)


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


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the code may catch it."""


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


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
@pytest.mark.parametrize("name", ["train-00001.pixels.npy", "heldout-00002.labels.npy"])
def test_a_damaged_shard_is_named(config: DataConfig, name: str, damage: str) -> None:
    manifest = prepare(config, show=False)
    path = Path(config.prepared_dir) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flip" else data[:-1])
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=manifest.files[name]) as caught:
        open_split(config.prepared_dir, name.split("-")[0])
    assert str(path) in str(caught.value)


def test_a_damaged_manifest_is_named(config: DataConfig) -> None:
    prepare(config, show=False)
    path = Path(config.prepared_dir) / "manifest.json"
    whole = path.read_text()
    tokens = json.dumps({"format": 1, "request": {}, "vocab_size": 9, "latents": None, "shape": []})
    for text in (whole[:-9], whole.replace('"format": 1', '"format": 99'), "{}", "[]", tokens):
        path.write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json"):
            read_manifest(path.parent)
    path.unlink()
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_split(path.parent, "train")


def test_the_hash_of_the_images_is_of_pixels_and_labels(config: DataConfig) -> None:
    hashes = {prepare(config, show=False).images_sha256}
    settings = replace(config, prepared_dir=config.prepared_dir + "2", label_field="")
    hashes.add(prepare(settings, show=False).images_sha256)
    shutil.rmtree(settings.prepared_dir)
    assert prepare(settings, show=False).images_sha256 in hashes
    Image.new("L", (5, 6)).save(pictures(config)[-1])
    settings = replace(config, prepared_dir=config.prepared_dir + "3")
    assert prepare(settings, show=False).images_sha256 not in hashes
    assert len(hashes) == 2


def test_sampling_needs_the_manifest_alone(config: DataConfig, tmp_path: Path) -> None:
    prepare(config, show=False)
    ((name, content),) = manifest_file(config.prepared_dir).items()
    (tmp_path / name).write_bytes(content)
    bare = read_manifest(tmp_path)
    assert (bare.class_names, bare.shape, bare.files) == (["axe", "bee", "öl"], (6, 5, 1), {})
    with pytest.raises(UserError, match="all shards"):
        open_split(tmp_path, "train")


def test_shards_made_anew_in_the_same_process_are_read_anew(config: DataConfig) -> None:
    prepare(config, show=False)
    before = open_split(config.prepared_dir, "train").pixels[0].copy()
    shutil.rmtree(config.prepared_dir)
    for path in pictures(config):
        Image.eval(Image.open(path), lambda value: 255 - value).save(path)
    prepare(config, show=False)
    assert not np.array_equal(open_split(config.prepared_dir, "train").pixels[0], before)


def test_preparing_needs_no_jax() -> None:
    package = __package__.rpartition(".")[0]
    script = f"import sys, {package}.prepare; sys.exit('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0
