"""Artifacts come back as they were, in order; a resume cuts what it will write again."""

import numpy as np
import pytest
from PIL import Image

from .. import artifacts, store

GRADIENT = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


def test_text_and_image_are_files_of_their_name_and_step(tmp_path):
    text = artifacts.write(tmp_path, 70, "sample", "Es war\n  <einmal>")
    image = artifacts.write(tmp_path, 70, "page", GRADIENT)
    assert text == tmp_path / "artifacts" / "sample-00000070.txt"
    assert text.read_text("utf-8") == "Es war\n  <einmal>"
    assert image.name == "page-00000070.png"
    np.testing.assert_array_equal(np.asarray(Image.open(image)), GRADIENT)


@pytest.mark.parametrize(
    "wrong", [GRADIENT[..., 0], GRADIENT[..., :2], GRADIENT[None], GRADIENT / 255]
)
def test_another_array_is_refused_by_name(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"'page'.*uint8\[height, width, 3\]"):
        artifacts.write(tmp_path, 1, "page", wrong)
    assert artifacts.by_name(tmp_path) == {}


def test_files_are_found_by_plain_name_with_the_newest_last(tmp_path):
    assert artifacts.by_name(tmp_path) == {}
    for step in (100_000_000, 5, 99_999_999):
        artifacts.write(tmp_path, step, "../a-12 b", str(step))
    artifacts.write(tmp_path, 7, "a", "")
    (tmp_path / "artifacts" / "notes.txt").touch()  # the user's own
    found = artifacts.by_name(tmp_path)
    assert set(found) == {".._a-12_b", "a"}
    assert [path.read_text() for path in found[".._a-12_b"]] == ["5", "99999999", "100000000"]
    assert [artifacts.step_of(path) for path in found["a"]] == [7]


def test_cut_drops_what_is_beyond_the_step_and_nothing_else(tmp_path):
    artifacts.cut(tmp_path, 3)
    for step in (1, 2, 3):
        artifacts.write(tmp_path, step, "page", GRADIENT)
        artifacts.write(tmp_path, step, "text", "x")
    (tmp_path / "artifacts" / "notes-4.txt").touch()
    artifacts.cut(tmp_path, 2)
    assert store.names(tmp_path / "artifacts") == [
        "notes-4.txt",
        "page-00000001.png",
        "page-00000002.png",
        "text-00000001.txt",
        "text-00000002.txt",
    ]
