"""A sampler or a guide of any model without files, and its draws: for the tests of this room."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import nuts, svi
from ..config import NutsConfig, SviConfig
from ..contract import Metrics, Outputs, State, Workload
from ..nuts import ROWS, Sampler
from ..run_config import MeshConfig
from ..runtime.compiled import abstract_state, initialise, jit_step
from ..runtime.sharding import make_mesh
from ..svi import Fit

NUTS = NutsConfig(warmup=200, chunk=50)


def sampler_of(
    model: Callable[..., None],
    columns: dict[str, np.ndarray],
    sizes: Mapping[str, int] | None = None,
    devices: int = 1,
    chains: int = 4,
    tensor: int = 1,
    **options: Any,
) -> Sampler:
    """On the first devices, `tensor` of which share the rows of a chain."""
    mesh = make_mesh(MeshConfig(tensor=tensor), jax.devices()[:devices])
    return nuts.make_sampler(replace(NUTS, **options), model, columns, sizes or {}, mesh, chains)


def fit_of(
    model: Callable[..., None],
    columns: dict[str, np.ndarray],
    sizes: Mapping[str, int] | None = None,
    devices: int = 1,
    steps: int = 30,
    **options: Any,
) -> Fit:
    """On the first devices, to be run for `steps`."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    sizes = sizes or {"row": len(next(iter(columns.values())))}
    return svi.make_fit(SviConfig(**options), steps, 0, model, columns, sizes, mesh)


def workload_of(of: Sampler | Fit) -> Workload:
    """What the loop would run."""
    method: Any = nuts if isinstance(of, Sampler) else svi
    step = method.sample_step if isinstance(of, Sampler) else method.fit_step
    return Workload(
        init=partial(method.init_state, of),
        step=partial(step, of),
        batch=lambda cursor: placed(of) if isinstance(of, Sampler) else svi.batch_at(of, cursor),
        specs=method.state_specs,
        stride=1 if isinstance(of, Sampler) else of.config.chunk * of.batch_rows,
    )


def placed(sampler: Sampler) -> dict[str, jax.Array]:
    """The columns on the devices, their rows split as `fit` splits them."""
    return {
        name: jax.device_put(x, NamedSharding(sampler.mesh, ROWS if x.ndim else PartitionSpec()))
        for name, x in sampler.columns.items()
    }


def driven(
    workload: Workload, mesh: Mesh, steps: int, seed: int = 0
) -> Iterator[tuple[State, Metrics, Outputs]]:
    """What each step gives; the state is donated to the next one."""
    with jax.set_mesh(mesh):
        _, shardings = abstract_state(workload, seed, mesh)
        state = initialise(workload, seed, shardings)
        step = jit_step(workload, shardings, mesh)
        for number in range(steps):
            state, metrics, outputs = step(state, workload.batch(number * workload.stride))
            yield state, {name: float(value) for name, value in metrics.items()}, outputs


def run(
    sampler: Sampler, steps: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Array -> its draws after warm-up, (chain, draw, …), and the metrics of every step."""
    kept, metrics = [], []
    warmup = sampler.config.warmup // sampler.config.chunk
    for number, step in enumerate(driven(workload_of(sampler), sampler.mesh, steps, seed)):
        metrics.append(step[1])
        if number >= warmup:
            kept.append(jax.device_get(step[2]))
    return {n: np.concatenate([k[n] for k in kept], axis=1) for n in kept[0]}, metrics


def draws_of(fit: Fit, seed: int = 0) -> tuple[dict[str, np.ndarray], list[float], State]:
    """Array -> its draws of the guide, the loss of every step, and the last state."""
    steps = [*driven(workload_of(fit), fit.mesh, fit.steps, seed)]
    state, losses = steps[-1][0], [metrics["loss"] for _, metrics, _ in steps]
    draw = jax.jit(partial(svi.draw_guide, fit))
    drawn = jax.device_get(draw(state, svi.whole_table(fit)))
    return {name: value[0] for name, value in drawn.items()}, losses, state
