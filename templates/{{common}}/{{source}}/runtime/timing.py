"""How long a step, the loop around it and the input take here. Keeps no run, prints nothing."""

import contextlib
import io
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ..contract import Workload
from .compiled import abstract_state, initialise
from .loop import run


def time_input(workload: Workload, count: int) -> float:
    """Seconds to make a batch and place it, one after the other, with nothing else running."""
    jax.block_until_ready(workload.batch(0))
    began_s = time.perf_counter()
    jax.block_until_ready([workload.batch(i * workload.stride) for i in range(1, count + 1)])
    return (time.perf_counter() - began_s) / count


def time_bare(workload: Workload, compiled: Any, seed: int, mesh: Mesh, steps: int) -> float:
    """Seconds of a step on one batch that stays on the device."""
    _, shardings = abstract_state(workload, seed, mesh)
    with jax.set_mesh(mesh):
        state, batch = initialise(workload, seed, shardings), workload.batch(0)
    state, metrics, _ = compiled(state, batch)  # warm up
    jax.block_until_ready(metrics)
    began_s = time.perf_counter()
    for _ in range(steps):
        state, metrics, _ = compiled(state, batch)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - began_s) / steps


def time_loop(workload: Workload, config: Any, mesh: Mesh, steps: int) -> float:
    """Seconds of a step in the loop, with data, records and a checkpoint every `steps` steps."""
    marks: list[float] = []

    def mark(*_: object) -> dict[str, float]:
        marks.append(time.perf_counter())  # the loop has waited for the device before it evaluates
        return {}

    folder = Path(config.run.run_dir).parent  # the disk that checkpoints go to
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as run_dir:
        settings = replace(
            config.run,
            run_dir=run_dir,
            steps=3 * steps,
            eval_every_steps=steps,
            save_every_steps=steps,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            run(
                replace(workload, evaluate=mark, artifacts=None, finish=None, done=None),
                replace(config, run=settings),
                mesh,
            )
    spent_s = [after - before for before, after in itertools.pairwise(marks)]
    return sum(spent_s) / len(spent_s) / steps
