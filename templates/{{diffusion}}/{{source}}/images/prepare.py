"""Source -> shards of pixels, and of latents where there is an autoencoder; imports no JAX if not.

A killed preparation resumes: a file is written under another name, then renamed, and counts once
the manifest names it.
"""

import errno
import hashlib
import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.progress import MofNCompleteColumn, Progress

from ..errors import UserError
from ..records import store
from ..records.mirror import local
from ..training.given import Counts, count, tell_left_out, total
from ..training.prepared import MANIFEST, prepare_once, write_manifest
from .decode import decode
from .settings import ImageConfig
from .shards import Manifest, SplitName, add, read_manifest
from .sources import Example, Source, identify, open_source

log = logging.getLogger(__name__)

SHARD_BYTES = 1 << 30  # of pixels, of both splits; twice as much is in memory
BATCH_IMAGES = 16  # decoded at once, by as many threads as their memory allows: see MOST_PIXELS
THREADS = 8
# Of a disk that may come back; other errors are those of a file, which is to be replaced.
AWAY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)


def prepare(config: ImageConfig, *, show: bool = True) -> Manifest:
    """Turn the source into `prepared_dir`, or return at once when that is done already.

    UserError when the folder holds another preparation, images differ in size, a split would be
    empty, or more than `max_unusable_fraction` of the images cannot be used.
    """
    request, missing = _request(config)

    def make(found: Manifest | None) -> Manifest:
        return _prepare(config, request, found, show)

    return prepare_once(config.prepared_dir, request, missing, read_manifest, make)


def _request(config: ImageConfig) -> tuple[dict[str, Any], UserError | None]:
    """The settings that decide the result, and what is wrong with the source, if it is not here.

    `files` is None then.
    """
    files, missing = None, None
    try:
        files = identify(config)
    except UserError as error:
        missing = error
    names = ("source", "size", "colour", "image_field", "label_field", "heldout_fraction")
    settings = {name: getattr(config, name) for name in (*names, "autoencoder")}
    return settings | {"files": files}, missing


def _prepare(
    config: ImageConfig, request: dict[str, Any], manifest: Manifest | None, show: bool
) -> Manifest:
    folder = local(config.prepared_dir)
    if config.autoencoder:
        from . import latents  # imports JAX

        latents.load(config.autoencoder)  # a wrong name is not found hours later
    source = open_source(config)
    manifest = manifest or Manifest(
        request=request,
        levels=source.levels,
        class_names=list(source.class_names),
        classes=len(source.class_names),
        unread=source.unread or {},
    )
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), disable=not show) as bar:
        task = bar.add_task("images", total=None)
        try:
            for done in _write_shards(config, source, manifest):
                bar.update(task, completed=done)
            check_usable(config, manifest.images, manifest.unusable)
        except UserError as error:
            if getattr(error.__cause__, "errno", None) in AWAY:
                raise
            # Nothing stays: the manifest would refuse other settings.
            for name in (MANIFEST, *manifest.files):
                store.remove(folder / name)
            raise
        if config.autoencoder:
            task = bar.add_task("latents", total=sum(manifest.images.values()))
            for done in latents.encode_shards(folder, manifest):
                bar.update(task, completed=done)
    manifest.repeated = _count_repeated(folder, manifest)
    manifest.empty = _empty_classes(folder, manifest)
    manifest.images_sha256 = hashlib.sha256(repr(manifest.files).encode()).hexdigest()
    manifest.complete = True
    write_manifest(folder, manifest)
    return manifest


def check_usable(config: ImageConfig, images: dict[str, int], unusable: Counts) -> None:
    """Raise where too many images were left out, or a split has too few to be judged."""
    lost, used = total(unusable), sum(images.values())
    if lost > config.max_unusable_fraction * (lost + used):
        raise UserError(
            got=tell_left_out(unusable, used, "images"),
            expected=f"at most {config.max_unusable_fraction:.3g} of them",
            do="put whole images and labels there, or name the fields with --data.image-field and "
            '--data.label-field ("" = no labels); --data.max-unusable-fraction 1 goes on without',
        )
    if min(images.values()) < 2:
        raise UserError(
            got=f"{images['train']} images to train on, {images['heldout']} held out; "
            + tell_left_out(unusable, used, "images"),
            expected="two or more to train on, and as many that are held out, chosen by hash",
            do="give more images, or change --data.heldout-fraction",
        )


def _write_shards(config: ImageConfig, source: Source, manifest: Manifest) -> Iterator[int]:
    """Adds to the manifest what it does not have yet -> examples that are done, now and then.

    Between two shards the manifest changes in memory alone: what a kill loses is read again.
    """
    folder = local(config.prepared_dir)
    found: dict[SplitName, list[tuple[np.ndarray, int]]] = {"train": [], "heldout": []}
    size = 0
    for split, pixels, label in _read_usable(config, source, manifest):
        found[split].append((pixels, label))
        size += pixels.nbytes
        if size >= SHARD_BYTES:
            _write_shard(folder, manifest, found)
            size = 0
        yield manifest.examples
    if size:
        _write_shard(folder, manifest, found)


def _read_usable(
    config: ImageConfig, source: Source, manifest: Manifest
) -> Iterator[tuple[SplitName, np.ndarray, int]]:
    """The images that can be used, and their labels; the manifest counts the others and changes."""

    def read(example: Example) -> tuple[np.ndarray | None, list[str]]:
        levels = manifest.levels
        return decode(example.content, size=config.size, colour=config.colour, levels=levels)

    rest = itertools.islice(source.examples, manifest.examples, None)
    with ThreadPoolExecutor(THREADS) as pool:  # Pillow releases the GIL
        for batch in itertools.batched(rest, BATCH_IMAGES):
            for example, (pixels, kinds) in zip(batch, pool.map(read, batch), strict=True):
                manifest.examples += 1
                counts = manifest.unusable if pixels is None else manifest.changed
                for kind in [example.problem] if example.problem else kinds:
                    count(counts, kind, example.name)
                if pixels is not None:
                    held = example.is_heldout
                    held = _key(pixels) < config.heldout_fraction * 2**64 if held is None else held
                    label = _add(manifest, example, pixels)
                    yield "heldout" if held else "train", pixels, label


def _add(manifest: Manifest, example: Example, pixels: UInt8[np.ndarray, "H W C"]) -> int:
    """Adds an image to what the manifest knows of all -> the number of its class.

    Classes that have names alone are numbered as they come.
    """
    label, names = example.label, manifest.class_names
    found = pixels.shape, type(label).__name__
    first = manifest.shape or found[0], manifest.label_type or found[1]
    if found != first:
        words = [f"{h} x {w} pixels and a label of type {of}" for (h, w, _), of in (found, first)]
        raise UserError(
            got=f"{example.name} with {words[0]}",
            expected=f"{words[1]}, as the images before it",
            do="crop and scale all images by --data.size, such as --data.size "
            f'{min(manifest.shape[:2])}, or leave out labels by --data.label-field ""',
        )
    manifest.shape, manifest.label_type = found
    manifest.brightest = max(manifest.brightest, int(pixels.max()))
    if isinstance(label, str) and label not in names:
        names.append(label)
    number = names.index(label) if isinstance(label, str) else label
    manifest.classes = 0 if number is None else max(manifest.classes, number + 1)
    return number or 0


def _write_shard(
    folder: Path, manifest: Manifest, found: dict[SplitName, list[tuple[np.ndarray, int]]]
) -> None:
    for split, images in found.items():
        if images:
            pixels, labels = zip(*images, strict=True)
            stem = f"{split}-{manifest.shards:05d}"
            add(folder, manifest, f"{stem}.pixels.npy", np.stack(pixels))
            add(folder, manifest, f"{stem}.labels.npy", np.array(labels, np.int32))
            manifest.images[split] += len(images)
            images.clear()
    manifest.shards += 1
    write_manifest(folder, manifest)


def _count_repeated(folder: Path, manifest: Manifest) -> int:
    names = [name for name in manifest.files if name.endswith(".pixels.npy")]
    images = (image for name in names for image in np.load(folder / name, mmap_mode="r"))
    keys = np.fromiter(map(_key, images), np.uint64)
    return len(keys) - len(np.unique(keys))


def _empty_classes(folder: Path, manifest: Manifest) -> tuple[int, ...]:
    names = [n for n in manifest.files if n.startswith("train-") and n.endswith(".labels.npy")]
    found = [np.load(folder / name) for name in names]
    missing = np.setdiff1d(np.arange(manifest.classes), np.concatenate(found))
    return tuple(map(int, missing))


def _key(pixels: UInt8[np.ndarray, "H W C"]) -> int:
    """64 bits of an image's SHA-256: equal ones are in one split."""
    return int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:8])
