"""What a step costs on a set of devices: memory, collectives, seconds. Keeps no run.

A TPU topology needs libtpu but no TPU. `preflight` sets what JAX and libtpu read at import.
"""

import contextlib
import importlib.util
import io
import itertools
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from ..contract import Workload
from ..errors import UserError
from ..records import store
from ..records.hardware import peaks
from .compiled import abstract_state, initialise, jit_step
from .loop import run

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    r"|calls=%(all-reduce-scatter)"  # the fusion by which a TPU reduces and shards gradients
)


def compile_step(workload: Workload, seed: int, mesh: Mesh) -> Any:
    """The step that the loop would run, compiled for the mesh's devices."""
    with jax.set_mesh(mesh):
        state, shardings = abstract_state(workload, seed, mesh)
        return jit_step(workload, shardings, mesh).lower(state, workload.batch(0)).compile()


def find_devices(topology: str) -> Sequence[Any]:
    """The devices of a TPU topology by its name, or those of this machine."""
    if topology == "local":
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            got=f"--topology {topology} without libtpu",
            expected="the extra `tpu`; it needs no TPU, but Linux",
            do="uv sync --extra tpu, or --topology local",
        )
    jax.config.update("jax_enable_compilation_cache", False)  # cannot be read back for a topology
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            got=f"--topology {topology}: {str(error).splitlines()[0]}",
            expected="a chip and its layout, such as v5e:2x2, v5p:2x2x1, v6e:4x4, or local",
            do="v5e and v6e have two dimensions, v5p three; hosts hold 2x2 chips",
        ) from error


def count_collectives(compiled: Any) -> Counter[str]:
    """How often each collective is in the program; those of a scanned layer count once."""
    return Counter(found[1] or found[2] for found in COLLECTIVE.finditer(compiled.as_text()))


def memory_parts(compiled: Any) -> dict[str, int]:
    """Bytes a device needs for a compiled step: in all, for the state, and for what it computes."""
    m = compiled.memory_analysis()
    state = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    parts = {"memory_state_bytes": state, "memory_temporary_bytes": m.temp_size_in_bytes}
    return {"memory_bytes": sum(parts.values()) + m.generated_code_size_in_bytes} | parts


def memory_limit(device: Any) -> float | None:
    """Bytes that a device offers to programs; None where it is unknown."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.device_count()
    here = device in jax.devices() and device.memory_stats()
    chip = peaks(device.device_kind)
    return here["bytes_limit"] if here else chip.hbm_bytes if chip else None


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
    store.make_folder(folder)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as run_dir:
        settings = replace(
            config.run,
            run_dir=run_dir,
            steps=3 * steps,
            eval_every_steps=steps,
            save_every_steps=steps,
            keep_every_steps=0,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            run(
                replace(workload, evaluate=mark, artifacts=None, finish=None, done=None),
                replace(config, run=settings),
                mesh,
            )
    spent_s = [after - before for before, after in itertools.pairwise(marks)]
    return sum(spent_s) / len(spent_s) / steps
