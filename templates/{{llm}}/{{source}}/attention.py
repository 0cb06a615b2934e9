"""Causal attention behind one function, with the kernel of the platform. Has no parameters.

Letters: B rows, T queries, S keys, N query heads, K key-value heads, G = N / K, H head_dim.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .errors import UserError
from .training.attention import cudnn_fits, masked_attention

# Queries are taken in blocks that see only the keys up to their end: half of the score matrix is
# never built. On two CPU cores, where this path matters, a layer took 63 ms, and with one product
# over all keys 160 ms. Long rows have larger blocks, as each is compiled by itself: at 4,096
# tokens, 16 blocks instead of 32 compile in 40 s instead of 55, and take 0.81 of the time.
QUERY_BLOCK, MOST_BLOCKS = 128, 16


def resolve_attention(
    choice: str, packing: str, dtype: str, head_dim: int, platform: str | None = None
) -> str:
    """ "auto" -> "cudnn" where that kernel fits and rows are single documents, else "xla"."""
    fits = cudnn_fits(dtype, head_dim, platform)
    if choice == "cudnn" and not fits:
        raise UserError(
            got=f"--model.attention cudnn on {jax.devices()[0].device_kind} with "
            f"{dtype} and heads of {head_dim}",
            expected="an NVIDIA GPU, bfloat16 and heads of 8, 16, ... 128",
            do="leave --model.attention at auto",
        )
    best = "cudnn" if fits and packing != "segments" else "xla"
    return best if choice == "auto" else choice


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
    implementation: str,
) -> Float[Array, "B T N*H"]:
    """Causal self-attention that does not cross segments; None = each row is one document."""
    if implementation == "cudnn":
        # A mask would become a full B x N x T x T bias there (jax#28974).
        assert segments is None, "cuDNN attention needs packing=documents"
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
        return out.reshape(*out.shape[:2], -1)
    length = q.shape[1]
    positions, mixed = jnp.arange(length), []
    block = max(QUERY_BLOCK, -(-length // MOST_BLOCKS))
    for start in range(0, length, block):
        rows = slice(start, start + block)
        seen = slice(0, start + block)
        # Compared in the program: constants would take half a byte for each pair of tokens.
        mask = positions[None, rows, None] >= positions[None, None, seen]
        if segments is not None:
            mask &= segments[:, rows, None] == segments[:, None, seen]
        mixed.append(masked_attention(q[:, rows], k[:, seen], v[:, seen], mask))
    return jnp.concatenate(mixed, axis=1)
