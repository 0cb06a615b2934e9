"""Masked attention as two matrix products, and whether cuDNN's kernel can be used.

Letters: B rows, T queries, S keys, N query heads, K key-value heads, H head_dim.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .precision import product


def cudnn_fits(dtype: str, head_dim: int, platform: str | None = None) -> bool:
    """Whether cuDNN's attention takes this; JAX itself never picks it (jax#24411).

    It needs an NVIDIA GPU, bfloat16 and heads of 8, 16, ... 128. platform: of JAX, None =
    the one here. The kernel raises on others when it is traced.
    """
    on_cuda = (platform or jax.default_backend()) == "gpu" and (
        "cuda" in jax.devices()[0].client.platform_version.lower()
    )
    return on_cuda and dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128


def masked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "#B T S"] | None,
) -> Float[Array, "B T N*H"]:
    """Softmax attention as two batched matrix products with a float32 softmax between them.

    mask: which keys a query sees; None = all.
    """
    batch, length, heads, dim = q.shape
    q = q.reshape(batch, length, k.shape[2], -1, dim) * (1 / math.sqrt(dim))
    scores = product("btkgh,bskh->bkgts", q, k)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -1e30)
    # Dividing after the second product touches H columns instead of S.
    exp_scores = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = product("bkgts,bskh->bkgth", exp_scores.astype(v.dtype), v)
    mixed = (mixed / exp_scores.sum(-1, keepdims=True)).astype(v.dtype)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads * dim)
