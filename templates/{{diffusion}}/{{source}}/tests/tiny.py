"""The smallest diffusion model, and its step as the loop compiles it: made once for all tests."""

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ..config import Config, EmaConfig, ModelConfig, ObjectiveConfig, SampleConfig
from ..images.settings import DataConfig
from ..run_config import MeshConfig, RunConfig
from ..runtime.compiled import abstract_state, initialise
from ..runtime.sharding import make_mesh, named
from ..training.optim_config import OptimConfig
from ..workload import make_dry_workload

MODEL = ModelConfig(width=16, layers=2, heads=2, patch=4, mlp_width=16, registers=1)
CONFIG = Config(
    model=MODEL,
    optim=OptimConfig(learning_rate=1e-2, horizon_steps=100, warmup_steps=2, micro_batches=2),
    objective=ObjectiveConfig(label_dropout=0.5),
    ema=EmaConfig(decays=(0.9,), power_stds=(0.1, 0.2)),
    sample=SampleConfig(ema="decay-0.9", sampler_steps=2, images=20),
    data=DataConfig(batch_size=16, expects=(8, 8, 1, 10)),
)


def changed(config: Config, **groups: dict[str, Any]) -> Config:
    """With fields of groups changed: `changed(CONFIG, model={"layers": 1})`."""
    parts = {name: replace(getattr(config, name), **fields) for name, fields in groups.items()}
    return replace(config, **parts)


def in_folder(folder: Path, config: Config = CONFIG, **run: Any) -> Config:
    """On the digits, prepared and trained below a folder."""
    settings = RunConfig(run_dir=str(folder / "run"), trackers=(), **run)
    data = replace(config.data, prepared_dir=str(folder / "digits"))
    return replace(config, run=settings, data=data)


def batch(seed: int, config: Config = CONFIG) -> dict[str, jax.Array]:
    """Images of a step, of rising brightness by class, as the loop's batches are."""
    random = np.random.default_rng(seed)
    count = config.optim.micro_batches
    label = random.integers(0, 10, (count, config.data.batch_size // count)).astype(np.int32)
    image = 20 * label[..., None, None, None] + random.integers(0, 50, (*label.shape, 8, 8, 1))
    return {"image": jnp.asarray(image, jnp.uint8), "label": jnp.asarray(label)}


@functools.cache
def compiled(config: Config = CONFIG, sizes: tuple[int, int, int] = (1, 1, 1)) -> tuple[Any, ...]:
    """Mesh, first state and the step (state, batch) -> (state, metrics), which donates nothing."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    workload = make_dry_workload(config, mesh)
    shapes = workload.batch(0)
    with jax.set_mesh(mesh):
        abstract, shardings = abstract_state(workload, 0, mesh)
        replicated = named(PartitionSpec(), mesh)
        fn = jax.jit(workload.step, out_shardings=(shardings, replicated, replicated))
        executable = fn.lower(abstract, shapes).compile()
        state = initialise(workload, 0, shardings)

    def step(state: Any, batch: dict[str, jax.Array]) -> tuple[Any, Any]:
        placed = {
            name: jax.device_put(x.reshape(shapes[name].shape), shapes[name].sharding)
            for name, x in batch.items()
        }
        return executable(state, placed)[:2]

    return mesh, state, step, executable


def train(
    steps: int, config: Config = CONFIG, sizes: tuple[int, int, int] = (1, 1, 1)
) -> tuple[Any, list[float]]:
    """Last state and the losses of some steps."""
    _, state, step, _ = compiled(config, sizes)
    losses = []
    for number in range(steps):
        state, metrics = step(state, batch(number))
        losses.append(float(metrics["loss"]))
    return state, losses
