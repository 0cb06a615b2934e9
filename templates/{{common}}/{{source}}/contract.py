"""What a kind of project gives the loop: pure functions over one state. Runs nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

type State = dict[str, Any]
"""One pytree of arrays in plain dicts; `state["step"]` is an int32 that `step` raises by one."""
type Batch = Any
"""A pytree of arrays, already sharded over the mesh; may be empty."""
type Metrics = dict[str, jax.Array]
"""Replicated scalars. A non-finite one makes the loop drop the step."""
type Outputs = dict[str, jax.Array]
"""Arrays for the output sink, replicated; most kinds have none."""


@dataclass(frozen=True)
class Workload:
    """A kind of training or sampling, as the loop sees it."""

    init: Callable[[jax.Array], State]
    """Key -> first state; traced, so that each device makes only its own shards."""
    step: Callable[[State, Batch], tuple[State, Metrics, Outputs]]
    """Pure and traced; randomness is `fold_in(state["key"], state["step"])`."""
    batch: Callable[[int], Batch]
    """Cursor -> batch, a pure function; called ahead of need from another thread."""
    specs: Callable[[State], Any]
    """Abstract state -> the same tree of `PartitionSpec`."""
    stride: int = 1
    """How far one step moves the cursor."""
    evaluate: Callable[[State], dict[str, float]] | None = None
    """State -> held-out metrics; called by every process at the same step."""
    finish: Callable[[State], dict[str, Any]] | None = None
    """State -> what the run summary says beyond the loop's own figures."""
    rate: tuple[str, int | float] = ("steps", 1)
    """Name and number of the units a step works through, e.g. ("tokens", 16384)."""
    flops_per_step: float | None = None
    """Model FLOPs of one step by a written formula; None = no MFU."""
    flops_formula: str = ""
    """That formula in words."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Facts beyond the configuration that a resume must match, e.g. the corpus hash."""
