"""Held-out loss by noise, likelihood, and images of the network as pixels. Trains nothing."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt8

from .contract import Beat, State
from .generate import averaged, denoiser, in_batches
from .images.latents import open_autoencoder, unscale
from .images.pixels import to_network, to_pixels
from .images.shards import Manifest, Split
from .likelihood import bits_per_dimension, log_likelihood
from .objectives import OBJECTIVES
from .samplers import draw_noise, image_keys
from .step import Learner, image_losses, to_range

EVAL_IMAGES = 4096  # held-out images of an evaluation, at most; evenly spread
NUMBERS = 1 << 28  # in images that are in memory at once: 1 GiB in float32
NOISES = 4  # parts of the range of times whose losses are told apart
DEQUANTIZE = 2**31 - 1  # folded into an image's key; its probes and its noise take less
LIKELIHOOD_STEPS = 20  # of RK4; 160 give digits 0.002 bits less, or 0.0005 where dequantized


def make_evaluate(
    learner: Learner, split: Split, mesh: Mesh
) -> Callable[[State, Beat], dict[str, float]]:
    """State -> held-out loss of the average that samples are drawn with, in all and by noise.

    Noise, times and images are the same in each evaluation, so that its noise is that of none:
    each image is taken at one time, these cover the range evenly.
    """
    batches, objective = in_batches(learner, mesh), learner.config.objective
    path = OBJECTIVES[objective.name].path
    rows = spread(split, EVAL_IMAGES)
    count, part = len(rows["label"]), jax.random.key(1)
    shares = (np.arange(count) * 0.618033988749895 + 0.5) % 1  # evenly, in an order of its own
    rows |= {"share": shares.astype(np.float32), "index": np.arange(count, dtype=np.int32)}

    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def loss(params: Any, rows: dict[str, Array]) -> Array:
        keys = image_keys(part, rows["index"])
        noise = uniform(keys, learner) if learner.config.data.dequantize else None
        x, eps = to_range(learner, rows["image"], noise), draw_noise(keys, learner.kind.shape)
        drawn = {"x": x, "eps": eps, "t": path.spaced(rows["share"]), "label": rows["label"]}
        return image_losses(learner, params, drawn, train=False)

    def evaluate(state: State, beat: Beat) -> dict[str, float]:
        params, parts = averaged(state, learner.config.sample.ema), []
        for placed, number in batches(rows):
            parts.append(np.asarray(loss(params, placed))[:number])
            beat()
        losses, bins = np.concatenate(parts), np.floor(shares * NOISES)
        by_noise = {
            f"heldout_loss_noise_{i + 1}of{NOISES}": float(losses[bins == i].mean())
            for i in range(NOISES)
            if (bins == i).any()
        }
        return {"heldout_loss": float(losses.mean())} | by_noise

    return evaluate


def uniform(keys: Key[Array, " B"], learner: Learner) -> Float[Array, "B H W C"]:
    """Noise of each image that makes its levels continuous."""

    def draw(key: Key[Array, ""]) -> Float[Array, "H W C"]:
        return jax.random.uniform(jax.random.fold_in(key, DEQUANTIZE), learner.kind.shape)

    return jax.vmap(draw)(keys)


def spread(split: Split, most: int, *, latents: bool = True) -> dict[str, np.ndarray]:
    """At most so many images of a split, evenly spread over it, and their labels.

    latents: in place of pixels, where there are some. Of large images fewer are taken.
    """
    stored = (split.latents if latents else None) or split.pixels
    chosen = spaced(len(split), min(most, at_once(stored.shape)))
    return {"image": stored.read(chosen), "label": split.labels[chosen]}


def spaced(total: int, most: int) -> Int[np.ndarray, " rows"]:
    """At most so many rows of all, evenly spaced: a source may be sorted by class."""
    return np.linspace(0, total - 1, min(total, most)).round().astype(int)


def at_once(shape: tuple[int, ...]) -> int:
    """How many images of this shape may be in memory as floats."""
    return max(2, NUMBERS // math.prod(shape))


def make_likelihood(learner: Learner, mesh: Mesh) -> Callable[..., Float[np.ndarray, " N"]]:
    """(parameters, rows with image and label, probes, beat) -> bits a number of each image, which
    is dequantized. probes: of the divergence; 0 = exact.
    """
    batches, kind = in_batches(learner, mesh), learner.kind
    path = OBJECTIVES[learner.config.objective.name].path

    @partial(jax.jit, static_argnames="probes", out_shardings=NamedSharding(mesh, PartitionSpec()))
    def bits(params: Any, rows: dict[str, Array], probes: int) -> Array:
        keys = image_keys(jax.random.key(2), rows["index"])
        x = to_network(rows["image"], kind.levels, uniform(keys, learner))
        denoise = denoiser(learner, params, rows["label"])
        nats = log_likelihood(path, denoise, x, keys, steps=LIKELIHOOD_STEPS, probes=probes)
        return bits_per_dimension(nats, int(np.prod(kind.shape)), kind.levels)

    def likelihood(
        params: Any, rows: dict[str, np.ndarray], probes: int, beat: Beat
    ) -> Float[np.ndarray, " N"]:
        parts = []
        rows = rows | {"index": np.arange(len(rows["label"]), dtype=np.int32)}
        for placed, number in batches(rows):
            with jax.set_mesh(mesh):
                parts.append(np.asarray(bits(params, placed, probes))[:number])
            beat()
        return np.concatenate(parts)

    return likelihood


def make_to_pixels(
    learner: Learner, manifest: Manifest
) -> Callable[[Float[np.ndarray, "*N H W C"]], UInt8[np.ndarray, "*N h w c"]]:
    """Images of the network -> pixels as they are stored; latents are decoded."""
    kind, dequantized = learner.kind, learner.config.data.dequantize
    decode: Callable[[Array], Array] = lambda x: x  # noqa: E731
    if kind.latents is not None:
        stored, autoencoder = kind.latents, open_autoencoder(manifest)
        sigma_data = learner.config.objective.sigma_data
        decode = lambda x: autoencoder.decode(unscale(x, stored, sigma_data))  # noqa: E731

    def convert(images: Float[np.ndarray, "*N H W C"]) -> UInt8[np.ndarray, "*N h w c"]:
        flat = images.reshape(-1, *images.shape[-3:])
        size = learner.config.data.batch_size
        parts = [
            to_pixels(decode(jnp.asarray(flat[i : i + size])), kind.levels, dequantized=dequantized)
            for i in range(0, len(flat), size)
        ]
        pixels = np.concatenate([np.asarray(part) for part in parts])
        return pixels.reshape(*images.shape[:-3], *pixels.shape[1:])

    return convert
