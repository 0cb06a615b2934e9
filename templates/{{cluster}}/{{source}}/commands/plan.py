"""`plan`: which slices a run fits, how fast it can be there, how often to save, what it costs.

Starts and rents nothing. `--compile` asks the compiler; without it the answers are estimates.
"""

import itertools
import logging
import os
from dataclasses import asdict, replace
from json import dumps
from typing import Annotated

from ..errors import Exit, UserError
from ..records.hardware import AHEAD_OF_TIME, slice_of
from ..run_config import Bounds
from . import Settings


def plan(
    *,
    config: Settings,
    topologies: tuple[str, ...] = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16"),
    slices: tuple[int, ...] = (1, 2),
    compile: bool = False,
    price_per_chip_hour: Annotated[float | None, Bounds(least=0)] = None,
    mtbf_chip_hours: Annotated[float, Bounds(above=0)] = 50_000.0,
    restart_s: Annotated[float, Bounds(least=0)] = 300.0,
    blocking_s: Annotated[float | None, Bounds(above=0)] = None,
    step_ms: Annotated[float | None, Bounds(above=0)] = None,
    json: bool = False,
) -> int:
    """Say for each topology and number of slices: fits or not, bounds of time, saves, cost.

    Args:
        topologies: chip and layout, such as v5e:4x4 v5p:2x2x4; of GPUs the nodes, such as h100:2
        slices: numbers of slices of each
        compile: compile the real step for each, which takes seconds to minutes; else estimate
        price_per_chip_hour: yours, in any currency; none = no cost
        mtbf_chip_hours: a chip works so long between failures; Llama 3 met one in 51,000 hours
        restart_s: from a failure to the next step
        blocking_s: measured time that a save holds up the steps; none = by the size of the state
        step_ms: measured time of a step, for one topology and one number of slices
        json: print the rows as JSON, with every figure
    """
    _check(topologies, slices, step_ms)
    os.environ |= AHEAD_OF_TIME  # before JAX is imported
    from ..cluster.plan import Assumptions, Row, plan_row
    from ..cluster.plan_table import show_rows
    from ..workload import make_dry_workload
    from .preflight import changes

    assumed = Assumptions(
        mtbf_chip_hours=mtbf_chip_hours,
        restart_s=restart_s,
        price_per_chip_hour=price_per_chip_hour,
        blocking_s=blocking_s,
        step_s=step_ms and step_ms / 1e3,
    )
    rows: list[Row] = []
    refused: dict[str, str] = {}
    logging.disable(logging.INFO)  # a line a row about its micro-batches
    for topology, count in itertools.product(dict.fromkeys(topologies), dict.fromkeys(slices)):
        try:
            row = plan_row(config, topology, count, make_dry_workload, assumed, compile)
        except UserError as error:
            refused[topology if count == 1 else f"{count} x {topology}"] = str(error)
        else:
            advice = changes(config, row.mesh, count) if row.fits is False else []
            rows.append(replace(row, changes=advice))
    logging.disable(logging.NOTSET)
    if json:
        print(dumps({"rows": [*map(asdict, rows)], "refused": refused}, indent=2))
    else:
        show_rows(rows, refused)
    return Exit.DONE if any(row.fits is not False for row in rows) else Exit.USER


def _check(topologies: tuple[str, ...], slices: tuple[int, ...], step_ms: float | None) -> None:
    """Refuse what no row could be planned for, before JAX is imported."""
    for topology in topologies:
        slice_of(*topology.partition(":")[::2])
    if wrong := [n for n in slices if n < 1] or not (topologies and slices):
        raise UserError(
            got=f"--slices {' '.join(map(str, slices))} --topologies {' '.join(topologies)}",
            expected="at least one topology, and numbers of slices of 1 or more",
            do=f"leave {wrong[0]} out" if isinstance(wrong, list) else "name one, or leave it out",
        )
    if step_ms is not None and len(topologies) * len(slices) > 1:
        raise UserError(
            got=f"--step-ms {step_ms} for {len(topologies) * len(slices)} rows",
            expected="a measured step belongs to one topology and one number of slices",
            do="name them: --topologies v5e:4x4 --slices 1",
        )
