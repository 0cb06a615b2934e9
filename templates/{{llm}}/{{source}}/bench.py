"""How fast the step, the loop around it and the input run here. Keeps no run and tunes nothing.

One process: bare steps, then the loop, then bare steps again, so that a drift of the clock shows.
"""

import contextlib
import io
import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from . import hardware
from .config import Config
from .contract import Workload
from .loop import abstract_state, initialise, run
from .preflight import compile_step, memory_parts
from .report import format_summary
from .run_config import to_dict
from .sharding import make_mesh
from .workload import make_workload


def bench(config: Config, steps: int) -> None:
    """Print the figures; about five times `steps` steps are run."""
    mesh = make_mesh(config.mesh)
    workload = make_workload(config, mesh)
    input_s = time_input(workload, steps)
    began_s = time.perf_counter()
    compiled = compile_step(workload, config.run.seed, mesh)
    compile_s = time.perf_counter() - began_s
    before_s = time_bare(workload, compiled, config.run.seed, mesh, steps)
    loop_s = time_loop(workload, config, mesh, steps)
    after_s = time_bare(workload, compiled, config.run.seed, mesh, steps)
    bare_s = (before_s + after_s) / 2
    device, (name, units) = jax.devices()[0], workload.rate
    flops, memory = workload.flops_per_step or float("nan"), device.memory_stats() or {}
    facts = {
        "devices": f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}",
        "compile_s": compile_s,
        "step_ms": 1e3 * bare_s,
        "step_before_and_after": f"{1e3 * before_s:.1f} and {1e3 * after_s:.1f} ms",
        f"{name}_per_s": units / bare_s,
        "mfu_formula": hardware.mfu(flops, bare_s, jax.device_count(), device.device_kind)[1],
        "loop_step_ms": 1e3 * loop_s,
        "loop_overhead_fraction": loop_s / bare_s - 1,
        "input": f"{units / input_s:,.0f} {name}/s, {bare_s / input_s:.0f} times the step's rate",
        "peak_memory_bytes": memory.get(
            "peak_bytes_in_use", memory_parts(compiled)["memory_bytes"]
        ),
    }
    print(format_summary(facts))
    print(json.dumps(to_dict(config)))


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


def time_loop(workload: Workload, config: Config, mesh: Mesh, steps: int) -> float:
    """Seconds of a step in the loop, with data, records and a checkpoint every `steps` steps."""
    marks: list[float] = []

    def mark(_: object) -> dict[str, float]:
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
            run(replace(workload, evaluate=mark, finish=None), replace(config, run=settings), mesh)
    spent_s = [after - before for before, after in itertools.pairwise(marks)]
    return sum(spent_s) / len(spent_s) / steps
