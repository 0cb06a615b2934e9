"""A small UNet: convolutions over halved and doubled resolutions, modulated by noise and class.

The parts are those of DDPM (arXiv:2006.11239) and ADM (arXiv:2105.05233). Letters in shapes: B
images, H and W height and width, C and D channels, E width of the conditioning, A numbers of an
augmentation. Knows no objective, optimizer, mesh or file.
"""

import itertools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .config import ModelConfig
from .errors import UserError
from .parts import SINUSOIDS, Attention, Conditioning, Modulation, bias, dropout, matrix
from .training.axes import constrain
from .training.layers import linear, norm_gain, parameter, remat
from .training.precision import compute_dtype

CONDITION = 4  # width of the conditioning, in widths of the network (DDPM)


def kernel(
    key: jax.Array, inputs: int, outputs: int, axes: tuple[str | None, str | None], gain: float = 1
) -> nnx.Param:
    """The weights (3, 3, inputs, outputs) of a convolution; Muon leaves them to AdamW."""
    return parameter(
        key,
        (3, 3, inputs, outputs),
        (None, None, *axes),
        std=gain / math.sqrt(9 * inputs),
        label="kernel",
    )


def conv(x: Float[Array, "B H W C"], weights: nnx.Param) -> Float[Array, "B H W D"]:
    """3 x 3 convolution in x's dtype; the border sees zeros."""
    return jax.lax.conv_general_dilated(
        x,
        weights[...].astype(x.dtype),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def group_norm(
    x: Float[Array, "B H W C"], gain: Float[Array, "#B C"], shift: Float[Array, "#B C"]
) -> Float[Array, "B H W C"]:
    """GroupNorm (arXiv:1803.08494), computed in float32 and returned in x's dtype.

    Up to 32 groups of at least 4 channels: C is a multiple of 4.
    """
    batch, height, width, channels = x.shape
    groups = math.gcd(32, channels // 4)
    wide = x.astype(jnp.float32).reshape(batch, height, width, groups, -1)
    wide = wide - wide.mean((1, 2, 4), keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, (1, 2, 4), keepdims=True) + 1e-6)
    gain, shift = (y.astype(jnp.float32)[:, None, None] for y in (gain, shift))
    return (wide.reshape(x.shape) * gain + shift).astype(x.dtype)


def halve(x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
    """The means of 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def double(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Each pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class Place(NamedTuple):
    """Where a residual block stands: resolution is full at level 0, halved at each further one."""

    side: Literal["down", "middle", "up"]
    level: int
    inputs: int
    outputs: int
    name: str


def places(config: ModelConfig) -> list[Place]:
    """The residual blocks in the order in which they act."""
    widths = [config.width * m for m in config.multipliers]
    last, channels = len(widths) - 1, widths[0]
    found = []
    for level, width in enumerate(widths):
        for i in range(config.layers):
            found.append(Place("down", level, channels, width, f"down_{level}_{i}"))
            channels = width
    found += [Place("middle", last, channels, channels, f"middle_{i}") for i in range(2)]
    for level, width in reversed([*enumerate(widths)]):
        for i in range(config.layers):  # each also reads the output of one on the way down
            found.append(Place("up", level, channels + width, width, f"up_{level}_{i}"))
            channels = width
    return found


class Residual(nnx.Module):
    """Two convolutions behind norms, the second norm modulated, added to the input."""

    def __init__(self, config: ModelConfig, place: Place, key: jax.Array) -> None:
        inputs, outputs = place.inputs, place.outputs
        first, modulation, second, shortcut = jax.random.split(key, 4)
        self.config = config
        self.gain, self.bias = norm_gain(inputs), bias(inputs)
        self.first = kernel(first, inputs, outputs, ("embed", "mlp"))
        self.modulation = Modulation(CONDITION * config.width, 2 * outputs, modulation)
        self.second = kernel(second, outputs, outputs, ("mlp", "embed"), gain=0)
        if inputs != outputs:
            std = 1 / math.sqrt(inputs)
            self.shortcut = matrix(shortcut, (inputs, outputs), ("embed", None), std=std)

    def __call__(
        self, x: Float[Array, "B H W C"], condition: Float[Array, "B E"], key: jax.Array | None
    ) -> Float[Array, "B H W D"]:
        """The block's output."""
        h = group_norm(x, self.gain[...][None], self.bias[...][None])
        h = conv(jax.nn.silu(h), self.first)
        shift, scale = self.modulation(condition, 2)
        h = jax.nn.silu(group_norm(h, 1 + scale.astype(jnp.float32), shift))
        h = conv(dropout(h, self.config.dropout, key), self.second)
        x = linear(x, self.shortcut) if x.shape[-1] != h.shape[-1] else x
        return constrain(x + h, "batch", None, None, None)


class UNet(nnx.Module):
    """Noisy image, noise and class -> float32 image, zeros at first.

    The arguments are those of `DiT`. Raises UserError where the image cannot be halved as often as
    `multipliers` asks for.
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
        halvings = len(c.multipliers) - 1
        if height % 2**halvings or width % 2**halvings:
            both = math.gcd(height, width)
            raise UserError(
                got=f"images of {height} x {width} and {halvings + 1} --model.multipliers",
                expected=f"a height and a width that can be halved {halvings} times",
                do=f"give at most {(both & -both).bit_length()} multipliers, or choose a "
                f"--data.size that is a multiple of {2**halvings}",
            )
        first, condition, attention, out, *keys = jax.random.split(key, 4 + len(places(c)))
        self.config, wide, narrow = c, c.width * c.multipliers[-1], c.width * c.multipliers[0]
        self.condition = Conditioning(CONDITION * c.width, classes, augment, condition)
        self.first = kernel(first, channels, narrow, (None, "embed"))
        self.blocks = nnx.Dict(
            {p.name: Residual(c, p, key) for p, key in zip(places(c), keys, strict=True)}
        )
        self.attention_gain, self.attention_bias = norm_gain(wide), bias(wide)
        self.attention = Attention(wide, c.heads, c.attention, attention, out_std=0.0)
        self.out_gain, self.out_bias = norm_gain(narrow), bias(narrow)
        self.out = kernel(out, narrow, channels, ("embed", None), gain=0)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        noise: Float[Array, " B"],
        label: Int[Array, " B"],
        augment: Float[Array, "B A"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "B H W C"]:
        """augment: None = none was done. key: of dropout, None = no dropout."""
        c, dtype = self.config, compute_dtype(self.config.compute_dtype)
        condition = self.condition(noise, label, augment, dtype)
        keys = itertools.repeat(None) if key is None else jax.random.split(key, len(self.blocks))
        h, level, skips = conv(x.astype(dtype), self.first), 0, list[Array]()
        for place, block_key in zip(places(c), keys, strict=False):
            if place.level != level:
                h, level = (halve if place.level > level else double)(h), place.level
            if place.side == "up":
                h = jnp.concatenate([h, skips.pop()], -1)
            h = remat(self.blocks[place.name], c.remat)(h, condition, block_key)
            if place.side == "down":
                skips.append(h)
            if place.name == "middle_0":
                h = h + self.mix(h)
        h = h.astype(jnp.float32)
        h = group_norm(h, self.out_gain[...][None], self.out_bias[...][None])
        return conv(jax.nn.silu(h), self.out)

    def mix(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Attention between all pixels; zero padding of the convolutions gave them positions."""
        h = group_norm(x, self.attention_gain[...][None], self.attention_bias[...][None])
        return self.attention(h.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)


def flops(config: ModelConfig, shape: tuple[int, int, int]) -> float:
    """Training FLOPs an image: 6 each time a parameter multiplies + the products of attention.

    As in `dit.flops`; a convolution multiplies 9 times at every pixel, the border included.
    """
    c, (height, width, channels) = config, shape
    condition, wide = CONDITION * c.width, c.width * c.multipliers[-1]
    total = SINUSOIDS * condition + condition**2
    total += 2 * 9 * height * width * channels * c.width * c.multipliers[0]
    for place in places(c):
        shortcut = place.inputs * place.outputs * (place.inputs != place.outputs)
        convolutions = 9 * (place.inputs + place.outputs) * place.outputs
        total += (height * width // 4**place.level) * (convolutions + shortcut)
        total += condition * 2 * place.outputs
    lowest = height * width // 4 ** (len(c.multipliers) - 1)
    return 6.0 * (total + lowest * 4 * wide**2 + 2 * lowest**2 * wide)
