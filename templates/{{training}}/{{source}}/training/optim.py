"""The learning rate over the steps and the Optax chain. Parameters come with labels.

Knows no model.
"""

from typing import Any

import jax
import optax
import optax.contrib

from ..errors import UserError
from .optim_config import OptimConfig
from .schedule import SCHEDULES

EPSILON = 1e-8  # in the denominator of Adam, as Optax has it


def make_schedule(config: OptimConfig) -> optax.Schedule:
    """Step -> fraction of the peak learning rate: linear warmup, then one of SCHEDULES."""
    c = config
    if not 0 <= c.warmup_steps < c.horizon_steps:
        raise UserError(
            got=f"--optim.warmup-steps {c.warmup_steps} --optim.horizon-steps {c.horizon_steps}",
            expected="0 <= warmup < horizon",
            do="lower the warmup or raise the horizon",
        )
    # The first rate is not zero, which would waste the first batch.
    warmup = optax.linear_schedule(1 / (c.warmup_steps + 1), 1.0, c.warmup_steps)
    decay = SCHEDULES[c.schedule](c, c.horizon_steps - c.warmup_steps)
    return optax.join_schedules([warmup, decay], [c.warmup_steps])


def make_optimizer(config: OptimConfig, labels: Any, decayed: Any) -> optax.GradientTransformation:
    """AdamW or Muon, with decoupled decay of the parameters marked in `decayed`; `update` clips.

    labels: tree of "matrix", "embedding", "kernel" or "vector" beside the parameters. Muon (Jordan
    et al. 2024) updates the matrices and AdamW the rest. By itself, `optax.contrib.muon` sends
    stacked layers to Adam and embeddings to Muon, and its Adam part ignores the decay mask.
    """
    c, schedule = config, make_schedule(config)

    def scaled(peak: float) -> optax.Schedule:
        return lambda step: peak * schedule(step)

    chain = optax.adamw(
        scaled(c.learning_rate),
        b1=c.beta1,
        b2=c.beta2,
        eps=EPSILON,
        weight_decay=c.weight_decay,
        mask=decayed,
    )
    if c.optimizer == "muon":
        muon = optax.contrib.muon(
            scaled(c.muon_learning_rate),
            weight_decay=c.weight_decay,
            weight_decay_mask=decayed,
            muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(-2, -1),
        )
        methods = jax.tree.map(lambda label: "muon" if label == "matrix" else "adam", labels)
        chain = optax.partition({"muon": muon, "adam": chain}, methods)
    # Checkpoints begun at 0.1.0 hold the state of a clip at this place, which has no arrays.
    return optax.chain(optax.identity(), chain) if c.clip_norm else chain
