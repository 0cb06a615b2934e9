"""Decoder-only Transformer in the shape of Llama and Qwen3, as Flax NNX modules.

Letters in shapes: B rows, T tokens, D width, N heads, K kv heads, H head_dim, E = N H, P = H / 2,
F mlp_width, V vocabulary. Knows no loss, optimizer, mesh or file.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from .config import ModelConfig
from .training.axes import constrain
from .training.layers import linear, norm_gain, parameter, remat, rms_norm
from .training.precision import compute_dtype, product

VOCAB_MULTIPLE = 128  # matrix units need a multiple of this; padding ids are never produced

type Attention = Callable[[Array, Array, Array], Array]
"""(q, k, v) -> mixed values (B, T, N * H)."""


def rope_table(config: ModelConfig, length: int) -> Float[np.ndarray, "2 T P"]:
    """Cosines and sines of RoPE (arXiv:2104.09864), as a constant: XLA would recompute them.

    rope_factor > 1 stretches low frequencies as Llama 3.1 does.
    """
    frequency = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    if config.rope_factor != 1.0:
        # Llama 3.1's constants: wavelengths beyond context / 1 are slowed down, those under
        # context / 4 kept, and the band between interpolated.
        turns = config.rope_context * frequency / (2 * math.pi)
        keep = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
        frequency = frequency * (keep + (1 - keep) / config.rope_factor)
    angles = np.arange(length)[:, None] * frequency[None]
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotate(x: Float[Array, "B T N H"], table: Float[Array, "2 T P"]) -> Float[Array, "B T N H"]:
    """Rotate the pairs (x_i, x_{i + H/2}), the layout of Llama checkpoints on the Hub."""
    cos, sin = table[:, :, None].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class Block(nnx.Module):
    """One layer: attention and SwiGLU, each behind an RMSNorm and added to the residual stream."""

    def __init__(self, config: ModelConfig, key: jax.Array) -> None:
        c, keys = config, iter(jax.random.split(key, 7))
        self.config = config
        std_in = 1 / math.sqrt(c.width)
        # Outputs onto the residual stream start smaller with depth (GPT-2).
        std_residual = std_in / math.sqrt(2 * c.layers)
        matrix = partial(parameter, label="matrix")
        self.attention_norm = norm_gain(c.width)
        query_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.query = matrix(next(keys), (c.width, query_width), ("embed", "heads"), std=std_in)
        self.key = matrix(next(keys), (c.width, kv_width), ("embed", "heads"), std=std_in)
        self.value = matrix(next(keys), (c.width, kv_width), ("embed", "heads"), std=std_in)
        self.out = matrix(next(keys), (query_width, c.width), ("heads", "embed"), std=std_residual)
        if c.qk_norm:
            self.query_norm, self.key_norm = norm_gain(c.head_dim), norm_gain(c.head_dim)
        self.mlp_norm = norm_gain(c.width)
        self.gate = matrix(next(keys), (c.width, c.mlp_width), ("embed", "mlp"), std=std_in)
        self.up = matrix(next(keys), (c.width, c.mlp_width), ("embed", "mlp"), std=std_in)
        self.down = matrix(next(keys), (c.mlp_width, c.width), ("mlp", "embed"), std=std_residual)

    def __call__(
        self, x: Float[Array, "B T D"], table: Float[Array, "2 T P"], attention: Attention
    ) -> Float[Array, "B T D"]:
        """The layer's output."""
        return self.residual(x, attention(*self.query_key_value(x, table)))

    def query_key_value(
        self, x: Float[Array, "B T D"], table: Float[Array, "2 T P"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Projected, normed and rotated; what a cache of keys and values holds."""
        h = rms_norm(x, self.attention_norm[...])
        heads = (linear(h, matrix) for matrix in (self.query, self.key, self.value))
        q, k, v = (y.reshape(*y.shape[:2], -1, self.config.head_dim) for y in heads)
        if self.config.qk_norm:
            q, k = rms_norm(q, self.query_norm[...]), rms_norm(k, self.key_norm[...])
        return rotate(q, table), rotate(k, table), v

    def residual(
        self, x: Float[Array, "B T D"], mixed: Float[Array, "B T E"]
    ) -> Float[Array, "B T D"]:
        """The residual stream with what attention mixed, then with the MLP's output, added."""
        x = constrain(x + linear(mixed, self.out), "batch", None, None)
        h = rms_norm(x, self.mlp_norm[...])
        x = x + linear(jax.nn.silu(linear(h, self.gate)) * linear(h, self.up), self.down)
        return constrain(x, "batch", None, None)


class Transformer(nnx.Module):
    """Tokens -> logits. The layers' parameters are stacked along a leading axis and scanned."""

    def __init__(self, config: ModelConfig, vocab_size: int, key: jax.Array) -> None:
        embed_key, head_key, block_key = jax.random.split(key, 3)
        padded = -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.config, self.vocab_size = config, vocab_size
        std = 1 / math.sqrt(config.width)
        self.embedding = parameter(
            embed_key, (padded, config.width), ("vocab", None), std=std, label="embedding"
        )
        self.blocks = nnx.vmap(partial(Block, config))(jax.random.split(block_key, config.layers))
        self.final_norm = norm_gain(config.width)
        if not config.tied_embeddings:
            self.head = parameter(
                head_key, (padded, config.width), ("vocab", None), std=std, label="embedding"
            )

    def __call__(self, tokens: Int[Array, "B T"], attention: Attention) -> Float[Array, "B T D"]:
        """Final hidden states."""
        table = jnp.asarray(rope_table(self.config, tokens.shape[1]))
        graph, layers = nnx.split(self.blocks)

        def layer(x: Array, parameters: Any) -> tuple[Array, None]:
            return nnx.merge(graph, parameters)(x, table, attention), None

        layer = remat(layer, self.config.remat)
        x, _ = jax.lax.scan(layer, self.embed(tokens), layers, unroll=self.config.scan_unroll)
        return rms_norm(x, self.final_norm[...])

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What enters the first layer."""
        dtype = compute_dtype(self.config.compute_dtype)
        return constrain(self.embedding[...][tokens].astype(dtype), "batch", None, None)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """float32 scores over the padded vocabulary; padded ids get -1e30."""
        matrix = self.embedding if self.config.tied_embeddings else self.head
        flat = hidden.reshape(-1, hidden.shape[-1])
        scores = product("td,vd->tv", flat, matrix[...].astype(hidden.dtype))
        scores = scores.reshape(*hidden.shape[:-1], -1)
        if self.config.logit_cap:
            scores = self.config.logit_cap * jnp.tanh(scores / self.config.logit_cap)
        scores = constrain(scores, "batch", None, "logits")
        return jnp.where(jnp.arange(scores.shape[-1]) < self.vocab_size, scores, -1e30)
