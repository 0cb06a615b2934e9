"""Documents come out whole, named and on the right side of the split, whatever holds them."""

import gzip
import io
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ...errors import UserError
from .. import corpus
from ..corpus import is_chosen, read_documents
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


def in_parquet(values: list, kind: pa.DataType) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"body": pa.array(values, kind).view(pa.string())}), file)
    return file.getvalue()


DEEP = b'{"body": ' + b"[" * 100_000 + b"\n"
# File, content, and of its documents the texts or, as tuples, the problems.
FAULTS = {
    "latin-1": ("a.txt", "latin é".encode("latin-1"), [("not UTF-8",)]),
    "empty": ("a.txt", b"", [("empty",)]),
    "utf-16": ("a.txt", "one\ntwo".encode("utf-16"), [("UTF-16",)] * 2),
    "utf-16-be": ("a.txt", b"\xfe\xff" + "one".encode("utf-16-be"), [("UTF-16",)]),
    "utf-16-no-bom": ("a.txt", "one".encode("utf-16-le"), [("not text",)]),
    "nul": ("a.txt", b"one\0two", [("not text",)]),
    "bom": ("a.txt", b"\xef\xbb\xbfone\n", ["\ufeffone\n"]),  # kept: every byte is
    "old-mac": ("a.txt", b"one\rtwo\r", ["one\rtwo\r"]),
    "null": ("a.jsonl", b'{"body": null}\n{"body": "x"}\n', [("no text",), "x"]),
    "no-field": ("a.jsonl", b'{"text": "y"}\n{"body": "x"}\n', [("no text",), "x"]),
    "number": ("a.jsonl", b'{"body": 7}\n{"body": "x"}', [("no text",), "x"]),
    "no-record": ("a.jsonl", b'["body"]\n7\n{"body": "x"}\n', [("no text",)] * 2 + ["x"]),
    "cut-line": ("a.jsonl", b'{"body": "x"}\n{"body": \n', ["x", ("not JSON",)]),
    "deep": ("a.jsonl", DEEP + b'{"body": "x"}\n', [("not JSON",), "x"]),
    "long": ("a.jsonl", b'{"body": "%s"}\n{"body": "x"}\n' % (b"y" * 999), [("too long",), "x"]),
    "long-end": ("a.jsonl", b'{"body": "x"}\n' + b"y" * 999, ["x", ("too long",)]),
    "json-bom": ("a.jsonl", b'\xef\xbb\xbf{"body": "x"}\n', ["x"]),
    "json-nul": ("a.jsonl", b'{"body": "\\u0000"}\n{"body": ""}\n', [("not text",), ("empty",)]),
    "json-latin-1": ("a.jsonl", b'{"body": "\xe9"}\n{"body": "x"}\n', [("not UTF-8",), "x"]),
    "surrogate": ("a.jsonl", b'{"body": "\\ud800"}\n{"body": "x"}\n', [("not UTF-8",), "x"]),
    "gzip-null": ("a.jsonl.gz", gzip.compress(b'{"body": null}\n'), [("no text",)]),
    "parquet": (
        "a.parquet",
        in_parquet([b"\xe9", b"x", None, b"", b"\0"], pa.binary()),
        [("not UTF-8",), "x", ("no text",), ("empty",), ("not text",)],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_document_that_cannot_be_used_says_why_and_the_others_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(corpus, "LONGEST_JSON_BYTES", 500 if fault.startswith("long") else 1 << 20)
    name, content, expected = FAULTS[fault]
    (tmp_path / name).write_bytes(content)
    documents = read(tmp_path)
    assert [(d.problem,) if d.problem else d.text for d in documents] == expected
    assert all(d.name.startswith(f"{name}:") and not (d.text and d.problem) for d in documents)


@pytest.mark.parametrize(
    ("name", "data", "hint"),
    [
        ("a.jsonl.gz", gzip.compress(b'{"body": "x"}\n' * 999)[:-9], "EOFError"),
        (
            "a.jsonl.gz",
            b"%s" % gzip.compress(os.urandom(9000).hex().encode())[:4000],
            "a whole file",
        ),
        ("a.jsonl.gz", b"no gzip", "BadGzipFile"),
        ("a.parquet", b"no parquet", "Parquet"),
        ("a.parquet", in_parquet([b"x"], pa.binary())[:-40] + b"PAR1", "a whole file"),
    ],
    ids=["cut-gzip", "broken-gzip", "no-gzip", "no-parquet", "broken-parquet"],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, data: bytes, hint: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=hint) as caught:
        read(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_a_parquet_file_without_the_field_is_refused_with_its_columns(tmp_path: Path) -> None:
    for number, (columns, words) in enumerate(
        [({"text": ["x"], "id": [1]}, "columns text, id"), ({"body": [1]}, "int64")]
    ):
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
        with pytest.raises(UserError, match=f"(?s){words}.*body"):
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


SENTENCES = [f"Sentence {n} says é{'.' * (n % 3)} " for n in range(40_000)]
# One line each: where it is cut, and what a piece ends with.
ONE_LINE = {
    "old-mac": ("".join(f"line {n} é\r" for n in range(40_000)), "\r"),
    "prose": ("".join(SENTENCES), ". "),
    "chinese": ("".join(f"第{n}句話。" for n in range(60_000)), "。"),
    "words": ("".join(f"word{n} " for n in range(90_000)), " "),
    "nothing": ("".join(chr(0x4E00 + n * n % 20_011) for n in range(300_000)), ""),
}


@pytest.mark.parametrize("case", ONE_LINE)
@pytest.mark.parametrize("lone", [True, False])
def test_a_text_of_one_line_is_cut_where_it_makes_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, lone: bool
) -> None:
    monkeypatch.setattr(corpus, "TEXT_PIECE_BYTES", 20_000)
    text, end = ONE_LINE[case]
    text = "A first line.\n" + text + "\nand a last."
    (tmp_path / "a.txt").write_bytes(text.encode())
    if not lone:
        (tmp_path / "b.txt").write_text("more")
    documents = [d for d in read(tmp_path, fraction=0.1) if d.name.startswith("a")]
    assert "".join(document.text for document in documents) == text
    sizes = [len(document.text.encode()) for document in documents]
    most = len(text.encode()) // 100 + 1 if lone else 20_000
    assert max(sizes) <= most + 20
    assert len(documents) >= (90 if lone else 20)
    assert all(document.text.endswith(end) for document in documents[1:-2])
    assert {document.split for document in documents} == (
        {"train", "heldout"} if lone else {documents[0].split}
    )


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.binary(max_size=400), st.integers(1, 30), st.integers(1, 40))
def test_pieces_make_up_the_file(data: bytes, most: int, longest: int) -> None:
    data = data.replace(b"\x07", b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "LONG_LINE_PIECES", 1)
        patch.setattr(corpus, "LONG_LINE_BYTES", longest)
        pieces = list(corpus._pieces(io.BufferedReader(io.BytesIO(data)), most))
    assert b"".join(pieces) == data
    assert all(pieces)


def test_ordinary_lines_are_cut_as_they_always_were() -> None:
    # Else a corpus that is prepared again would be another one, and its runs would not go on.
    data = b"".join(b"x" * (n * 37 % 90) + b"\n" for n in range(500))
    for most in (1, 50, 300, 4000):
        lines = io.BufferedReader(io.BytesIO(data))
        before = list(iter(lambda most=most, lines=lines: b"".join(lines.readlines(most)), b""))
        assert list(corpus._pieces(io.BufferedReader(io.BytesIO(data)), most)) == before


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
