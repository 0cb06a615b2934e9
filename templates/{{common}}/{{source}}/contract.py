"""What a kind of project gives the loop: pure functions over one state. Runs nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np

type State = dict[str, Any]
"""One pytree of arrays in plain dicts; `state["step"]` is an int32 that `step` raises by one."""
type Batch = Any
"""A pytree of arrays, already sharded over the mesh; may be empty."""
type Metrics = dict[str, jax.Array]
"""Replicated scalars."""
type Outputs = dict[str, jax.Array]
"""Arrays for the sink, sharded as the step leaves them; most kinds have none."""
type Beat = Callable[[], None]
"""Tells the hang watch that long work goes on: call it at least every `hang_timeout_s`, and often
enough that a stop, which leaves `evaluate` and `artifacts` at a beat, still has time to save."""
type Artifact = str | np.ndarray
"""Text, or an image: uint8 of shape (height, width, 3)."""
type Section = str | dict[str, Any]
"""A part of the report: text, or the rows of a table."""


class Sink(Protocol):
    """Stores outputs; after a kill and a resume they have no gap and no duplicate."""

    def add(self, step: int, outputs: Outputs) -> None:
        """Take the outputs of a step. Steps come in order; skipped steps are left out."""

    def write(self, step: int) -> None:
        """Begin to write all that was added, up to `step`; may wait where much is unwritten."""

    def durable(self) -> None:
        """Wait until all writes are on disk; raises if one failed. Called from another thread."""

    def cut(self, step: int) -> None:
        """Forget everything beyond `step`; called by every process before the first `add`."""

    def read(self) -> dict[str, np.ndarray]:
        """Name -> array with one leading axis over all steps on disk."""


@dataclass(frozen=True)
class Workload:
    """A kind of training or sampling, as the loop sees it. All but the first four may be left out.

    All processes call every function at the same steps, except `batch`: threads call it ahead.
    """

    init: Callable[[jax.Array], State]
    """Key -> first state; traced, so that each device makes only its own shards."""
    step: Callable[[State, Batch], tuple[State, Metrics, Outputs]]
    """Pure and traced; randomness is `fold_in(state["key"], state["step"])`."""
    batch: Callable[[int], Batch]
    """Cursor -> batch: a function of the cursor alone; called ahead of need by other threads."""
    specs: Callable[[State], Any]
    """Abstract state -> the same tree of `PartitionSpec`."""
    stride: int = 1
    """How far one step moves the cursor."""
    rate: tuple[str, int | float] = ("steps", 1)
    """Name and number of the units a step works through, e.g. ("tokens", 16384)."""
    flops_per_step: float | None = None
    """Model FLOPs of one step by a written formula; None = no MFU."""
    flops_formula: str = ""
    """That formula in words."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What a resume must match beyond the configuration, e.g. the hash of the data."""
    tunable: dict[str, Any] = field(default_factory=dict)
    """What a resume may change beyond the settings, e.g. one worked out from others; manifest and
    report list a change."""
    means: tuple[str, ...] = ("loss",)
    """Metrics whose record is the mean over the steps since the last record."""
    shown: tuple[str, ...] = ()
    """Metrics that the live line shows; none = the first of them. With the rate "draws",
    `ess_per_s` is worked out from the metric `ess_per_draw`."""
    nonfinite: Literal["stop", "skip", "allow"] = "stop"
    """What a non-finite metric means. stop: the run ends, nothing of that step is saved. skip: the
    step itself has kept its old state and counted that in the metric `skipped`. allow: nothing."""
    smaller_steps: str = ""
    """Options that a resume may add against non-finite steps, such as a smaller learning rate."""
    evaluate: Callable[[State, Beat], dict[str, float]] | None = None
    """Held-out metrics."""
    artifacts: Callable[[State, Beat], dict[str, Artifact]] | None = None
    """Name -> an image or a text that shows the progress of the run."""
    finish: Callable[[State, Beat], tuple[dict[str, Any], dict[str, Section]]] | None = None
    """What the run summary says beyond the loop's own figures, and sections of the report."""
    sink: Callable[[Path], Sink] | None = None
    """Folder -> where outputs go; None = `runtime.sink.NpzFiles`."""
    done: Callable[[dict[str, float]], bool] | None = None
    """The newest metrics and held-out metrics -> whether the run has reached its aim; asked at
    saves only."""
    run_files: dict[str, bytes] = field(default_factory=dict)
    """Name -> content of what a command needs to read this run beside a checkpoint, such as a
    tokenizer; kept in DIR/inputs, so that the run folder can be moved."""
