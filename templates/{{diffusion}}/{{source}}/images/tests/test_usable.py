"""What cannot be used is counted, named, and refused where it is more than a share."""

import contextlib
import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ...errors import UserError
from ..prepare import check_usable, prepare
from ..settings import DataConfig, ImageConfig
from ..shards import describe, read_manifest
from .prepared import in_both

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
    assert all(len(names) <= 5 for _, names in manifest.unusable.values())  # it stays small
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


@pytest.mark.parametrize(("code", "stays"), [(errno.EIO, True), (errno.EACCES, False)])
def test_a_disk_that_is_away_costs_nothing_that_is_done(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, code: int, stays: bool
) -> None:
    random = np.random.default_rng(1)
    for name in "ab":
        np.save(Path(config.source) / f"{name}.npy", random.integers(0, 256, (30, 6, 5), np.uint8))
    for picture in Path(config.source).rglob("*.png"):
        picture.unlink()
    settings, load = replace(config, label_field=""), np.load

    def away(path: Path, **options: object) -> np.ndarray:
        if Path(path).name == "b.npy":
            raise OSError(code, os.strerror(code))
        return load(path, **options)

    with monkeypatch.context() as context:
        context.setattr(np, "load", away)
        with pytest.raises(UserError, match=rf"b\.npy.*{os.strerror(code)}"):
            prepare(settings, show=False)
    if not stays:  # the file is to be replaced, and the folder then would be that of other files
        assert os.listdir(config.prepared_dir) == [".lock"]
        return
    kept = read_manifest(config.prepared_dir)
    assert 0 < kept.examples <= 30
    assert not kept.complete
    whole = prepare(settings, show=False)
    assert set(kept.files.items()) <= set(whole.files.items())
    assert sum(whole.images.values()) == 60


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
    assert manifest.empty == ((0, 1, 2) if classes == 4 else ())
    assert ("classes without images: 0, 1, 2" in describe(manifest)) == (classes == 4)
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


@pytest.mark.parametrize(
    ("train", "heldout", "lost", "refused"),
    [
        (2, 2, 0, ""),
        (99, 2, 1, ""),
        (99, 1, 0, "99 images to train on, 1 held out"),
        (1, 99, 0, "1 images to train on, 99 held out"),
        (0, 0, 0, "0 images to train on"),
        (50, 48, 2, "left out 2 of 100 images"),
    ],
)
def test_what_is_too_little_or_too_damaged_is_refused(
    train: int, heldout: int, lost: int, refused: str
) -> None:
    unusable = {"damaged": [lost, ["a.png"]]} if lost else {}
    with pytest.raises(UserError, match=refused) if refused else contextlib.nullcontext():
        check_usable(ImageConfig(), {"train": train, "heldout": heldout}, unusable)
