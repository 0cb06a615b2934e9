"""Causal Transformer over bytes, as Flax NNX modules.

Letters in shapes: B rows, T bytes, D width, N heads, H head width, V = 256. Knows no loss,
optimizer, mesh or file.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from .config import ModelConfig
from .training.attention import masked_attention
from .training.axes import constrain
from .training.layers import linear, norm_gain, parameter, remat, rms_norm
from .training.precision import compute_dtype, product

VOCAB = 256


def rotate(x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """Rotary positions (arXiv:2104.09864) on the pairs (x_i, x_{i + H/2})."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angles)[:, None], x.dtype) for f in (np.cos, np.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class Block(nnx.Module):
    """One layer: attention and an MLP of squared ReLUs, each normed and added to the stream."""

    def __init__(self, config: ModelConfig, key: jax.Array) -> None:
        width, self.heads = config.width, config.heads
        std = 1 / math.sqrt(width)
        to_stream = std / math.sqrt(2 * config.layers)  # smaller with depth, as in GPT-2
        keys, matrix = jax.random.split(key, 4), partial(parameter, label="matrix")
        self.attention_norm, self.mlp_norm = norm_gain(width), norm_gain(width)
        self.qkv = matrix(keys[0], (width, 3 * width), ("embed", "heads"), std=std)
        self.out = matrix(keys[1], (width, width), ("heads", "embed"), std=to_stream)
        self.up = matrix(keys[2], (width, 4 * width), ("embed", "mlp"), std=std)
        self.down = matrix(keys[3], (4 * width, width), ("mlp", "embed"), std=to_stream / 2)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The stream after this layer."""
        length = x.shape[1]
        h = linear(rms_norm(x, self.attention_norm[...]), self.qkv)
        # A head's query, key and value stand together, so that the axis tensor splits by heads.
        q, k, v = jnp.moveaxis(h.reshape(*h.shape[:2], self.heads, 3, -1), 3, 0)
        causal = jnp.arange(length)[:, None] >= jnp.arange(length)
        mixed = masked_attention(rotate(q), rotate(k), v, causal[None])
        x = constrain(x + linear(mixed, self.out), "batch", None, None)
        h = jnp.square(jax.nn.relu(linear(rms_norm(x, self.mlp_norm[...]), self.up)))
        return constrain(x + linear(h, self.down), "batch", None, None)


class Transformer(nnx.Module):
    """Bytes -> scores of the next byte. Layers are stacked along a leading axis and scanned."""

    def __init__(self, config: ModelConfig, key: jax.Array) -> None:
        embedding, blocks = jax.random.split(key)
        self.config = config
        # 256 rows are few: every device has them all.
        self.embedding = parameter(
            embedding,
            (VOCAB, config.width),
            (None, None),
            std=1 / math.sqrt(config.width),
            label="embedding",
        )
        self.blocks = nnx.vmap(partial(Block, config))(jax.random.split(blocks, config.layers))
        self.final_norm = norm_gain(config.width)

    def __call__(self, text: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """float32 logits; position t sees bytes 0 to t."""
        dtype = compute_dtype(self.config.compute_dtype)
        graph, layers = nnx.split(self.blocks)

        def layer(x: Array, parameters: Any) -> tuple[Array, None]:
            return nnx.merge(graph, parameters)(x), None

        x = constrain(self.embedding[...][text].astype(dtype), "batch", None, None)
        x, _ = jax.lax.scan(remat(layer, self.config.remat), x, layers)
        x = rms_norm(x, self.final_norm[...])
        logits = product("td,vd->tv", x.reshape(-1, x.shape[-1]), self.embedding[...].astype(dtype))
        return constrain(logits.reshape(*text.shape, VOCAB), "batch", None, None)
