"""What a method of inference gives the workload. Computes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax

from .contract import Outputs, State, Workload


@dataclass(frozen=True)
class Method:
    """Init, step, batch and specs of a method, and what its draws look like."""

    workload: Workload
    check_start: Callable[[], None]
    """Raises where a fit has no point to begin at."""
    outputs: Mapping[str, jax.ShapeDtypeStruct]
    """Path in the store -> shape of its draws, (chain, draw, …)."""
    warmup_steps: int
    """Steps whose outputs are not kept."""
    words: str
    """Of the run, for its first line."""
    draw: Callable[[State], Outputs] | None = None
    """Draws at the end of the run, on one chain; None = each step gives its own."""
    notes: Callable[[], dict[str, float]] = dict
    """What is noted beside the draws at the end."""
