"""What settings of every training must satisfy, whatever it trains. Imports no JAX."""

from dataclasses import replace
from typing import Any

from ..errors import UserError
from ..run_config import option, to_dict

# Of the shared groups; every other whole number is at least 1.
MAY_BE_ZERO = {
    *("run.seed", "run.eval_every_steps", "run.save_every_steps", "run.artifacts_every_steps"),
    *("run.profile_at_step", "run.keep_checkpoints", "optim.horizon_steps"),
    *("optim.warmup_steps", "mesh.data"),  # checked in optim.py and sharding.py
}


def validate_training[C](config: C, may_be_zero: frozenset[str] = frozenset()) -> C:
    """A configuration with `run`, `optim` and `data.batch_size`, its schedule's horizon filled in.

    may_be_zero: dotted names of the kind's own numbers that may be 0.
    """
    settings: Any = config
    for name, value in to_dict(config).items():
        # A bool is an int too, but no count.
        if type(value) is int and value < 1 and name not in MAY_BE_ZERO | may_be_zero:
            raise UserError(
                got=option(name, value),
                expected="at least 1",
                do="correct it, or leave it out",
            )
    optim, batch_size = settings.optim, settings.data.batch_size
    if batch_size % optim.micro_batches:
        raise UserError(
            got=f"--data.batch-size {batch_size} --optim.micro-batches {optim.micro_batches}",
            expected="micro-batches that divide the batch",
            do="change one of them",
        )
    if optim.horizon_steps == 0:
        optim = replace(optim, horizon_steps=settings.run.steps)
    return replace(settings, optim=optim)
