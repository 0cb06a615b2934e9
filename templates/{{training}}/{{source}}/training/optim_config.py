"""Settings of the optimizer and its schedule, and what is checked in every training. No JAX."""

# ruff: noqa: RUF009 - `identity` makes a field; that ScheduleName is a string is not seen there.
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..run_config import check_numbers, identity
from .schedule import ScheduleName


@dataclass(frozen=True)
class OptimConfig:
    """Optax chain: clip, optimizer, masked weight decay, schedule."""

    optimizer: Literal["adamw", "muon"] = identity("adamw")
    learning_rate: float = identity(3e-3)  # peak, of AdamW
    muon_learning_rate: float = identity(2e-2)  # peak, of the matrices under muon
    weight_decay: float = identity(0.1)  # per unit of learning rate; matrices and embeddings
    beta1: float = identity(0.9)
    beta2: float = identity(0.95)
    clip_norm: float = identity(1.0)  # global gradient norm; 0 = off
    schedule: ScheduleName = identity("cosine")
    horizon_steps: int = identity(0, least=0)  # end of the schedule; 0 = --steps
    warmup_steps: int = identity(20, least=0)
    cooldown_fraction: float = identity(0.3)  # of the horizon, wsd only
    final_fraction: float = identity(0.1)  # last learning rate / peak
    micro_batches: int = 1  # gradient accumulation: parts that a batch is split into


def validate_training[C](config: C) -> C:
    """A configuration with `run` and `optim`: its numbers checked, the horizon filled in."""
    check_numbers(config)
    settings: Any = config
    horizon_steps = settings.optim.horizon_steps or settings.run.steps
    return replace(settings, optim=replace(settings.optim, horizon_steps=horizon_steps))
