"""Rows are found in any order, and a damaged shard or manifest is named."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ...errors import UserError
from ..prepare import prepare
from ..settings import DataConfig
from ..shards import _stack, manifest_file, open_split, read_manifest
from .prepared import pictures


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
