"""Draws images with a network on the mesh, batch by batch. Trains nothing, measures nothing.

An image depends on its index, its label and the seed, on no batch and no number of devices; but
`adaptive` chooses the steps of a batch together.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from .config import SampleConfig
from .contract import Beat, State
from .errors import UserError
from .objectives import OBJECTIVES, Denoiser, make_denoiser
from .samplers import draw_noise, guided, image_keys, sample
from .step import Learner, predict
from .training.axes import spec

type Generate = Callable[..., Float[np.ndarray, "..."]]
"""(parameters, labels, seed, beat, scale=…, weak=…, indices=…) -> images or their trajectories."""


def averaged(state: State, name: str) -> Any:
    """The parameters to draw with: an average by its name, or `raw`."""
    return state["params"] if name == "raw" else state["ema"][name]


def denoiser(learner: Learner, params: Any, labels: Int[Array, " B"]) -> Denoiser:
    """The network's estimates for images of these labels."""

    def network(x_in: Array, condition: Array) -> Array:
        return predict(learner, params, x_in, condition, labels)

    return make_denoiser(learner.config.objective, network)


def guided_denoiser(
    learner: Learner,
    config: SampleConfig,
    params: Any,
    weak: Any,
    labels: Int[Array, " B"],
    scale: Float[Array, "B 1 1 1"] | float,
) -> Denoiser:
    """The estimates, guided away from a weaker network, or from the same one without classes.

    UserError where there is neither.
    """
    strong = denoiser(learner, params, labels)
    if config.guidance == 1:
        return strong
    if weak is None and not learner.kind.classes:
        raise UserError(
            got=f"guidance {config.guidance:g} without classes",
            expected="a model of classes, or a weaker network",
            do="leave guidance at 1, or name an earlier checkpoint: --guide-step STEP",
        )
    null = jnp.full_like(labels, learner.kind.classes)
    away = denoiser(learner, params, null) if weak is None else denoiser(learner, weak, labels)
    path = OBJECTIVES[learner.config.objective.name].path
    return guided(strong, away, scale, config.guidance_from, config.guidance_to, path)


def balanced_labels(learner: Learner, count: int) -> Int[np.ndarray, " {count}"]:
    """Every class that has training images as often as another; 0 without classes."""
    classes = np.arange(max(learner.kind.classes, 1), dtype=np.int32)
    return np.resize(np.setdiff1d(classes, learner.kind.empty), count)


def make_generate(
    learner: Learner, mesh: Mesh, config: SampleConfig, *, keep: bool = False
) -> Generate:
    """A function that draws; it compiles at its first call, and once more with a weaker network.

    keep: return the estimates of the images at every time, [N, steps, H, W, C].
    """
    path, at_once = OBJECTIVES[learner.config.objective.name].path, in_batches(learner, mesh)

    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def some(params: Any, weak: Any, key: Array, rows: dict[str, Array]) -> Array:
        estimates = guided_denoiser(learner, config, params, weak, rows["label"], rows["scale"])
        keys = image_keys(jax.random.wrap_key_data(key), rows["index"])
        noise = draw_noise(keys, learner.kind.shape)
        drawn = sample(config, path, estimates, noise, keys, keep=keep)
        return jnp.moveaxis(drawn, 0, 1) if keep else drawn

    def generate(
        params: Any,
        labels: Int[np.ndarray, " N"],
        seed: int,
        beat: Beat = lambda: None,
        *,
        scale: Float[np.ndarray, " N"] | None = None,
        weak: Any = None,
        indices: Int[np.ndarray, " N"] | None = None,
    ) -> Float[np.ndarray, "N ..."]:
        scales = np.full(len(labels), config.guidance) if scale is None else scale
        rows = {
            "label": labels.astype(np.int32),
            "index": np.arange(len(labels), dtype=np.int32) if indices is None else indices,
            "scale": scales.astype(np.float32)[:, None, None, None],
        }
        key = np.asarray(jax.random.key_data(jax.random.key(seed)))
        parts = []
        for placed, count in at_once(rows):
            with jax.set_mesh(mesh):
                parts.append(np.asarray(some(params, weak, key, placed))[:count])
            beat()
        return np.concatenate(parts)

    return generate


def in_batches(
    learner: Learner, mesh: Mesh
) -> Callable[[dict[str, np.ndarray]], Iterator[tuple[dict[str, jax.Array], int]]]:
    """Rows -> batches of one size, placed on the mesh, and how many rows of each count."""
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    micro_batch = learner.config.data.batch_size / learner.config.optim.micro_batches
    sharding = NamedSharding(mesh, spec("batch"))

    def batches(rows: dict[str, np.ndarray]) -> Iterator[tuple[dict[str, jax.Array], int]]:
        total: int = len(next(iter(rows.values())))
        size = math.ceil(min(micro_batch, total) / replicas) * replicas
        for start in range(0, total, size):
            count = min(size, total - start)
            chosen = (start + np.arange(size)) % total  # the rest repeats rows, and is cut off
            parts = {name: values[chosen] for name, values in rows.items()}
            placed: dict[str, jax.Array] = {
                name: jax.make_array_from_callback(part.shape, sharding, part.__getitem__)
                for name, part in parts.items()
            }
            yield placed, count

    return batches
