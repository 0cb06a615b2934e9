"""`preflight`: compile the real training step ahead of time; does it fit? Runs no step."""

import math
import os
import time
from typing import Any

from ..errors import Exit
from . import Settings


def preflight(*, config: Settings, topology: str = "local") -> int:
    """Compile the real step for a TPU topology or these devices: does it fit?

    Args:
        topology: chip and layout, such as v5e:2x2, v5p:2x2x1, v6e:2x4; local = these devices
    """
    if topology != "local":
        # Read when JAX is imported: look for no TPU, share libtpu with other processes, no logs.
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_STDERR_LOG_LEVEL": "3",
            "TPU_MIN_LOG_LEVEL": "3",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
        }
    import jax

    from ..records.hardware import peaks
    from ..records.report import format_summary
    from ..runtime import cost
    from ..runtime.compiled import abstract_state
    from ..runtime.sharding import describe_shards, make_mesh
    from ..workload import make_dry_workload

    devices = cost.find_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    workload = make_dry_workload(config, mesh)
    state, _ = abstract_state(workload, config.run.seed, mesh)
    (name, units), flops = workload.rate, workload.flops_per_step or math.nan
    figures: dict[str, Any] = {
        "devices": f"{len(devices)} x {devices[0].device_kind} ({topology})",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": sum(x.size for x in jax.tree.leaves(state["params"])),
        "flops": f"{flops:.4g} a step = {units:,} {name} x {flops / units:.4g} "
        f"({workload.flops_formula})",
    }
    if (chip := peaks(devices[0].device_kind)) is not None:
        figures["step_at_peak_ms"] = 1e3 * flops / (len(devices) * chip.bf16_flops)
    began_s = time.monotonic()
    try:
        step = cost.compile_step(workload, config.run.seed, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        figures["compiler"], fits = str(error).splitlines()[0], False
    else:
        figures["compile_s"] = time.monotonic() - began_s
        counts = cost.count_collectives(step).items()
        figures["collectives"] = ", ".join(f"{n} {kind}" for kind, n in counts) or "none"
        limit = cost.memory_limit(devices[0])
        figures |= cost.memory_parts(step) | {"memory_limit_bytes": limit}
        fits = limit is None or figures["memory_bytes"] <= limit
    print(describe_shards(state))
    print(format_summary(figures))
    print("fits" if fits else "does not fit; what to change:")
    if not fits:
        print("\n".join(f"  {change}" for change in changes(config, dict(mesh.shape))))
    return Exit.DONE if fits else Exit.USER


def changes(config: Any, mesh: dict[str, int]) -> list[str]:
    """What would need less memory, the cheapest first."""
    micro_batches, replicas = config.optim.micro_batches, mesh["data"] * mesh["fsdp"]
    rows = config.data.batch_size // (replicas * micro_batches)
    advice = []
    if mesh["data"] > 1:
        advice.append(f"--mesh.fsdp {replicas}: each replica keeps a part of the state")
    if rows > 1:
        advice.append(
            f"--optim.micro-batches {2 * micro_batches}: {rows // 2} rows a device at a time"
        )
    remat_now = getattr(config.model, "remat", "full")  # not every kind has this setting
    if remat_now != "full":
        remat = "dots" if remat_now == "none" else "full"
        advice.append(f"--model.remat {remat}: keeps less for the backward pass, computes more")
    return [*advice, "more chips, or a smaller model"]
