"""The network that the settings name: chooses and resolves, computes nothing."""

from dataclasses import replace
from typing import Any, cast

import jax

from . import dit, unet
from .config import ModelConfig
from .parts import resolve_attention
from .training.precision import compute_dtype


def make_network(
    config: ModelConfig,
    shape: tuple[int, int, int],
    classes: int,
    augment: int,
    key: jax.Array,
    platform: str | None = None,
) -> dit.DiT | unet.UNet:
    """A backbone with its first parameters; `auto` is resolved for a platform (None = this one).

    shape: height, width and channels of an image. classes: 0 = unconditional. augment: numbers that
    describe an augmentation, 0 = none.
    """
    is_dit = config.backbone == "dit"
    widest = config.width * (1 if is_dit else config.multipliers[-1])  # where attention is
    dtype = str(compute_dtype(config.compute_dtype, platform))
    attention = resolve_attention(config.attention, dtype, widest // config.heads, platform)
    config = replace(config, compute_dtype=cast(Any, dtype), attention=cast(Any, attention))
    return (dit.DiT if is_dit else unet.UNet)(config, shape, classes, augment, key)


def flops_per_image(config: ModelConfig, shape: tuple[int, int, int]) -> float:
    """Training FLOPs of one image."""
    return (dit if config.backbone == "dit" else unet).flops(config, shape)
