"""The parts of a workload that are NUTS's: chains by the devices, a sampler of the model."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .config import Config
from .contract import Workload
from .errors import UserError
from .method import Method
from .nuts import ROWS, check_start, init_state, make_sampler, sample_step, state_specs
from .posterior.table import Prepared


def nuts_method(
    config: Config, model: Any, prepared: Prepared, mesh: Mesh, begun: Mapping[str, Any]
) -> Method:
    """`begun`: the identity of the run in the run folder, whose chains stay as many."""
    n, (arrays, sizes) = config.nuts, (prepared.arrays, prepared.sizes)
    parts = config.mesh.tensor
    apart = mesh.size // parts
    chains = n.chains or begun.get("nuts.chains") or max(4, apart)
    if chains % apart:
        raise UserError(
            got=f"{chains} chains on {apart} devices",
            expected="as many chains on each device",
            do=f"run on a number of devices that divides {chains}, or begin a run in a new "
            f"--run-dir with --nuts.chains {-(-chains // apart) * apart}",
        )
    if sizes["row"] % parts:
        fitting = [k for k in range(1, mesh.size + 1) if not (sizes["row"] % k or mesh.size % k)]
        raise UserError(
            got=f"--mesh.tensor {parts} for a table of {sizes['row']} rows",
            expected="parts of as many rows each",
            do=f"choose --mesh.tensor from {fitting}",
        )
    sampler = make_sampler(n, model.model, arrays, sizes, mesh, chains)
    init, step = partial(init_state, sampler), partial(sample_step, sampler)
    columns = {
        name: jax.device_put(x, NamedSharding(mesh, ROWS if x.ndim else PartitionSpec()))
        for name, x in arrays.items()
    }
    workload = Workload(
        init=init,
        step=step,
        batch=lambda cursor: columns,
        specs=state_specs,
        stride=n.chunk,
        rate=("draws", chains * n.chunk),
        means=("accept", "leapfrogs"),
        nonfinite="stop",  # without its draws the chain would be another one
        shown=("step_size", "rhat", "min_ess_per_s", "divergences"),
        identity={
            "nuts.chains": chains,
            "nuts.layout": "vmap" if sampler.together else "map",
            "mesh.tensor": parts,  # another sum of gradients, and so other last bits
        },
    )
    _, _, outputs = jax.eval_shape(step, jax.eval_shape(init, jax.random.key(0)), arrays)
    kept = max(0, config.run.steps * n.chunk - n.warmup)
    return Method(
        workload=workload,
        check_start=partial(check_start, sampler, config.run.seed),
        outputs=outputs,
        warmup_steps=n.warmup // n.chunk,
        words=f"{chains} chains: {n.warmup} draws of warm-up, then {kept} that are kept; a step is "
        f"{n.chunk}",
    )
