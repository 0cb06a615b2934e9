"""A workload that is no language model: chunks of a random-walk Metropolis sampler.

Its state is a chain, its batches are empty and its draws go to the output sink.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp

from ...contract import Metrics, Outputs, State, Workload
from ...errors import Exit
from ...run_config import MeshConfig, RunConfig, identity, tunable
from .. import loop
from ..sharding import Axes, make_mesh, spec

CHUNK, CHAINS, DIM = 5, 8, 2
AXES: Axes = {"chains": ("data", "fsdp")}
BALLAST = 50_000  # floats that make a checkpoint larger than the other files of a run


@dataclass(frozen=True)
class SamplerConfig:
    run: RunConfig = field(default_factory=RunConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    scale: float = identity(0.8)
    lag: float = tunable(1.0)  # of nothing: a setting that concerns steps to come alone


def log_density(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2, axis=-1)


def sampler(config: SamplerConfig) -> Workload:
    def init(key: jax.Array) -> State:
        at = jax.random.normal(key, (CHAINS, DIM))
        ballast = jax.random.normal(key, (BALLAST,))
        return {"at": at, "ballast": ballast, "step": jnp.zeros((), jnp.int32), "key": key}

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, Metrics, Outputs]:
        def move(at: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            walk, accept = jax.random.split(key)
            to = at + config.scale * jax.random.normal(walk, at.shape)
            better = log_density(to) - log_density(at)
            taken = jnp.log(jax.random.uniform(accept, (CHAINS,))) < better
            at = jnp.where(taken[:, None], to, at)
            return at, at

        keys = jax.random.split(jax.random.fold_in(state["key"], state["step"]), CHUNK)
        at, draws = jax.lax.scan(move, state["at"], keys)
        metrics = {"log_density": log_density(at).mean()}
        return state | {"at": at, "step": state["step"] + 1}, metrics, {"draws": draws}

    return Workload(
        init=init,
        step=step,
        batch=lambda cursor: {},
        specs=lambda state: (
            {name: spec(AXES) for name in state} | {"at": spec(AXES, "chains", None)}
        ),
        rate=("draws", CHUNK * CHAINS),
    )


def config_of(
    folder: Path, steps: int, mesh: MeshConfig | None = None, **run: object
) -> SamplerConfig:
    options = {"save_every_steps": 7, "log_every_steps": 1, "trackers": ()} | run
    return SamplerConfig(
        run=RunConfig(run_dir=str(folder), steps=steps, **options), mesh=mesh or MeshConfig()
    )


def go(config: SamplerConfig, **change: object) -> Exit:
    workload = dataclasses.replace(sampler(config), **change)
    return loop.run(workload, config, make_mesh(config.mesh))
