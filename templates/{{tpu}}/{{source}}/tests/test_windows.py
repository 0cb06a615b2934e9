"""Windows are the bytes of the files, each once; what cannot be read is refused."""

import os
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..errors import UserError
from ..windows import Text, Windows, find_files, split
from .small import CONFIG, write_text


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.data())
def test_any_range_is_that_of_all_files_joined(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("text")
    for i, content in enumerate(contents):
        (folder / str(i)).write_bytes(content)
    text, joined = Text([folder / str(i) for i in range(len(contents))]), b"".join(contents)
    start = data.draw(st.integers(0, len(joined)))
    stop = data.draw(st.integers(start, len(joined)))
    assert text.read(start, stop).tobytes() == joined[start:stop]


def test_each_byte_but_the_first_is_a_target_once() -> None:
    class Counting(Text):
        def __init__(self) -> None: ...

        def read(self, start: int, stop: int) -> np.ndarray:
            return np.arange(start, stop).astype(np.uint8)

    rows = Windows(Counting(), 10, 100, 9)
    targets = np.concatenate([rows[row][1:] for row in range(len(rows))])
    np.testing.assert_array_equal(targets, np.arange(11, 11 + 81))
    assert len(rows) == 9  # the last 8 bytes make no row


def test_files_are_found_by_file_folder_and_glob_in_one_order(tmp_path: Path) -> None:
    write_text(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "[odd] name").write_text("x")
    for hidden in (".hidden", ".git"):
        (tmp_path / "below" / hidden).mkdir()
        (tmp_path / "below" / hidden / "file").write_text("x")
    found = find_files((str(tmp_path),))
    assert len(found) == 21
    assert found == find_files((f"{tmp_path}/*.txt", str(tmp_path / "below" / "[odd] name")))
    assert found != sorted(found), "the last files have to be a sample of all"
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert [f.name for f in find_files((str(moved),))] == [f.name for f in found]


def test_the_library_of_python_is_the_default() -> None:
    found = find_files(())
    assert Path(sysconfig.get_paths()["stdlib"]) / "argparse.py" in found
    assert not [file for file in found if file.name.startswith("_sysconfigdata")]
    assert Text(found).starts[-1] > 1e6


def test_the_hash_is_of_every_byte(tmp_path: Path) -> None:
    paths = (write_text(tmp_path),)
    before = Text(find_files(paths)).sha256()
    assert Text(find_files(paths)).sha256() == before
    content = bytearray((tmp_path / "3.txt").read_bytes())
    content[7] ^= 1
    (tmp_path / "3.txt").write_bytes(content)
    assert Text(find_files(paths)).sha256() != before


def test_held_out_bytes_are_not_trained_on(tmp_path: Path) -> None:
    data = replace(CONFIG.data, paths=(write_text(tmp_path),))
    text = Text(find_files(data.paths))
    train, heldout = split(data, text)
    last = train.start + len(train) * data.seq_len  # the last target
    assert last < heldout.start
    assert len(heldout) / (len(train) + len(heldout)) == pytest.approx(0.2, abs=0.02)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)paths .*nothing\*: no file there.*correct it"):
        find_files((str(tmp_path / "nothing*"),))
    (tmp_path / "short").write_bytes(b"x" * 30)
    text = Text(find_files((str(tmp_path / "short"),)))
    with pytest.raises(UserError, match=r"(?s)6 held-out bytes of 30.*more than a row of 32"):
        split(CONFIG.data, text)
    os.truncate(tmp_path / "short", 10)
    with pytest.raises(UserError, match=r"(?s)short, which became shorter.*during a run"):
        text.read(5, 15)
