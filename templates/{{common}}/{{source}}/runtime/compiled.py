"""The step as XLA compiles it: shapes, shardings, memory and collectives. Runs nothing.

A TPU topology needs libtpu, but no TPU; what JAX and libtpu read at import is set before this is.
"""

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, PartitionSpec

from ..contract import State, Workload
from ..errors import UserError
from ..records.hardware import peaks
from .sharding import check_divisible, named

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    r"|calls=%(all-reduce-scatter)"  # the fusion by which a TPU reduces and shards gradients
)


def abstract_state(workload: Workload, seed: int, mesh: Mesh) -> tuple[State, Any]:
    """Shapes of the state with their shardings, and the shardings alone."""
    bare = jax.eval_shape(lambda: _first_state(workload, seed))
    specs = workload.specs(bare)
    check_divisible(bare, specs, mesh)
    shardings = named(specs, mesh)
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, bare, shardings), shardings


def jit_step(workload: Workload, shardings: Any, mesh: Mesh) -> Any:
    """The step with the state donated: (state, batch) -> (state, metrics, outputs)."""
    replicated = named(PartitionSpec(), mesh)
    return jax.jit(
        workload.step,
        donate_argnums=0,
        out_shardings=(shardings, replicated, replicated),
    )


def initialise(workload: Workload, seed: int, shardings: Any) -> State:
    """First state, made on the mesh: a key or counter made off it would compile the step twice."""
    return jax.jit(lambda: _first_state(workload, seed), out_shardings=shardings)()


def _first_state(workload: Workload, seed: int) -> State:
    return workload.init(jax.random.key(seed))


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
