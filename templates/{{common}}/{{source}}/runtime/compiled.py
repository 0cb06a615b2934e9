"""The shapes and shardings of a state, and the functions of a workload as they are jitted."""

from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from ..contract import State, Workload
from ..records.progress import show
from .sharding import check_divisible, device_bytes, named


def abstract_state(workload: Workload, seed: int, mesh: Mesh) -> tuple[State, Any]:
    """Shapes of the state with their shardings, and the shardings alone."""
    bare = jax.eval_shape(lambda: workload.init(jax.random.key(seed)))
    specs = workload.specs(bare)
    check_divisible(bare, specs, mesh)
    shardings = named(specs, mesh)
    return with_shardings(bare, shardings), shardings


def count_parameters(state: State) -> int | None:
    """Numbers in `state["params"]`; None for a kind that has no such entry."""
    return sum(x.size for x in jax.tree.leaves(state["params"])) if "params" in state else None


def describe_state(abstract: State) -> str:
    """Parameters, arrays and bytes of state, in one line."""
    leaves, parameters = jax.tree.leaves(abstract), count_parameters(abstract)
    size = show("state_bytes", sum(map(device_bytes, leaves)))
    counted = "" if parameters is None else f"{parameters:,} parameters; "
    return f"{counted}state {len(leaves)} arrays, {size} a device"


def with_shardings(bare: Any, shardings: Any) -> Any:
    """A tree of shapes on a tree of shardings, to restore or compile for."""

    def shaped(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shaped, bare, shardings)


def jit_step(workload: Workload, shardings: Any, mesh: Mesh) -> Any:
    """The step with the state donated: (state, batch) -> (state, metrics, outputs).

    Metrics come out replicated, outputs as the step leaves them.
    """
    replicated = named(PartitionSpec(), mesh)
    # JAX runs a step again to find the first NaN or infinity; it keeps the state for NaN alone.
    donated = () if jax.config.jax_debug_infs else (0,)
    return jax.jit(
        workload.step, donate_argnums=donated, out_shardings=(shardings, replicated, None)
    )


def initialise(workload: Workload, seed: int, shardings: Any) -> State:
    """First state, made on the mesh: a key made outside of it would compile the step twice."""
    return jax.jit(lambda: workload.init(jax.random.key(seed)), out_shardings=shardings)()
