"""Settings of the optimizer and its schedule, and what is checked in every training. No JAX."""

# ruff: noqa: RUF009 - `identity` makes a field; that ScheduleName is a string is not seen there.
from dataclasses import dataclass, replace
from typing import Literal

from ..run_config import identity, option, setting, tunable
from .schedule import ScheduleName


@dataclass(frozen=True)
class OptimConfig:
    """Optax chain: clip, optimizer, masked weight decay, schedule."""

    optimizer: Literal["adamw", "muon"] = identity("adamw")
    learning_rate: float = tunable(3e-3, least=0, most=1e3)  # peak, of AdamW
    muon_learning_rate: float = tunable(2e-2, least=0, most=1e3)  # of the matrices under muon
    weight_decay: float = tunable(0.1, least=0, most=1e6)  # per unit of rate; matrices, embeddings
    beta1: float = tunable(0.9, least=0, most=0.999999)  # float32 knows no much nearer to 1
    beta2: float = tunable(0.95, least=0, most=0.999999)
    clip_norm: float = tunable(1.0, least=0)  # global norm; 0 = none in the whole run, 1e9 = off
    schedule: ScheduleName = tunable("cosine")
    horizon_steps: int = tunable(0, least=0)  # end of the schedule; 0 = --steps
    warmup_steps: int = tunable(20, least=0)  # at most half of --steps where the horizon is that
    cooldown_fraction: float = tunable(0.3, least=0, most=1)  # of the horizon, wsd only
    final_fraction: float = tunable(0.1, least=0, most=1)  # last learning rate / peak
    micro_batches: int = setting(1)  # gradient accumulation: parts that a batch is split into


def smaller_steps(config: OptimConfig) -> str:
    """The options that take a tenth of the learning rates."""
    names = ("learning_rate", *["muon_learning_rate"] * (config.optimizer == "muon"))
    return " ".join(option(f"optim.{n}", f"{getattr(config, n) / 10:.3g}") for n in names)


def fit_schedule(config: OptimConfig, steps: int) -> OptimConfig:
    """The settings with a horizon: where none is set, that of a run of `steps` steps."""
    if config.horizon_steps:
        return config
    return replace(config, horizon_steps=steps, warmup_steps=min(config.warmup_steps, steps // 2))
