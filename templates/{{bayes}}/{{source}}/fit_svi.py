"""The parts of a workload that are SVI's: a guide of the model, and its draws at the end."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from . import svi
from .config import Config
from .contract import Workload
from .method import Method
from .posterior.diagnosis import settling
from .posterior.table import Prepared
from .records import mirror, store


def svi_method(
    config: Config, model: Any, prepared: Prepared, mesh: Mesh, begun: Mapping[str, Any]
) -> Method:
    """`begun` changes nothing here."""
    c, run = config.svi, config.run
    fit = svi.make_fit(c, run.steps, run.seed, model.model, prepared.arrays, prepared.sizes, mesh)
    table, is_whole = svi.whole_table(fit), fit.batch_rows == fit.rows
    replicated = NamedSharding(mesh, PartitionSpec())
    draws = jax.jit(partial(svi.draw_guide, fit), out_shardings=replicated)

    def notes() -> dict[str, float]:
        records = store.read_lines(mirror.local(run.run_dir) / "metrics.jsonl")
        return settling(np.array([record["loss"] for record in records if "loss" in record]))

    workload = Workload(
        init=partial(svi.init_state, fit),
        step=partial(svi.fit_step, fit),
        batch=lambda cursor: table if is_whole else svi.batch_at(fit, cursor),
        specs=svi.state_specs,
        stride=c.chunk * fit.batch_rows,  # the cursor counts rows
        rate=("updates", c.chunk),
        nonfinite="stop",
        smaller_steps=f"--svi.learning-rate {c.learning_rate / 4:g}",
    )
    return Method(
        workload=workload,
        check_start=partial(svi.check_start, fit),
        outputs=jax.eval_shape(draws, jax.eval_shape(workload.init, jax.random.key(0)), table),
        warmup_steps=run.steps - 1,  # the draws come with the last one
        words=f"{c.chunk * run.steps} updates of the guide {c.guide}, with {fit.batch_rows} of "
        f"{fit.rows} rows each; a step is {c.chunk}",
        draw=lambda state: draws(state, table),
        notes=notes,
    )
