"""A path names each of its text files once, whatever they are called, and nothing of ours."""

from pathlib import Path

import pytest

from ...errors import UserError
from ..corpus import find_files
from ..settings import DataConfig
from .test_corpus import TEXTS, read, write_corpus


def test_files_folders_and_globs_name_each_file_once(tmp_path: Path) -> None:
    write_corpus(tmp_path / "b", "txt", TEXTS)
    write_corpus(tmp_path / "a" / "deep", "jsonl", TEXTS)
    (tmp_path / "a" / "picture.png").write_text("not for training")
    names = names_of(tmp_path)
    assert names == sorted(names)
    assert set(names) == {"a/deep/a.jsonl"} | {f"b/{n}.txt" for n in range(len(TEXTS))}
    paths = (tmp_path / p for p in ("b/[01].txt", "b/1.txt", "**/*.jsonl", "b/0.txt"))
    assert names_of(*paths) == ["0.txt", "1.txt", "a.jsonl"]


def names_of(*paths: object, prepared_dir: object = "prepared") -> list[str]:
    given = DataConfig(paths=tuple(map(str, paths)), prepared_dir=str(prepared_dir))
    return list(find_files(given).values())


# What is written, what is given, and the names that are found.
ODD_PATHS = {
    "glob-characters": (["data[1].txt", "data1.txt"], "data[1].txt", ["data[1].txt"]),
    "glob-folder": (["a[1]/x.txt", "a1/y.txt"], "a[1]", ["x.txt"]),
    "new-line": (["a\nb.txt"], ".", ["a\nb.txt"]),
    "no-utf-8": (["a\udcff.txt"], ".", ["a\\xff.txt"]),
}
# What is written, what is given, and words of the refusal.
WRONG_PATHS = {
    "mistyped": (["corpus.txt"], "corpos.txt", ["does not exist", "corpus.txt"]),
    "mistyped-folder": (["corpus/a.txt"], "corpos/a.txt", ["does not exist", "has corpus"]),
    "other-suffix": (
        ["corpus.png", "corpus.txt"],
        "corpus.png",
        ["with ['corpus.png']", ".jsonl.gz"],
    ),
    "glob-of-both": (["corpus.png", "corpus.txt"], "corpus*", ["with ['corpus.png']"]),
    "glob-of-none": (["corpus.txt"], "*.gif", ["no file matches", "corpus.txt"]),
    "empty-folder": (["a/b.png"], "a", ["without files", "b.png"]),
    "no-user": ([], "~nobody-of-this-name/x.txt", ["does not exist"]),
    "long-name": ([], "x" * 5000, ["does not exist"]),
    "no-file": ([], "/dev/zero", ["which is no file"]),
    "hidden": ([".git", "corpus.txt"], "x://y/z", ["does not exist", "has corpus.txt"]),
}


@pytest.mark.parametrize("case", ODD_PATHS)
def test_a_path_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written, given, expected = ODD_PATHS[case]
    for name in written:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("text")
    assert names_of(given) == expected
    assert [d.text for d in read(given)] == ["text"] * len(expected)


@pytest.mark.parametrize("case", WRONG_PATHS)
def test_a_wrong_path_names_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written, given, expected = WRONG_PATHS[case]
    for name in written:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("text")
    with pytest.raises(UserError) as caught:
        names_of(given)
    assert [word for word in (*expected, given, "to do") if word not in str(caught.value)] == []


def test_no_text_at_all_is_not_the_whole_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match="data path ''"):
        names_of("")


@pytest.mark.parametrize("given", [".", "**/*.txt", "loop/../a.txt"])
def test_symbolic_links_to_nowhere_and_in_circles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "self.txt").symlink_to("self.txt")
    (tmp_path / "in" / "gone.txt").symlink_to("nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    if given == "loop/../a.txt":
        monkeypatch.chdir(tmp_path)
        given = "linked/*.txt"  # a link that leads to no folder above it
    assert names_of(given) == ["a.txt"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (".", ["data/a.txt", "texts/b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt"]),
        ("*/*.txt", ["a.txt", "b.txt"]),
        ("runs", []),
        ("runs/*/*.jsonl", []),
        ("data/shards", []),
        ("data/shards/heldout-00000.txt", []),
        ("data/own", []),
        ("runs/x/texts", ["c.txt"]),
    ],
)
def test_what_a_run_or_prepare_wrote_is_no_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "data/a.txt": "corpus",
        "data/shards/heldout-00000.txt": "prepared",
        "data/shards/manifest.json": '{"tokenizer_sha256": "", "shards": []}',
        "data/own/heldout-00000.txt": "prepared, and then its manifest was deleted",
        "runs/x/config.json": '{"identity": {}}',
        "runs/x/metrics.jsonl": '{"text": "metrics"}',
        "runs/x/artifacts/sample.txt": "written by a model",
        "runs/x/texts/c.txt": "corpus, if it is asked for",
        "texts/manifest.json": '["of something else"]',
        "texts/config.json": "{",
        "texts/b.txt": "corpus",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    if expected:
        assert names_of(given, prepared_dir="data/own") == expected
    else:
        with pytest.raises(UserError, match="is a run or prepared, not a corpus"):
            names_of(given, prepared_dir="data/own")
