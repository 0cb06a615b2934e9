"""What both backbones are made of: conditioning, attention, dropout. Knows no image and no loss.

Letters in shapes: B images, S sinusoids, T tokens, D width, N heads, H head_dim, P = H / 2, E part
of the outputs, A numbers of an augmentation.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from .errors import UserError
from .training.attention import cudnn_fits, masked_attention
from .training.axes import constrain
from .training.layers import linear, norm_gain, parameter, rms_norm

SINUSOIDS = 256  # sines and cosines of the noise, as in DiT

matrix = partial(parameter, label="matrix")


def bias(size: int) -> nnx.Param:
    """What is added to features: zeros, replicated, never decayed."""
    return nnx.Param(jnp.zeros((size,), jnp.float32), axes=(None,), decay=False, label="vector")


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Zeros with probability `rate`, the rest scaled to the same mean; without a key, x."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def sinusoids(noise: Float[Array, " B"]) -> Float[Array, "B S"]:
    """float32 cosines and sines of the noise, for an input of about unit scale.

    Angular frequencies fall geometrically from 100 towards 0.1, where the sine still rises over the
    whole range. DiT (arXiv:2212.09748) gives a time in 0 ... 1000 to those of a Transformer, which
    is to begin at 1000 here, and tells apart the thousand times that it trains on. A real number
    asks for less: after 600 steps on digits the held-out loss was as low from 100, and second
    differences of the velocity over 0.015 of t were 0.29 of those from 1000. From 1 it was higher.
    """
    half = SINUSOIDS // 2
    frequency = 100 * 1000.0 ** (-np.arange(half) / half)
    angles = noise.astype(jnp.float32)[:, None] * frequency.astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class Conditioning(nnx.Module):
    """Noise, class and augmentation of each image -> the vector that modulates its features."""

    def __init__(self, width: int, classes: int, augment: int, key: jax.Array) -> None:
        first, second, label_key, augment_key = jax.random.split(key, 4)
        self.noise_in = matrix(
            first, (SINUSOIDS, width), ("embed", "mlp"), std=1 / math.sqrt(SINUSOIDS)
        )
        self.noise_out = matrix(second, (width, width), ("mlp", "embed"), std=1 / math.sqrt(width))
        self.classes, embedding = classes, partial(parameter, label="embedding")
        if classes:  # the last row is that of no class
            # About as large as what the noise adds: with 0.02, as in DiT, short runs learn classes
            # late (after 600 steps on digits, a held-out loss of 0.462 instead of 0.429).
            self.label = embedding(label_key, (classes + 1, width), (None, None), std=0.5)
        if augment:
            std = 1 / math.sqrt(augment)
            self.augment = embedding(augment_key, (augment, width), (None, "embed"), std=std)

    def __call__(
        self,
        noise: Float[Array, " B"],
        label: Int[Array, " B"],
        augment: Float[Array, "B A"] | None,
        dtype: jnp.dtype,
    ) -> Float[Array, "B D"]:
        """After a SiLU, as whatever reads it begins with one. augment: None = zeros, no change."""
        hidden = jax.nn.silu(linear(sinusoids(noise).astype(dtype), self.noise_in))
        total = linear(hidden, self.noise_out)
        if self.classes:
            total = total + self.label[...][label].astype(dtype)
        if augment is not None:
            total = total + linear(augment.astype(dtype), self.augment)
        return constrain(jax.nn.silu(total), "batch", None)


class Modulation(nnx.Module):
    """Conditioning -> scales, shifts or gates of features; zeros at first (adaLN-Zero of DiT)."""

    def __init__(self, width: int, outputs: int, key: jax.Array) -> None:
        self.matrix = matrix(key, (width, outputs), ("embed", "mlp"), std=0.0)
        self.bias = bias(outputs)

    def __call__(self, condition: Float[Array, "B D"], parts: int) -> list[Float[Array, "B E"]]:
        """`parts` equal parts of the outputs."""
        out = linear(condition, self.matrix) + self.bias[...].astype(condition.dtype)
        return jnp.split(constrain(out, "batch", None), parts, -1)


def resolve_attention(choice: str, dtype: str, head_dim: int, platform: str | None = None) -> str:
    """ "auto" -> "cudnn" where that kernel fits, else "xla"."""
    fits = cudnn_fits(dtype, head_dim, platform)
    if choice == "cudnn" and not fits:
        raise UserError(
            got=f"--model.attention cudnn on {jax.devices()[0].device_kind} with "
            f"{dtype} and heads of {head_dim}",
            expected="an NVIDIA GPU, bfloat16 and heads of 8, 16, ... 128",
            do="leave --model.attention at auto",
        )
    return ("cudnn" if fits else "xla") if choice == "auto" else choice


def rotate(x: Float[Array, "B T N H"], table: Float[Array, "2 T P"]) -> Float[Array, "B T N H"]:
    """Rotate the pairs (x_i, x_{i + H/2}) by the angles whose cosines and sines the table holds."""
    cos, sin = table[:, :, None].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nnx.Module):
    """Self-attention in which every token sees every token; queries and keys are normed."""

    def __init__(
        self, width: int, heads: int, implementation: str, key: jax.Array, out_std: float
    ) -> None:
        self.heads, self.implementation = heads, implementation
        query, k, value, out = jax.random.split(key, 4)
        std = 1 / math.sqrt(width)
        self.query = matrix(query, (width, width), ("embed", "heads"), std=std)
        self.key = matrix(k, (width, width), ("embed", "heads"), std=std)
        self.value = matrix(value, (width, width), ("embed", "heads"), std=std)
        self.out = matrix(out, (width, width), ("heads", "embed"), std=out_std)
        self.query_norm, self.key_norm = norm_gain(width // heads), norm_gain(width // heads)

    def __call__(
        self, x: Float[Array, "B T D"], table: Float[Array, "2 T P"] | None = None
    ) -> Float[Array, "B T D"]:
        """table: cosines and sines of the positions; None = no positions."""
        parts = (linear(x, matrix) for matrix in (self.query, self.key, self.value))
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in parts)
        q, k = rms_norm(q, self.query_norm[...]), rms_norm(k, self.key_norm[...])
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return linear(attend(q, k, v, self.implementation), self.out)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    implementation: str,
) -> Float[Array, "B T N*H"]:
    """Every query mixes the values of all keys, by the kernel of cuDNN or by matrix products."""
    if implementation == "cudnn":
        out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        return out.reshape(*out.shape[:2], -1)
    return masked_attention(q, k, v, None)
