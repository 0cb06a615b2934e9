"""The parts of a workload that are SVI's: a guide of the model, and its draws at the end."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .config import Config
from .contract import Outputs, State, Workload
from .method import Method
from .posterior.diagnosis import settling
from .posterior.table import Prepared
from .records import mirror, store
from .svi import (
    batch_at,
    check_start,
    draw_guide,
    fit_step,
    init_state,
    make_fit,
    state_specs,
    whole_table,
)


def svi_method(
    config: Config, model: Any, prepared: Prepared, mesh: Mesh, begun: Mapping[str, Any]
) -> Method:
    """`begun` changes nothing here."""
    c, run = config.svi, config.run
    fit = make_fit(c, run.steps, run.seed, model.model, prepared.arrays, prepared.sizes, mesh)
    table, is_whole = whole_table(fit), fit.batch_rows == fit.rows
    draws = jax.jit(partial(draw_guide, fit), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def draw(state: State) -> tuple[Outputs, dict[str, float]]:
        records = store.read_lines(mirror.local(run.run_dir) / "metrics.jsonl")
        losses = [record["loss"] for record in records if "loss" in record]
        return draws(state, table), settling(np.array(losses))

    workload = Workload(
        init=partial(init_state, fit),
        step=partial(fit_step, fit),
        batch=lambda cursor: table if is_whole else batch_at(fit, cursor),
        specs=state_specs,
        stride=c.chunk * fit.batch_rows,  # the cursor counts rows
        rate=("updates", c.chunk),
        nonfinite="stop",
        smaller_steps=f"--svi.learning-rate {c.learning_rate / 4:g}",
    )
    outputs = jax.eval_shape(draws, jax.eval_shape(workload.init, jax.random.key(0)), table)
    return Method(
        workload=workload,
        check_start=partial(check_start, fit),
        outputs=outputs,
        warmup_steps=run.steps - 1,  # the draws come with the last one
        words=f"{c.chunk * run.steps} updates of the guide {c.guide}, with {fit.batch_rows} of "
        f"{fit.rows} rows each; a step is {c.chunk}",
        draw=draw,
    )
