"""The training step of a language model: loss, gradient and update as pure functions of one state.

Runs no loop and opens no file. `Learner` holds what is static; the state is plain dicts of arrays.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from .attention import attend, resolve_attention
from .config import Config
from .contract import Metrics, Outputs, State
from .model import Transformer
from .text.settings import Packing
from .training.layers import annotation, map_parameters
from .training.optim import make_optimizer
from .training.optim_config import fit_schedule
from .training.precision import compute_dtype
from .training.update import Sums, init_update, mean_gradient, update


@dataclass(frozen=True, eq=False)
class Learner:
    """The static arguments of a step: what it needs beside the state and the batch."""

    config: Config
    vocab_size: int
    bos_id: int
    packing: Packing
    attention: str
    graph: Any
    """NNX graph definition; with a tree of parameters it merges to a Transformer."""
    declared: Any
    """Abstract parameters and what is declared beside them: axes, decay, label."""
    optimizer: optax.GradientTransformation


def make_learner(
    config: Config, vocab_size: int, bos_id: int, platform: str | None = None
) -> Learner:
    """Build the static parts; `auto` is resolved for a platform of JAX (None = this one)."""
    model, dtype = config.model, str(compute_dtype(config.model.compute_dtype, platform))
    attention = resolve_attention(
        model.attention, config.data.packing, dtype, model.head_dim, platform
    )
    config = replace(
        config,
        model=replace(model, compute_dtype=cast(Any, dtype)),
        optim=fit_schedule(config.optim, config.run.steps),
    )
    graph, declared = nnx.split(
        nnx.eval_shape(lambda: Transformer(config.model, vocab_size, jax.random.key(0)))
    )
    fitting: Packing = "documents" if attention == "cudnn" else "segments"
    packing = fitting if config.data.packing == "auto" else config.data.packing
    labels, decayed = annotation(declared, "label"), annotation(declared, "decay")
    optimizer = make_optimizer(config.optim, labels, decayed)
    return Learner(config, vocab_size, bos_id, packing, attention, graph, declared, optimizer)


def init_state(learner: Learner, key: jax.Array) -> State:
    """First state; to be jitted with output shardings, so that no host holds the whole model."""
    model = Transformer(learner.config.model, learner.vocab_size, key)
    return init_update(learner.optimizer, nnx.to_pure_dict(nnx.state(model)), key)


def token_logits(learner: Learner, params: Any, inputs: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """float32 scores of what follows each token, over the padded vocabulary."""
    segments = None
    if learner.packing == "segments":
        segments = jnp.cumsum(inputs == learner.bos_id, axis=1)

    def attention(q: Array, k: Array, v: Array) -> Array:
        return attend(q, k, v, segments, learner.attention)

    model = nnx.merge(learner.graph, nnx.State(params))
    return model.logits(model(inputs, attention))


def token_losses(
    learner: Learner, params: Any, tokens: Int[Array, "B S"]
) -> tuple[Float[Array, "B S-1"], Bool[Array, "B S-1"], Float[Array, "B S-1"]]:
    """Cross-entropy in nats, which targets count (-1 is padding), and the logsumexp of the logits.

    S = T + 1: each of a row's tokens but the last is an input, each but the first a target.
    """
    inputs, targets = jnp.maximum(tokens[:, :-1], 0), tokens[:, 1:]
    logits = token_logits(learner, params, inputs)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: it fuses, and stays local where the vocabulary is sharded.
    chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
    return normaliser - jnp.where(chosen, logits, 0).sum(-1), targets >= 0, normaliser


def objective(
    learner: Learner, params: Any, tokens: Int[Array, "B S"]
) -> tuple[Float[Array, ""], Sums]:
    """Summed cross-entropy plus z-loss of a micro-batch, and the sums that are reported."""
    losses, counted, normaliser = token_losses(learner, params, tokens)
    loss = jnp.where(counted, losses, 0).sum()
    z = learner.config.model.z_loss * jnp.where(counted, normaliser**2, 0).sum()
    return loss + z, {"loss": loss, "weight": counted.sum().astype(jnp.float32)}


def train_step(
    learner: Learner, state: State, batch: dict[str, Int[Array, "M B S"]]
) -> tuple[State, Metrics, Outputs]:
    """One update from a batch of M micro-batches."""

    def loss_fn(params: Any, micro_batch: dict[str, Array]) -> tuple[Array, Sums]:
        return objective(learner, params, micro_batch["tokens"])

    means, gradient = mean_gradient(loss_fn, state["params"], batch)
    state, metrics = update(learner.config.optim, learner.optimizer, state, gradient, means)
    return state, metrics, {}


def flops_per_token(learner: Learner) -> float:
    """Training FLOPs: 6 a parameter that multiplies (not the lookup) + causal attention, halved."""
    c = learner.config.model
    matrices = map_parameters(
        lambda v: math.prod(v.shape) * (v.label == "matrix"), learner.declared
    )
    head = math.prod(nnx.to_pure_dict(learner.declared)["embedding"].shape)
    attention = c.layers * c.heads * c.head_dim * learner.config.data.seq_len
    return 6.0 * (sum(jax.tree.leaves(matrices)) + head + attention)
