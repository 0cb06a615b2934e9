"""A sampler of any model without files, and its draws: for the tests of this room."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..config import NutsConfig
from ..contract import Workload
from ..nuts import Sampler, init_state, make_sampler, sample_step, state_specs
from ..run_config import MeshConfig
from ..runtime.compiled import abstract_state, initialise, jit_step
from ..runtime.sharding import make_mesh

NUTS = NutsConfig(warmup=200, chunk=50)


def sampler_of(
    model: Callable[..., None],
    columns: dict[str, np.ndarray],
    sizes: Mapping[str, int] | None = None,
    devices: int = 1,
    chains: int = 4,
    **nuts: Any,
) -> Sampler:
    """On the first devices."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    return make_sampler(replace(NUTS, **nuts), model, columns, sizes or {}, mesh, chains)


def workload_of(sampler: Sampler) -> Workload:
    """What the loop would run."""
    return Workload(
        init=lambda key: init_state(sampler, key),
        step=lambda state, batch: sample_step(sampler, state, batch),
        batch=lambda cursor: placed(sampler),
        specs=state_specs,
    )


def placed(sampler: Sampler) -> dict[str, jax.Array]:
    """The columns on the devices."""
    return jax.device_put(sampler.columns, NamedSharding(sampler.mesh, PartitionSpec()))


def run(
    sampler: Sampler, steps: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Array -> its draws after warm-up, (chain, draw, …), and the metrics of every step."""
    workload, kept, metrics = workload_of(sampler), [], []
    warmup = sampler.config.warmup // sampler.config.chunk
    with jax.set_mesh(sampler.mesh):
        _, shardings = abstract_state(workload, seed, sampler.mesh)
        state = initialise(workload, seed, shardings)
        step = jit_step(workload, shardings, sampler.mesh)
        for number in range(steps):
            state, values, outputs = step(state, workload.batch(number))
            metrics.append({name: float(value) for name, value in values.items()})
            if number >= warmup:
                kept.append(jax.device_get(outputs))
    return {n: np.concatenate([k[n] for k in kept], axis=1) for n in kept[0]}, metrics
