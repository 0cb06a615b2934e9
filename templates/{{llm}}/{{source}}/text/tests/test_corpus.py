"""Documents come out whole, named and on the right side of the split, whatever holds them."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ...errors import UserError
from ..corpus import find_files, is_chosen, read_documents
from ..settings import DataConfig

TEXTS = ["plain\n", "naïve — 漢字 🙂\r\n\ttabs", "no line end", " \n", "", "twice", "twice"]


def write_corpus(folder: Path, kind: str, texts: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"id": 1, "body": text}) + "\n" for text in texts).encode()
    if kind == "txt":
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_bytes(text.encode())
    elif kind == "jsonl":
        (folder / "a.jsonl").write_bytes(lines + b"\n")
    elif kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    else:
        pq.write_table(pa.table({"body": texts, "n": range(len(texts))}), folder / "a.parquet")


def read(*paths: object, fraction: float = 0.5) -> list:
    names = tuple(map(str, paths))
    return list(
        read_documents(DataConfig(paths=names, text_field="body", heldout_fraction=fraction))
    )


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "parquet"])
def test_every_format_gives_the_texts_byte_for_byte(tmp_path: Path, kind: str) -> None:
    write_corpus(tmp_path, kind, TEXTS)
    documents = read(tmp_path)
    assert [document.text for document in documents] == TEXTS
    assert [document.problem for document in documents] == ["", "", "", "", "empty", "", ""]
    assert len({document.name for document in documents}) == len(TEXTS)
    disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sum(document.disk_bytes for document in documents) == pytest.approx(disk, abs=8)


def test_what_is_not_utf8_comes_out_as_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("latin é".encode("latin-1"))
    (tmp_path / "b.jsonl").write_bytes(b'{"body": "\xe9"}\n{"body": "\\ud800"}\n{"body": "good"}\n')
    strings = pa.array([b"\xe9", b"good", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"body": strings}), tmp_path / "c.parquet")
    found = [(document.name, document.text, document.problem) for document in read(tmp_path)]
    assert found == [
        ("a.txt:0", "", "not UTF-8"),
        ("b.jsonl:1", "", "not UTF-8"),
        ("b.jsonl:2", "", "not UTF-8"),
        ("b.jsonl:3", "good", ""),
        ("c.parquet:0", "", "not UTF-8"),
        ("c.parquet:1", "good", ""),
        ("c.parquet:2", "", "empty"),
    ]


def test_files_folders_and_globs_name_each_file_once(tmp_path: Path) -> None:
    write_corpus(tmp_path / "b", "txt", TEXTS)
    write_corpus(tmp_path / "a" / "deep", "jsonl", TEXTS)
    (tmp_path / "a" / "picture.png").write_text("not for training")
    names = list(find_files((str(tmp_path),)).values())
    assert names == sorted(names)
    assert set(names) == {"a/deep/a.jsonl"} | {f"b/{n}.txt" for n in range(len(TEXTS))}
    paths = tuple(str(tmp_path / p) for p in ("b/[01].txt", "b/1.txt", "**/*.jsonl", "b/0.txt"))
    assert list(find_files(paths).values()) == ["0.txt", "1.txt", "a.jsonl"]


@pytest.mark.parametrize("given", ["corpos.txt", "corpus.png", "*.gif", "corpus*"])
def test_a_wrong_path_names_what_is_near(tmp_path: Path, given: str) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    (tmp_path / "corpus.png").write_text("text")
    with pytest.raises(UserError, match=r"corpus\.txt") as caught:
        find_files((str(tmp_path / given),))
    assert given in str(caught.value)
    assert ".jsonl.gz" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "hint"),
    [
        ("a.jsonl", b'{"body": "x"}\n{"text": "x"}\n', "after a.jsonl:1"),
        ("a.jsonl", b'{"body": "x"}\n{"body": \n', "after a.jsonl:1"),
        ("a.jsonl", b'{"body": 7}\n', "after the start"),
        ("a.jsonl", b"[1]\n", "after the start"),
        ("a.jsonl.gz", gzip.compress(b'{"body": "x"}\n' * 999)[:-9], "EOFError"),
        ("a.jsonl.gz", b"no gzip", "BadGzipFile"),
        ("a.parquet", b"no parquet", "Parquet"),
    ],
    ids=["no-field", "cut-line", "number", "list", "cut-gzip", "no-gzip", "no-parquet"],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, data: bytes, hint: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=hint) as caught:
        read(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_a_parquet_file_without_the_field_is_refused(tmp_path: Path) -> None:
    for number, columns in enumerate(({"text": ["x"]}, {"body": [1]})):
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
        with pytest.raises(UserError, match="body"):
            read(tmp_path / f"{number}.parquet")


def test_the_split_follows_the_text_and_nothing_else(tmp_path: Path) -> None:
    texts = [f"document {n}" for n in range(400)]
    write_corpus(tmp_path / "one", "jsonl", texts)
    write_corpus(tmp_path / "two", "parquet", texts[::-1])
    one, two = (
        {d.text: d.split for d in read(tmp_path / p, fraction=0.25)} for p in ("one", "two")
    )
    assert one == two
    assert Counter(one.values())["heldout"] == pytest.approx(100, abs=30)
    fewer = {d.text for d in read(tmp_path / "one", fraction=0.1) if d.split == "heldout"}
    assert fewer < {text for text, split in one.items() if split == "heldout"}


def test_is_chosen_is_the_same_on_every_machine() -> None:
    # SHA-256 of nothing is e3b0c442...: 0.889416 of the range.
    assert is_chosen(b"", 0.88942)
    assert not is_chosen(b"", 0.88941)


def test_a_lone_text_is_cut_at_line_ends_so_that_some_is_held_out(tmp_path: Path) -> None:
    text = "".join(f"line {n} é\n" for n in range(5000))
    (tmp_path / "a.txt").write_bytes(text.encode())
    documents = read(tmp_path / "a.txt", fraction=0.1)
    assert "".join(document.text for document in documents) == text
    assert all(document.text.endswith("\n") for document in documents)
    assert len(documents) >= 90
    assert {document.split for document in documents} == {"train", "heldout"}


def test_pieces_of_one_file_among_others_stay_together(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"{number} says something.\n" * 40_000)
    documents = read(tmp_path)
    sides = {(document.name.partition(":")[0], document.split) for document in documents}
    assert len(documents) >= 16
    assert len(sides) == 8
    assert {split for _, split in sides} == {"train", "heldout"}


def test_the_standard_library_is_split_by_top_level_module() -> None:
    documents = list(read_documents(DataConfig()))
    assert 5e6 < sum(len(document.text) for document in documents) < 30e6
    modules = {(d.name.split("/")[0].removesuffix(".py"), d.split) for d in documents}
    assert len(modules) == len({module for module, _ in modules})
    assert {"json", "asyncio", "argparse"} < {module for module, _ in modules}
    heldout = sum(len(d.text) for d in documents if d.split == "heldout")
    assert 0.02 < heldout / sum(len(d.text) for d in documents) < 0.1
    folders = {part for document in documents for part in document.name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idlelib", "encodings", "site-packages", "__pycache__"}
