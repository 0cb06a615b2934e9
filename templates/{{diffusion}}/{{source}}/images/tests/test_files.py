"""A source names each of its files once, whatever they are called, and nothing of ours."""

import os
from pathlib import Path

import pytest

from ...errors import UserError
from ...training.given import tell
from ..files import find_files
from ..settings import ImageConfig
from ..sources import identify
from .test_sources import png, write_folder


def found(source: object, prepared_dir: object = "prepared") -> tuple[list[str], str]:
    config = ImageConfig(source=str(source), prepared_dir=str(prepared_dir))
    names, unread = find_files(config)
    return list(names.values()), tell(unread)


def test_what_is_no_source_is_counted_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "b" / "labels.CSV").touch()
    (tmp_path / "b" / "._1.png").touch()
    (tmp_path / "README").touch()
    (tmp_path / "b" / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    names, unread = found(tmp_path)
    assert names == ["b/1.png", "b/deep/0.PNG", "é/x.jpg.png", "é/y.png", "é/z.png"]
    assert unread == (
        "file without a suffix: 1 (README); hidden file: 1 (b/._1.png); "
        "no regular file: 2 (b/gone.png, b/pipe.png); .csv file: 1 (b/labels.CSV)"
    )


def test_runs_and_preparations_are_not_read(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for folder, name, content in (
        ("mine", "x", "{}"),
        ("other", "manifest.json", '{"images_sha256": ""}'),
        ("run", "config.json", '{"identity": {}}'),
        ("foreign", "manifest.json", "[["),
        (".git", "x", ""),
    ):
        (tmp_path / folder / "plots").mkdir(parents=True)
        (tmp_path / folder / "plots" / "a.png").write_bytes(png(0))
        (tmp_path / folder / name).write_text(content)
    (tmp_path / "loop").symlink_to(tmp_path)
    names, unread = found(tmp_path, tmp_path / "mine")
    assert [name for name in names if "plots" in name] == ["foreign/plots/a.png"]
    assert "prepared folder: 2" in unread
    assert f"hidden folder: 1 ({tmp_path / '.git'})" in unread
    assert f"folder of a run: 1 ({tmp_path / 'run'})" in unread
    assert f"link to a folder above: 1 ({tmp_path / 'loop'})" in unread
    assert found(tmp_path / "*", tmp_path / "mine")[0] == names
    for folder in ("mine", "other", "run"):
        with pytest.raises(UserError, match=r"prepared folder|folder of a run"):
            found(tmp_path / folder, tmp_path / "mine")
    # A folder in a run can be given, and one that is hidden.
    assert found(tmp_path / "run" / "plots")[0] == ["a.png"]
    assert found(tmp_path / ".git")[0] == ["plots/a.png"]


def test_linked_folders_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "there")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "class").symlink_to(tmp_path / "there" / "é")
    assert found(tmp_path / "here")[0] == ["class/x.jpg.png", "class/y.png", "class/z.png"]
    (tmp_path / "root").symlink_to(tmp_path / "there")
    assert len(found(tmp_path / "root")[0]) == 5


def test_a_folder_that_cannot_be_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path)
    scan = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    names, unread = found(tmp_path)
    assert len(names) == 4
    assert unread == f"Permission denied: 1 ({tmp_path / 'b' / 'deep'})"


# What is written, what is given, and the names that are found or, in a tuple, words of the refusal.
PATHS: dict[str, tuple[list[str], str, list[str] | tuple[str, ...]]] = {
    "glob-characters": (["a[1].png", "a1.png"], "a[1].png", ["a[1].png"]),
    "glob-folder": (["a[1]/x.png", "a1/y.png"], "a[1]", ["x.png"]),
    "no-utf-8": (["a\udcff.png"], ".", ["a\\xff.png"]),
    "new-line": (["a\nb.png"], ".", ["a\nb.png"]),
    "mistyped": (["pictures.npy"], "pictured.npy", ("no files", "has pictures.npy")),
    "mistyped-folder": (["pictures/a.png"], "pictured/a.png", ("no files", "has pictures")),
    "mistyped-digits": ([], "digit", ("no files", "digits, mnist, hf:NAME")),
    "other-suffix": (["a.heic", "a.png"], "a.heic", (".heic file: 1 (a.heic)", ".parquet")),
    "empty-folder": (["a/.x", "b.png"], "a", ("hidden file: 1",)),
    "no-glob": (["a.png"], "*.gif", ("no files", "has a.png")),
    "no-user": ([], "~nobody-of-this-name/x.png", ("no files",)),
    "long-name": ([], "x" * 5000, ("no files",)),
    "no-file": ([], "/dev/zero", ("file without a suffix: 1 (zero)",)),
}


@pytest.mark.parametrize("case", PATHS)
def test_a_path_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written, given, expected = PATHS[case]
    for name in written:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if isinstance(expected, list):
        assert found(given)[0] == expected
        return
    with pytest.raises(UserError) as caught:
        found(given)
    assert not [words for words in expected if words not in str(caught.value)]
    str(caught.value).encode()


def test_other_files_are_another_source(tmp_path: Path) -> None:
    write_folder(tmp_path)
    config = ImageConfig(source=str(tmp_path))
    before = identify(config)
    (tmp_path / "b" / "note.txt").touch()
    assert identify(config) == before
    (tmp_path / "b" / "1.png").rename(tmp_path / "b" / "2.png")
    renamed = identify(config)
    (tmp_path / "b" / "2.png").write_bytes(png(0) + b"x")
    assert len({before, renamed, identify(config)}) == 3
    assert identify(ImageConfig()) == "digits"
