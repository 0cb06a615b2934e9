"""Diffusion Transformer: patches of an image as tokens, modulated by noise and class.

DiT (arXiv:2212.09748) with the parts of JiT (arXiv:2511.13720): RMSNorm, qk-norm, 2-D RoPE, SwiGLU.
Letters in shapes: B images, H, W and K height, width and channels, F numbers of a patch, T tokens
(registers, then patches), D width, P half of a head, A numbers of an augmentation. Knows no
objective, optimizer, mesh or file.
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
from .errors import UserError
from .parts import SINUSOIDS, Attention, Conditioning, Modulation, dropout, matrix
from .training.axes import constrain
from .training.layers import linear, parameter, remat, rms_norm
from .training.precision import compute_dtype, product


def patchify(x: Float[Array, "B H W K"], patch: int) -> Float[Array, "B T F"]:
    """Non-overlapping patches, row by row; F = patch * patch * K, channels last."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def unpatchify(x: Float[Array, "B T F"], rows: int, patch: int) -> Float[Array, "B H W K"]:
    """The inverse of `patchify`; rows: of patches."""
    x = x.reshape(x.shape[0], rows, x.shape[1] // rows, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows * patch, -1, x.shape[-1])


def rope_table(
    head_dim: int, rows: int, columns: int, registers: int, theta: float
) -> Float[np.ndarray, "2 T P"]:
    """Cosines and sines of 2-D RoPE: half of a head turns with the row, half with the column.

    Axial as in arXiv:2403.13298, positions in patches. Registers turn by no angle.
    """
    frequency = theta ** (-np.arange(0, head_dim // 2, 2) / (head_dim // 2))
    places = np.indices((rows, columns)).reshape(2, -1, 1) * frequency
    angles = np.concatenate([np.zeros((registers, head_dim // 2)), np.concatenate(places, -1)])
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def modulate(
    x: Float[Array, "B T D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]
) -> Float[Array, "B T D"]:
    """RMSNorm(x) (1 + scale) + shift, computed in float32 and returned in x's dtype."""
    wide, shift, scale = (y.astype(jnp.float32) for y in (x, shift[:, None], scale[:, None]))
    return (rms_norm(wide, 1 + scale) + shift).astype(x.dtype)


class Block(nnx.Module):
    """Attention and SwiGLU, each modulated, gated and added to the residual stream."""

    def __init__(self, config: ModelConfig, key: jax.Array) -> None:
        c, keys = config, jax.random.split(key, 5)
        self.config = config
        # As gates begin with zero, nothing else has to keep the residual stream small.
        std = 1 / math.sqrt(c.width)
        self.modulation = Modulation(c.width, 6 * c.width, keys[0])
        self.attention = Attention(c.width, c.heads, c.attention, keys[1], out_std=std)
        self.gate = matrix(keys[2], (c.width, c.mlp_width), ("embed", "mlp"), std=std)
        self.up = matrix(keys[3], (c.width, c.mlp_width), ("embed", "mlp"), std=std)
        std_down = 1 / math.sqrt(c.mlp_width)
        self.down = matrix(keys[4], (c.mlp_width, c.width), ("mlp", "embed"), std=std_down)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        condition: Float[Array, "B D"],
        table: Float[Array, "2 T P"],
        key: jax.Array | None,
    ) -> Float[Array, "B T D"]:
        """The layer's output."""
        first, second = (None, None) if key is None else jax.random.split(key)
        rate, modulations = self.config.dropout, self.modulation(condition, 6)
        shift, scale, gate = modulations[:3]
        h = self.attention(modulate(x, shift, scale), table)
        x = constrain(x + gate[:, None] * dropout(h, rate, first), "batch", None, None)
        shift, scale, gate = modulations[3:]
        h = modulate(x, shift, scale)
        h = linear(jax.nn.silu(linear(h, self.gate)) * linear(h, self.up), self.down)
        return constrain(x + gate[:, None] * dropout(h, rate, second), "batch", None, None)


class DiT(nnx.Module):
    """Noisy image, noise and class -> float32 image, zeros at first.

    The blocks' parameters are stacked along a leading axis and scanned. shape: height, width and
    channels. classes: 0 = labels are ignored; label `classes` is none. augment: numbers that
    describe an augmentation, 0 = none. Raises UserError where patches do not fill the image.
    """

    def __init__(
        self,
        config: ModelConfig,
        shape: tuple[int, int, int],
        classes: int,
        augment: int,
        key: jax.Array,
    ) -> None:
        c, (height, width, channels) = config, shape
        if height % c.patch or width % c.patch:
            both = math.gcd(height, width)
            fitting = [p for p in range(1, both + 1) if both % p == 0]
            raise UserError(
                got=f"--model.patch {c.patch} for images of {height} x {width}",
                expected="patches that fill the image",
                do=f"choose --model.patch from {fitting}, or another --data.size",
            )
        embed, registers, block, condition, modulation, out = jax.random.split(key, 6)
        self.config, numbers = config, c.patch**2 * channels
        std = 1 / math.sqrt(numbers)
        embedding = partial(parameter, label="embedding")
        self.embed = embedding(embed, (numbers, c.width), (None, "embed"), std=std)
        if c.registers:  # further tokens, a place for what belongs to no patch (arXiv:2309.16588)
            self.registers = embedding(registers, (c.registers, c.width), (None, None), std=0.02)
        self.condition = Conditioning(c.width, classes, augment, condition)
        self.blocks = nnx.vmap(partial(Block, c))(jax.random.split(block, c.layers))
        self.modulation = Modulation(c.width, 2 * c.width, modulation)
        self.out = embedding(out, (c.width, numbers), ("embed", None), std=0.0)

    def __call__(
        self,
        x: Float[Array, "B H W K"],
        noise: Float[Array, " B"],
        label: Int[Array, " B"],
        augment: Float[Array, "B A"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "B H W K"]:
        """augment: None = none was done. key: of dropout, None = no dropout."""
        c, dtype = self.config, compute_dtype(self.config.compute_dtype)
        rows, columns = x.shape[1] // c.patch, x.shape[2] // c.patch
        turns = rope_table(c.width // c.heads, rows, columns, c.registers, c.rope_theta)
        table, condition = jnp.asarray(turns), self.condition(noise, label, augment, dtype)
        # Rotations tell distances alone. Added waves of the same frequencies tell places, as in DiT
        # and JiT; without them the digits' held-out loss was 0.435 instead of 0.418 (600 steps).
        waves = np.concatenate(rope_table(c.width, rows, columns, 0, c.rope_theta), -1)
        tokens = linear(patchify(x, c.patch).astype(dtype), self.embed) + jnp.asarray(waves, dtype)
        if c.registers:
            registers = jnp.tile(self.registers[...].astype(dtype), (x.shape[0], 1, 1))
            tokens = jnp.concatenate([registers, tokens], axis=1)
        graph, layers = nnx.split(self.blocks)

        def layer(tokens: Array, inputs: Any) -> tuple[Array, None]:
            parameters, key = inputs
            return nnx.merge(graph, parameters)(tokens, condition, table, key), None

        inputs = layers, None if key is None else jax.random.split(key, c.layers)
        tokens = constrain(tokens, "batch", None, None)
        tokens, _ = jax.lax.scan(remat(layer, c.remat), tokens, inputs, unroll=c.scan_unroll)
        h = modulate(tokens[:, c.registers :], *self.modulation(condition, 2))
        flat = product("td,df->tf", h.reshape(-1, c.width), self.out[...].astype(dtype))
        return unpatchify(flat.reshape(x.shape[0], rows * columns, -1), rows, c.patch)


def flops(config: ModelConfig, shape: tuple[int, int, int]) -> float:
    """Training FLOPs an image: 6 each time a parameter multiplies + the products of attention.

    The embedding and the output multiply patches, blocks all tokens, modulations one vector an
    image. The backward pass counts as two forward passes; what remat computes again does not count.
    """
    c, (height, width, channels) = config, shape
    patches = (height // c.patch) * (width // c.patch)
    tokens = patches + c.registers
    matrices = tokens * (4 * c.width**2 + 3 * c.width * c.mlp_width)
    block = matrices + 2 * tokens**2 * c.width + 6 * c.width**2
    ends = 2 * patches * c.patch**2 * channels * c.width
    condition = SINUSOIDS * c.width + c.width**2 + 2 * c.width**2
    return 6.0 * (c.layers * block + ends + condition)
