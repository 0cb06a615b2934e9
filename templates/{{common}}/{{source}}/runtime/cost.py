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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from ..contract import Workload
from ..errors import UserError
from ..records import store
from ..records.hardware import peaks, slice_of
from .compiled import abstract_state, initialise, jit_step
from .loop import run
from .traffic import Collective, read_traffic

SHORTAGE = re.compile(r"\(([\d.]+)G\) exceeds available HBM|Used ([\d.]+)G of [\d.]+G hbm")


@dataclass(frozen=True)
class Verdict:
    """What the compiler says of a step on one device of a mesh."""

    fits: bool
    memory: dict[str, float]  # bytes: `memory_bytes` in all, and its parts; empty where unknown
    limit_bytes: float | None
    traffic: list[Collective]
    compile_s: float
    message: str  # of the compiler, where it gave up


def judge_step(workload: Workload, seed: int, mesh: Mesh) -> Verdict:
    """Compile the real step for the mesh's devices: does it fit, and what does it send?"""
    limit, began_s = memory_limit(mesh.devices.flat[0]), time.monotonic()
    try:
        step = compile_step(workload, seed, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        spent_s, first = time.monotonic() - began_s, str(error).splitlines()[0]
        found = SHORTAGE.search(str(error))
        memory = {"memory_bytes": float(found[1] or found[2]) * 2**30} if found else {}
        return Verdict(False, memory, limit, [], spent_s, first)
    spent_s, parts = time.monotonic() - began_s, memory_parts(step)
    fits = limit is None or parts["memory_bytes"] <= limit
    traffic = read_traffic(step.as_text(), mesh.size)
    return Verdict(fits, dict(parts), limit, traffic, spent_s, "")


def compile_step(workload: Workload, seed: int, mesh: Mesh) -> Any:
    """The step that the loop would run, compiled for the mesh's devices."""
    with jax.set_mesh(mesh):
        state, shardings = abstract_state(workload, seed, mesh)
        return jit_step(workload, shardings, mesh).lower(state, workload.batch(0)).compile()


def find_devices(topology: str, slices: int = 1) -> Sequence[Any]:
    """The devices of slices of a TPU topology by its name, or those of this machine."""
    if topology == "local":
        if slices > 1:
            raise UserError(
                got=f"--topology local --slices {slices}",
                expected="slices of a TPU topology",
                do="add --topology, such as v6e:4x4, or leave --slices out",
            )
        return jax.devices()
    found = slice_of(*topology.split(":", 1)) if ":" in topology else None
    if found is None or not found.is_tpu:
        raise UserError(
            got=f"--topology {topology}",
            expected="a TPU and its layout, such as v5e:2x2, v5p:2x2x1, v6e:4x4, or local",
            do="correct it; for GPUs run on one of their machines, with --topology local",
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            got=f"--topology {topology} without libtpu",
            expected="the extra `tpu`; it needs no TPU, but Linux",
            do="uv sync --extra tpu, or --topology local",
        )
    jax.config.update("jax_enable_compilation_cache", False)  # cannot be read back for a topology
    try:
        options = found.libtpu_options(slices)
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            got=f"--topology {topology} --slices {slices}: {str(error).splitlines()[0]}",
            expected="a topology that the installed libtpu knows",
            do="uv sync --extra tpu --upgrade-package libtpu, or another topology",
        ) from error


def count_collectives(compiled: Any) -> Counter[str]:
    """How often each collective is in the program; those of a scanned layer count once."""
    return Counter(found.kind for found in read_traffic(compiled.as_text(), jax.device_count()))


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
    if here or chip is None:
        return here["bytes_limit"] if here else None
    return chip.program_bytes or chip.hbm_bytes


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
            local_folder="",
        )
        with contextlib.redirect_stdout(io.StringIO()):
            run(
                replace(workload, evaluate=mark, artifacts=None, finish=None, done=None),
                replace(config, run=settings),
                mesh,
            )
    spent_s = [after - before for before, after in itertools.pairwise(marks)]
    return sum(spent_s) / len(spent_s) / steps
