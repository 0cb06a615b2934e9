"""Prepared images on disk: their manifest, its verification, and reading them.

A shard is, for each split, `*.pixels.npy` (uint8 [N, H, W, C]), `*.labels.npy` (int32 [N]) and,
with an autoencoder, `*.latents.npy` (float16 [N, h, w, c]). Decides nothing of what they hold.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int32, Shaped

from ..records.mirror import local
from ..training.given import Counts, tell, tell_left_out, tell_names
from ..training.prepared import MANIFEST, check_complete, check_files, map_array, parse, put

FORMAT = 1  # of shards and manifest

type SplitName = Literal["train", "heldout"]


@dataclass(frozen=True)
class Latents:
    """What is known of the latents of a folder."""

    shape: tuple[int, ...]  # height, width, channels
    mean: tuple[float, ...]  # of each channel over the images to train on
    std: tuple[float, ...]
    probe: tuple[float, ...]  # some of what the encoder makes of a fixed input


@dataclass
class Manifest:
    """What `prepare` was asked for and what it made; it fills one in as it goes on."""

    request: dict[str, Any]
    levels: int  # pixels are 0 to levels - 1
    class_names: list[str]  # by label; [] where classes have numbers only
    classes: int = 0  # 0 = unconditional
    label_type: str = ""  # of all labels: NoneType, int or str
    shape: tuple[int, ...] = ()  # height, width, channels
    brightest: int = 0  # value of a pixel
    examples: int = 0  # of the source that were read, in its order
    shards: int = 0
    images: dict[str, int] = field(default_factory=lambda: {"train": 0, "heldout": 0})
    repeated: int = 0  # images that equal an earlier one; both are in one split
    unusable: Counts = field(default_factory=dict)  # images that were left out
    changed: Counts = field(default_factory=dict)  # what was done to images
    unread: Counts = field(default_factory=dict)  # files that are no images
    empty: tuple[int, ...] = ()  # classes without an image to train on
    latents: Latents | None = None
    files: dict[str, str] = field(default_factory=dict)  # name -> SHA-256
    images_sha256: str = ""  # of names and hashes of the files
    complete: bool = False
    format: int = FORMAT


@dataclass(frozen=True)
class Stack:
    """The rows of several arrays, one after the other, memory-mapped."""

    files: tuple[tuple[Path, str], ...]  # with the SHA-256 of each
    starts: Shaped[np.ndarray, " files_end"]  # first row of each, then the end
    shape: tuple[int, ...]  # of a row

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> Shaped[np.ndarray, "..."]:
        """One row; IndexError outside of [0, len). Safe from any thread."""
        at = int(np.searchsorted(self.starts, row, "right")) - 1
        return map_array(*self.files[at])[row - int(self.starts[at])]

    def read(
        self, rows: Iterable[int] | Int[np.ndarray, " rows"]
    ) -> Shaped[np.ndarray, "rows ..."]:
        """Some rows in the order asked for, in memory; at least one."""
        return np.stack([self[int(row)] for row in rows])


@dataclass(frozen=True)
class Split:
    """The images of one split."""

    pixels: Stack  # uint8 [N, H, W, C]
    labels: Int32[np.ndarray, " N"]  # 0 without classes
    latents: Stack | None  # float16 [N, h, w, c], as the encoder gave them

    def __len__(self) -> int:
        return len(self.labels)


def add(folder: Path, manifest: Manifest, name: str, rows: Shaped[np.ndarray, "..."]) -> None:
    """Put a file into a folder, whole or not at all, and into the manifest in memory."""
    manifest.files[name] = put(folder / name, rows)


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a prepared folder, complete or not."""

    def make(plain: dict[str, Any]) -> Manifest:
        latents = plain["latents"] and Latents(**{k: (*v,) for k, v in plain["latents"].items()})
        tuples = {name: (*plain[name],) for name in ("shape", "empty")}
        return Manifest(**plain | tuples | {"latents": latents})

    return parse(folder, FORMAT, make)


def open_split(folder: str | Path, split: SplitName) -> Split:
    """Memory-map a split, once the SHA-256 of each file is that of the manifest."""
    folder, manifest = local(str(folder)), read_manifest(folder)
    check_complete(folder, manifest, manifest.shards)
    files = {folder / n: sha for n, sha in manifest.files.items() if n.startswith(f"{split}-")}
    check_files(files)
    kinds = {
        kind: tuple((p, sha) for p, sha in files.items() if p.name.endswith(f".{kind}.npy"))
        for kind in ("pixels", "labels", "latents")
    }
    return Split(
        pixels=_stack(kinds["pixels"]),
        labels=np.concatenate([np.load(path) for path, _ in kinds["labels"]]),
        latents=_stack(kinds["latents"]) if kinds["latents"] else None,
    )


def describe(manifest: Manifest) -> str:
    """What was prepared, changed and left out, in a few lines."""
    images, names = manifest.images, manifest.class_names
    shown = f" ({tell_names(names, len(names))})" if names else ""
    lines = [
        f"{images['train']:,} images to train on, {images['heldout']:,} held out",
        f"{' x '.join(map(str, manifest.shape))}, values up to {manifest.brightest} of "
        f"{manifest.levels - 1}, {manifest.classes or 'no'} classes{shown}",
        manifest.empty
        and f"classes without images: {', '.join(map(str, manifest.empty[:10]))}"
        + " and more" * (len(manifest.empty) > 10),
        manifest.latents and f"latents: {' x '.join(map(str, manifest.latents.shape))}",
        manifest.repeated and f"{manifest.repeated:,} images equal another one",
        manifest.changed and f"changed: {tell(manifest.changed)}",
        manifest.unread and f"not read: {tell(manifest.unread)}",
        manifest.unusable and left_out(manifest),
        f"images {manifest.images_sha256[:16]}",
    ]
    return "\n".join(line for line in lines if line)


def left_out(manifest: Manifest) -> str:
    """How many images were left out, why, and the names of the first, in one line."""
    return tell_left_out(manifest.unusable, sum(manifest.images.values()), "images")


def manifest_file(folder: str | Path) -> dict[str, bytes]:
    """Name -> content of what sampling needs of a prepared folder: its manifest, without shards."""
    bare = replace(read_manifest(folder), complete=False, shards=0, files={})
    return {MANIFEST: json.dumps(asdict(bare), indent=1).encode()}


def _stack(files: tuple[tuple[Path, str], ...]) -> Stack:
    shapes = [np.load(path, mmap_mode="r").shape for path, _ in files]
    return Stack(files, np.cumsum([0, *(shape[0] for shape in shapes)]), shapes[0][1:])
