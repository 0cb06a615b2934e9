"""Compiles the real training step ahead of time and says whether it fits. Runs no step.

A TPU topology needs libtpu, but no TPU; commands.py sets what JAX and libtpu read at import.
"""

import importlib.util
import math
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from .config import Config, DataConfig
from .contract import Workload
from .errors import UserError
from .hardware import peaks
from .loop import abstract_state, jit_step
from .report import format_summary
from .sharding import make_mesh
from .step import make_learner
from .tokenizer import ByteTokenizer, JsonTokenizer
from .workload import check_batch, dry_workload

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    r"|calls=%(all-reduce-scatter)"  # the fusion by which a TPU reduces and shards gradients
)


def preflight(config: Config, topology: str) -> bool:
    """Print what a step needs on a topology ("local" = the devices here); whether it fits."""
    devices = find_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    check_batch(config, mesh)
    learner = make_learner(config, *vocabulary(config.data), devices[0].platform)
    workload = dry_workload(learner, mesh)
    (name, units), flops = workload.rate, workload.flops_per_step or math.nan
    facts: dict[str, Any] = {
        "devices": f"{len(devices)} x {devices[0].device_kind} ({topology})",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": sum(math.prod(v.shape) for v in jax.tree.leaves(learner.declared)),
        "flops": f"{flops:.4g} a step = {units:,} {name} x {flops / units:.4g} "
        "(6 x weights that multiply + causal attention, halved)",
    }
    if (chip := peaks(devices[0].device_kind)) is not None:
        facts["step_at_peak_ms"] = 1e3 * flops / (len(devices) * chip.bf16_flops)
    began_s = time.monotonic()
    try:
        compiled = compile_step(workload, config.run.seed, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        facts["compiler"], fits = str(error).splitlines()[0], False
    else:
        facts["compile_s"] = time.monotonic() - began_s
        counts = count_collectives(compiled).items()
        facts["collectives"] = ", ".join(f"{n} {kind}" for kind, n in counts) or "none"
        limit = memory_limit(devices[0])
        facts |= memory_parts(compiled) | {"memory_limit_bytes": limit}
        fits = limit is None or facts["memory_bytes"] <= limit
    print(format_summary(facts))
    print("fits" if fits else "does not fit; what to change:")
    for change in () if fits else changes(config, mesh):
        print(f"  {change}")
    return fits


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


def vocabulary(data: DataConfig) -> tuple[int, int]:
    """Size and BOS of the vocabulary that the settings will lead to; needs no prepared text."""
    if data.tokenizer == "bpe":
        return data.vocab_size, 0
    found = ByteTokenizer() if data.tokenizer == "byte" else JsonTokenizer(Path(data.tokenizer))
    return found.vocab_size, found.bos_id


def count_collectives(compiled: Any) -> Counter[str]:
    """How often each is in the program; those in a scanned layer are there once."""
    return Counter(found[1] or found[2] for found in COLLECTIVE.finditer(compiled.as_text()))


def memory_parts(compiled: Any) -> dict[str, int]:
    """Bytes a device needs for a compiled step: in all, for the state, and for what it computes."""
    m = compiled.memory_analysis()
    state = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    parts = {"memory_state_bytes": state, "memory_temporary_bytes": m.temp_size_in_bytes}
    return {"memory_bytes": sum(parts.values()) + m.generated_code_size_in_bytes} | parts


def memory_limit(device: Any) -> float | None:
    """Bytes that a device offers to programs; None where nobody knows."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.device_count()
    here = device in jax.devices() and device.memory_stats()
    chip = peaks(device.device_kind)
    return here["bytes_limit"] if here else chip.hbm_bytes if chip else None


def changes(config: Config, mesh: Mesh) -> list[str]:
    """What would need less memory, the cheapest first."""
    model, parts = config.model, config.optim.micro_batches
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.data.batch_size // (replicas * parts)
    advice = []
    if mesh.shape["data"] > 1:
        advice.append(f"--mesh.fsdp {replicas}: each replica keeps a part of the state")
    if rows > 1:
        advice.append(f"--optim.micro-batches {2 * parts}: {rows // 2} rows a device at a time")
    if model.remat != "full":
        remat = "dots" if model.remat == "none" else "full"
        advice.append(f"--model.remat {remat}: keeps less for the backward pass, computes more")
    return [*advice, "more chips, or a smaller model"]
