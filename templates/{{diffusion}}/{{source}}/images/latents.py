"""Latents of images by an autoencoder of the user, cached on disk beside the pixels.

Trains no autoencoder. They are stored as it gives them; `scale` brings them to the network's range.
"""

import importlib
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ..errors import UserError
from ..training.prepared import write_manifest
from .pixels import to_network
from .shards import Latents, Manifest, add

BATCH_IMAGES = 64  # that the autoencoder gets at once; the last ones are filled up with zeros
PROBED = 16  # values of the probe's latents that the manifest keeps
# Between devices and their precisions, as a part of the spread of the probe's latents.
PROBE_TOLERANCE = 0.05
LEAST_STD = 1e-3  # of a channel: below it, 16 bits lose what matters


@runtime_checkable
class Autoencoder(Protocol):
    """What `--data.autoencoder MODULE:NAME` names: an object, not a class. It may jit itself."""

    def encode(
        self, images: Float[Array, "B H W C"], key: Key[Array, ""], /
    ) -> Float[Array, "B h w c"]:
        """Latents of images in [-1, 1]; `key` is for one that draws them."""

    def decode(self, latents: Float[Array, "B h w c"], /) -> Float[Array, "B H W C"]:
        """Images of latents."""


def load(name: str) -> Autoencoder:
    """The object that MODULE:NAME names; UserError where there is none."""
    module, _, attribute = name.partition(":")
    expected = "MODULE:NAME of an object with the methods encode and decode"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # what the user's module raises is up to it
        raise UserError(
            got=f"--data.autoencoder {name}: {type(error).__name__}: {error}",
            expected=expected,
            do="correct the name, or put its folder on PYTHONPATH",
        ) from error
    if isinstance(found, type) or not isinstance(found, Autoencoder):
        raise UserError(
            got=f"--data.autoencoder {name}, which is {found!r}",
            expected=expected,
            do="make an object of the class under that name, or add the methods",
        )
    return found


def open_autoencoder(manifest: Manifest) -> Autoencoder:
    """The autoencoder of a folder; UserError where it is another one than made its latents.

    Where there are none yet, the manifest in memory gets what is known of them.
    """
    name = manifest.request["autoencoder"]
    autoencoder = load(name)
    shape, probe, spread = _probe(autoencoder, name, manifest)
    before = manifest.latents = manifest.latents or Latents(shape, mean=(), std=(), probe=probe)
    if shape != before.shape or np.abs(np.subtract(probe, before.probe)).max() > (
        PROBE_TOLERANCE * spread
    ):
        raise UserError(
            got=f"--data.autoencoder {name}, which makes of a fixed input {shape} {probe[:3]} ...",
            expected=f"{before.shape} {before.probe[:3]} ..., as when the latents were made",
            do="put back its weights, or prepare with another --data.prepared-dir",
        )
    return autoencoder


def encode_shards(folder: Path, manifest: Manifest) -> Iterator[int]:
    """Write the latents of each shard that has none yet, and their moments -> images done."""
    autoencoder, name = open_autoencoder(manifest), manifest.request["autoencoder"]
    assert manifest.latents
    shape = manifest.latents.shape
    done = 0
    for pixels_name in [name for name in manifest.files if name.endswith(".pixels.npy")]:
        pixels = np.load(folder / pixels_name, mmap_mode="r")
        latents_name = pixels_name.replace(".pixels.", ".latents.")
        if latents_name not in manifest.files:
            latents = np.empty((len(pixels), *shape), np.float16)
            key = jax.random.fold_in(jax.random.key(0), zlib.crc32(latents_name.encode()))
            for start in range(0, len(pixels), BATCH_IMAGES):
                batch = np.zeros((BATCH_IMAGES, *manifest.shape), np.uint8)
                part = pixels[start : start + BATCH_IMAGES]
                batch[: len(part)] = part
                images = to_network(batch, manifest.levels)
                made = _encode(autoencoder, name, images, jax.random.fold_in(key, start))
                latents[start : start + len(part)] = made[: len(part)]
            add(folder, manifest, latents_name, latents)
            write_manifest(folder, manifest)
        done += len(pixels)
        yield done
    mean, std = _moments(folder, manifest)
    if not (std > LEAST_STD).all():
        raise UserError(
            got=f"latents by {name} with standard deviations {std.tolist()} of the channels",
            expected=f"more than {LEAST_STD}: they are kept in 16 bits",
            do="scale what it encodes to, or leave out channels that are constant",
        )
    moments = {"mean": (*mean.tolist(),), "std": (*std.tolist(),)}
    manifest.latents = replace(manifest.latents, **moments)


def scale(
    latents: Float[Array | np.ndarray, "*B h w c"], stored: Latents, sigma_data: float
) -> Float[Array, "*B h w c"]:
    """Stored latents -> float32 with mean 0 and standard deviation `sigma_data` in each channel.

    By channel, as EDM2 does (arXiv:2312.02696, appendix A.1).
    """
    mean, std = jnp.array(stored.mean), jnp.array(stored.std)
    return (jnp.asarray(latents, jnp.float32) - mean) / std * sigma_data


def unscale(
    scaled: Float[Array, "*B h w c"], stored: Latents, sigma_data: float
) -> Float[Array, "*B h w c"]:
    """What `scale` makes of latents -> latents for `decode`."""
    return scaled / sigma_data * jnp.array(stored.std) + jnp.array(stored.mean)


def _probe(
    autoencoder: Autoencoder, name: str, manifest: Manifest
) -> tuple[tuple[int, ...], tuple[float, ...], float]:
    """Shape, some values and spread of the latents of a fixed input; checks `decode` too."""
    shape = (2, *manifest.shape)
    images = jnp.cos(jnp.arange(np.prod(shape), dtype=jnp.float32)).reshape(shape)
    latents = _encode(autoencoder, name, images, jax.random.key(0))
    decoded = np.asarray(autoencoder.decode(jnp.asarray(latents)))
    if decoded.shape != shape or not np.isfinite(decoded).all():
        raise UserError(
            got=f"--data.autoencoder {name}, which decodes to {decoded.shape}"
            + (" with values that are not finite" if decoded.shape == shape else ""),
            expected=f"finite images of shape {shape}, as they were before",
            do="correct its `decode`",
        )
    some = latents.reshape(-1)[:: max(1, latents.size // PROBED)][:PROBED]
    return latents.shape[1:], (*some.tolist(),), float(latents.std())


def _encode(
    autoencoder: Autoencoder, name: str, images: Float[Array, "B H W C"], key: Key[Array, ""]
) -> Float[np.ndarray, "B h w c"]:
    latents = np.asarray(autoencoder.encode(images, key), np.float32)
    has_shape = latents.ndim == 4 and len(latents) == len(images)
    if not has_shape or not (np.abs(latents) <= np.finfo(np.float16).max).all():
        raise UserError(
            got=f"--data.autoencoder {name}, which encodes {images.shape} to {latents.shape}"
            + (" with values that are not finite in 16 bits" if has_shape else ""),
            expected=f"finite latents of shape ({len(images)}, height, width, channels)",
            do="correct its `encode`",
        )
    return latents


def _moments(folder: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over the images to train on."""
    files = [folder / n for n in manifest.files if n.startswith("train-") and ".latents." in n]
    pixels, sums, squares = 0, np.zeros(1), np.zeros(1)
    for path in files:
        for batch in np.array_split(rows := np.load(path, mmap_mode="r"), len(rows) // 1024 + 1):
            values = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
            pixels, sums = pixels + len(values), sums + values.sum(0)
            squares = squares + np.square(values).sum(0)
    mean = sums / pixels
    return mean, np.sqrt(np.maximum(squares / pixels - mean**2, 0))
