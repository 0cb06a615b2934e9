"""`preflight`: compile the real training step ahead of time; does it fit? Runs no step."""

import os
from collections import Counter
from typing import Annotated, Any

from ..errors import Exit
from ..records.hardware import AHEAD_OF_TIME
from ..run_config import Bounds
from . import Settings


def preflight(
    *, config: Settings, topology: str = "local", slices: Annotated[int, Bounds(least=1)] = 1
) -> int:
    """Compile the real step for a TPU topology or these devices: does it fit?

    Args:
        topology: chip and layout, such as v5e:2x2, v5p:2x2x1, v6e:2x4; local = these devices
        slices: of that topology, joined by the slower network
    """
    if topology != "local":
        os.environ |= AHEAD_OF_TIME  # before JAX is imported
    from ..records.hardware import peaks
    from ..records.progress import show
    from ..records.report import format_summary
    from ..runtime import cost
    from ..runtime.compiled import abstract_state, count_parameters
    from ..runtime.sharding import describe_shards, make_mesh
    from ..runtime.traffic import sent_bytes
    from ..workload import make_dry_workload

    devices = cost.find_devices(topology, slices)
    mesh = make_mesh(config.mesh, devices)
    workload = make_dry_workload(config, mesh)
    state, _ = abstract_state(workload, config.run.seed, mesh)
    (name, units), flops = workload.rate, workload.flops_per_step
    where = topology if slices == 1 else f"{slices} slices of {topology}"
    figures: dict[str, Any] = {
        "devices": f"{len(devices)} x {devices[0].device_kind} ({where})",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": count_parameters(state) or "none: the state has no params",
        "flops": "not counted: the workload gives no flops_per_step",
    }
    if flops:
        each = f"{units:,} {name} x {flops / units:.4g} ({workload.flops_formula})"
        figures["flops"] = f"{flops:.4g} a step = {each}"
    if flops and (chip := peaks(devices[0].device_kind)) is not None:
        figures["step_at_peak_ms"] = 1e3 * flops / (len(devices) * chip.bf16_flops)
    found = cost.judge_step(workload, config.run.seed, mesh)
    figures["compile_s"] = found.compile_s
    for between, label in ((False, "collectives"), (True, "between_slices")):
        chosen = [c for c in found.traffic if c.between_slices == between]
        counts = Counter(c.kind for c in chosen).items()
        size = show("sent_bytes", sent_bytes(chosen, between_slices=between))
        text = f"{', '.join(f'{n} {kind}' for kind, n in counts)}; a device sends {size} a step"
        if not found.message and (slices > 1 or not between):
            figures[label] = text if chosen else "none"
    figures |= found.memory | {"memory_limit_bytes": found.limit_bytes}
    if found.message:
        figures["compiler"] = found.message
    print(describe_shards(state))
    print(format_summary(figures))
    if found.fits:
        print("fits")
    else:
        print(f"does not fit{shortage(found.memory.get('memory_bytes'), found.limit_bytes)}")
        print("what to change:")
        print("\n".join(f"  {change}" for change in changes(config, dict(mesh.shape), slices)))
    return Exit.DONE if found.fits else Exit.USER


def shortage(needed: float | None, limit: float | None) -> str:
    """Bytes of a device as words that follow "does not fit", where they are known."""
    if needed is None or limit is None:
        return ""
    return f": a device needs {needed / 2**30:.2f} GiB and has {limit / 2**30:.2f} GiB for programs"


def changes(config: Any, mesh: dict[str, int], slices: int = 1) -> list[str]:
    """What would need less memory, the cheapest first; parameters stay within a slice."""
    micro_batches, replicas = config.optim.micro_batches, mesh["data"] * mesh["fsdp"]
    rows = config.data.batch_size // (replicas * micro_batches)
    advice = []
    if mesh["fsdp"] < (inside := replicas // slices):
        advice.append(f"--mesh.fsdp {inside}: each replica keeps a part of the state")
    if rows > 1:
        advice.append(
            f"--optim.micro-batches {2 * micro_batches}: {rows // 2} rows a device at a time"
        )
    remat_now = getattr(config.model, "remat", "full")  # not every kind has this setting
    if remat_now != "full":
        remat = "dots" if remat_now == "none" else "full"
        advice.append(f"--model.remat {remat}: keeps less for the backward pass, computes more")
    return [*advice, "more chips, or a smaller model"]
