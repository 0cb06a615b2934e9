"""What a run would need and cost on slices of an accelerator: memory, time, saves, money.

Two sources, never mixed up: the compiler, which has laid out the real step for the real topology,
and an estimate by the shapes of the state alone, which is a lower bound and says so. Times are
bounds too: no step is faster than its FLOPs at peak, its state read and written once, or what it
sends at the rate of its links, whichever is longest, even if all overlap. Knows no price.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from ..contract import State, Workload
from ..records.hardware import Slice, slice_of
from ..runtime import cost
from ..runtime.compiled import abstract_state
from ..runtime.sharding import as_tuple, device_bytes, make_mesh
from ..runtime.traffic import sent_bytes

# A host copies the state out of its devices while the steps wait: 395.74 GiB by 16 hosts in 3.3 to
# 4.1 s (marin-community/marin#7929, 2026).
COPY_BYTES_PER_S = 395.74 / 16 / 4.06 * 2**30


@dataclass(frozen=True)
class Assumptions:
    """What no program can work out."""

    mtbf_chip_hours: float
    restart_s: float  # from a failure to the next step
    price_per_chip_hour: float | None = None
    blocking_s: float | None = None  # measured, of a save
    step_s: float | None = None  # measured


@dataclass(frozen=True)
class Row:
    """One topology and number of slices. Bytes are of one device unless named otherwise."""

    topology: str
    slices: int
    chips: int
    hosts: int
    source: str  # "compiled" or "estimate"
    mesh: dict[str, int]
    fits: bool | None  # None: an estimate cannot tell
    needed_bytes: float | None  # of an estimate the state alone; None: the compiler does not say
    limit_bytes: float
    dcn_bytes_per_host: float  # sent to other slices in a step
    bounds_s: dict[str, float]  # what a step spends at least on each
    step_s: float
    bound_by: str
    checkpoint_bytes: float
    checkpoint_bytes_per_host: float  # of the host that writes the most
    blocking_s: float
    save_every_s: float
    save_every_steps: int
    goodput: float  # expected share of the time that steps keep
    steps: int  # of the run
    hours: float | None  # of them; None where failures leave no time
    cost: float | None
    compile_s: float | None = None
    message: str = ""  # of the compiler, where it gave up
    changes: list[str] = field(default_factory=list)


@dataclass(eq=False)
class StandIn:
    """A device for shapes and shardings, where none is needed to run or to compile."""

    id: int
    platform: str
    device_kind: str
    process_index: int
    slice_index: int
    coords: tuple[int, int, int]  # in a row: the real layout of a slice is the compiler's
    core_on_chip: int = 0


def plan_row(
    config: Any,
    topology: str,
    slices: int,
    workload_on: Callable[[Any, Mesh], Workload],
    assumed: Assumptions,
    compiled: bool,
) -> Row:
    """Plan a run on `slices` slices of a topology such as "v5e:4x4", or of GPU nodes as "h100:2".

    GPUs are always estimated. Raises UserError where mesh or batch do not divide.
    """
    found = slice_of(*topology.split(":", 1))
    compiled &= found.is_tpu
    steps, chips = config.run.steps, found.chips * slices
    devices = cost.find_devices(topology, slices) if compiled else stand_ins(found, slices)
    mesh = make_mesh(config.mesh, devices)
    workload = workload_on(config, mesh)
    state, _ = abstract_state(workload, config.run.seed, mesh)
    state_bytes = float(sum(map(device_bytes, jax.tree.leaves(state))))
    verdict = cost.judge_step(workload, config.run.seed, mesh) if compiled else None
    limit = (verdict and verdict.limit_bytes) or found.peaks.program_bytes or found.peaks.hbm_bytes
    sent = {"DCN": gradient_bytes(state, found, slices)}
    if verdict and not verdict.message:
        sent = {n: sent_bytes(verdict.traffic, between_slices=n == "DCN") for n in ("ICI", "DCN")}
    bounds_s = step_bounds(workload, state_bytes, sent, found, slices)
    bound_by = max(bounds_s, key=lambda name: bounds_s[name])
    step_s = assumed.step_s or bounds_s[bound_by]
    writes = host_bytes(state, mesh)
    blocking_s = assumed.blocking_s or max(writes.values()) / COPY_BYTES_PER_S
    mtbf_s = assumed.mtbf_chip_hours * 3600 / chips
    period_s = max(save_period_s(blocking_s, mtbf_s), step_s)
    goodput = expected_goodput(blocking_s, period_s, mtbf_s, assumed.restart_s)
    hours = steps * step_s / 3600 / goodput if goodput else None
    return Row(
        topology=topology,
        slices=slices,
        chips=chips,
        hosts=found.hosts * slices,
        source="compiled" if compiled else "estimate",
        mesh=dict(mesh.shape),
        fits=verdict.fits if verdict else False if state_bytes > limit else None,
        needed_bytes=verdict.memory.get("memory_bytes") if verdict else state_bytes,
        limit_bytes=limit,
        dcn_bytes_per_host=sent["DCN"] * len(devices) / (found.hosts * slices),
        bounds_s=bounds_s,
        step_s=step_s,
        bound_by="measured" if assumed.step_s else bound_by,
        checkpoint_bytes=float(writes.total()),
        checkpoint_bytes_per_host=float(max(writes.values())),
        blocking_s=blocking_s,
        save_every_s=period_s,
        save_every_steps=round(period_s / step_s),
        goodput=goodput,
        steps=steps,
        hours=hours,
        cost=price(assumed, chips, hours),
        compile_s=verdict.compile_s if verdict else None,
        message=verdict.message if verdict else "",
    )


def price(assumed: Assumptions, chips: int, hours: float | None) -> float | None:
    """Of a run, in the user's currency; None where a part of it is not known."""
    each = assumed.price_per_chip_hour
    return None if each is None or hours is None else each * chips * hours


def stand_ins(found: Slice, slices: int) -> list[StandIn]:
    """As many devices as the slices have, host by host."""
    per_host = found.devices // found.hosts
    per_island = found.devices // found.islands
    platform = "tpu" if found.is_tpu else "gpu"
    return [
        StandIn(
            i, platform, found.device_kind, i // per_host, i // per_island, (i % per_island, 0, 0)
        )
        for i in range(found.devices * slices)
    ]


def gradient_bytes(state: State, found: Slice, slices: int) -> float:
    """What a device sends at least to other slices in a step, if they share the gradient alone.

    An all-reduce of n bytes over s slices sends 2 (s - 1) / s n from each (Patarasu and Yuan, 2009,
    doi 10.1016/j.jpdc.2008.09.002), at best spread evenly over the devices of a slice. XLA may send
    it as bfloat16, before it is converted to the type of the parameters.
    """
    islands = found.islands * slices
    gradient = sum(2 * x.size for x in jax.tree.leaves(state.get("params", {})))
    return 2 * (islands - 1) / islands * gradient / (found.devices / found.islands)


def step_bounds(
    workload: Workload, state_bytes: float, sent: dict[str, float], found: Slice, slices: int
) -> dict[str, float]:
    """Seconds that a step takes at least, by what it does; `sent` is of one device, by network."""
    peaks, a_chip = found.peaks, found.devices / found.chips
    rates = {"ICI": found.ici_bytes_per_s / a_chip, "DCN": found.dcn_bytes_per_s / a_chip}
    flops = (workload.flops_per_step or 0.0) / (found.devices * slices)
    return {
        "FLOPs": flops / peaks.bf16_flops,
        "HBM": 2 * state_bytes / peaks.hbm_bytes_per_s,
    } | {name: size / rates[name] for name, size in sent.items()}


def host_bytes(state: State, mesh: Mesh) -> Counter[int]:
    """Process -> bytes that it writes of a checkpoint: a shard is written by its first holder."""
    hosts: Counter[int] = Counter()
    for leaf in jax.tree.leaves(state):
        split = {axis for axes in leaf.sharding.spec for axis in as_tuple(axes)}
        first = tuple(slice(None) if name in split else 0 for name in mesh.axis_names)
        for device in mesh.devices[first].flat if split else [mesh.devices.flat[0]]:
            hosts[device.process_index] += device_bytes(leaf)
    return hosts


def save_period_s(blocking_s: float, mtbf_s: float) -> float:
    """Seconds of work between two saves that lose the least time to saves and failures.

    Young's first order is sqrt(2 d M) for a save that blocks d and a job that fails every M seconds
    (CACM 17(9), 1974). This is Daly's higher order, which also holds where d is not small: with
    x = d / 2M it is sqrt(2 d M) (1 + sqrt(x) / 3 + x / 9) - d, and M from d = 2M on (FGCS 22(3),
    2006, equation 37). What is written while the steps go on costs nothing here.
    """
    if blocking_s >= 2 * mtbf_s:
        return mtbf_s
    x = blocking_s / (2 * mtbf_s)
    return math.sqrt(2 * blocking_s * mtbf_s) * (1 + math.sqrt(x) / 3 + x / 9) - blocking_s


def expected_goodput(blocking_s: float, period_s: float, mtbf_s: float, restart_s: float) -> float:
    """Share of time that steps keep, to first order: a save a period, and for each failure a
    restart and half a period of steps done again."""
    lost = blocking_s / (period_s + blocking_s) + (restart_s + period_s / 2) / mtbf_s
    return max(0.0, 1 - lost)
