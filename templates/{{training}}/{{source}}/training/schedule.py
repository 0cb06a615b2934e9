"""The table of learning-rate schedules, whose names are the choices of `--optim.schedule`.

Imports no JAX until one is called, so that `--help` can list them. Knows no optimizer, no warmup.
"""

from collections.abc import Callable
from typing import Any, Literal

type Schedule = Callable[[Any], Any]
"""Step, a number or an array -> fraction of the peak learning rate."""


def cosine(c: Any, steps: int) -> Schedule:
    """Half a wave, from the peak down."""
    import optax

    return optax.cosine_decay_schedule(1.0, steps, alpha=c.final_fraction)


def wsd(c: Any, steps: int) -> Schedule:
    """Warmup, stable, decay (arXiv:2404.06395), with a linear cooldown."""
    import optax

    cooldown = max(1, round(c.cooldown_fraction * c.horizon_steps))
    return optax.linear_schedule(1.0, c.final_fraction, cooldown, max(0, steps - cooldown))


def linear(c: Any, steps: int) -> Schedule:
    """A straight line down."""
    import optax

    return optax.linear_schedule(1.0, c.final_fraction, steps)


def constant(c: Any, steps: int) -> Schedule:
    """The peak throughout: averages of the parameters take the place of a decay."""
    import optax

    return optax.constant_schedule(1.0)


# Name -> (OptimConfig, number of steps after the warmup) -> the schedule of those steps.
SCHEDULES = {"cosine": cosine, "wsd": wsd, "constant": constant, "linear": linear}
type ScheduleName = Literal[*SCHEDULES]  # type: ignore[valid-type]  # mypy wants them written out
