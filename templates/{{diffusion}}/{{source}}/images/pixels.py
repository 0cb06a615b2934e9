"""Pixels on disk <-> the network's range. Pure functions; latents.py does this for latents."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
from numpy import ndarray


def to_network(
    pixels: UInt8[Array | ndarray, "*B H W C"],
    levels: int,
    noise: Float[Array, "*B H W C"] | None = None,
) -> Float[Array, "*B H W C"]:
    """Values 0 to levels - 1 -> float32 in [-1, 1]: x = 2 u / (levels - 1) - 1.

    With `noise`, uniform in [0, 1), they are dequantised: x = 2 (u + noise) / levels - 1, whose
    density bounds the probability of u from below (Theis et al., arXiv:1511.01844, section 3.1).
    """
    values = jnp.asarray(pixels, jnp.float32)
    if noise is None:
        return 2 * values / (levels - 1) - 1
    return 2 * (values + noise) / levels - 1


def to_pixels(
    images: Float[Array | ndarray, "*B H W C"], levels: int, *, dequantized: bool = False
) -> UInt8[Array, "*B H W C"]:
    """The nearest value for each pixel of any float image, clipped to 0 to levels - 1.

    With `dequantized`, the inverse of `to_network` with noise, for models that are trained so:
    value u is then [u, u + 1) of `levels` equal parts, rather than a point with its neighbourhood.
    """
    unit = (jnp.asarray(images, jnp.float32) + 1) / 2
    values = jnp.floor(unit * levels) if dequantized else jnp.round(unit * (levels - 1))
    return jnp.clip(values, 0, levels - 1).astype(jnp.uint8)
