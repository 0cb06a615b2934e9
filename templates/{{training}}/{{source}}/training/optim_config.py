"""Settings of the optimizer and its schedule. Imports no JAX."""

from dataclasses import dataclass
from typing import Literal

from ..run_config import identity


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
    schedule: Literal["cosine", "wsd", "linear"] = identity("cosine")
    horizon_steps: int = identity(0)  # end of the schedule, which then stays; 0: the run's --steps
    warmup_steps: int = identity(20)
    cooldown_fraction: float = identity(0.3)  # of the horizon, wsd only
    final_fraction: float = identity(0.1)  # last learning rate / peak
    micro_batches: int = 1  # gradient accumulation: parts that a batch is split into
