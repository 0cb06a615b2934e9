"""Augmentation on the device: mirror images, and transforms of which the network is told.

Pure functions of a key and a batch; an image's draws depend on its place in the batch alone.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

CONDITIONS = 7  # numbers that tell the network how an image was transformed; 0 = not at all
# Standard deviations, as EDM has them (arXiv:2206.00364, appendix F.2).
SCALE_STD = 0.2  # of log2 of the scale, and of the ratio of width to height
SHIFT_STD = 0.125  # of the shift along each axis, parts of the image


def flip(key: Key[Array, ""], images: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
    """Mirror each image left to right or not, by a fair coin of its own."""
    heads = jax.random.bernoulli(key, shape=(*images.shape[:-3], 1, 1, 1))
    return jnp.where(heads, images[..., ::-1, :], images)


def augment(
    key: Key[Array, ""], images: Float[Array, "*B H W C"], probability: float
) -> tuple[Float[Array, "*B H W C"], Float[Array, "*B conditions"]]:
    """Transformed images, and the conditions by which the network can tell them from data.

    The non-leaky augmentation of EDM (arXiv:2206.00364, appendix F.2): as the network knows the
    transform and samples with condition 0, none shows in samples. Each of mirroring, scale, ratio
    of the sides, rotation and shift happens with `probability`, mirroring with half of it. Of EDM's
    list, the vertical mirror is left out, which is the horizontal one turned by half a circle, and
    so are ratios along slanted axes, which a few pixels hardly show.
    """
    parts = ("on", "mirror", "scale", "ratio", "angle", "shift")
    keys = dict(zip(parts, jax.random.split(key, len(parts)), strict=True))
    each = images.shape[:-3]
    mirrors, scales, ratios, turns, shifts = jax.random.bernoulli(
        keys["on"], probability, (5, *each)
    )
    angle = jax.random.uniform(keys["angle"], each, minval=-jnp.pi, maxval=jnp.pi) * turns
    conditions = jnp.stack(
        [
            1.0 * (jax.random.bernoulli(keys["mirror"], shape=each) & mirrors),
            jax.random.normal(keys["scale"], each) * scales,
            jax.random.normal(keys["ratio"], each) * ratios,
            jnp.cos(angle) - 1,
            jnp.sin(angle),
            *(jax.random.normal(keys["shift"], (2, *each)) * shifts),
        ],
        axis=-1,
    )
    return jnp.vectorize(transform, signature="(h,w,c),(a)->(h,w,c)")(
        images, conditions
    ), conditions


def transform(
    image: Float[Array, "H W C"], condition: Float[Array, " conditions"]
) -> Float[Array, "H W C"]:
    """Mirror, scale, rotate about the middle, then shift an image: one bilinear resampling.

    Beyond its edges an image goes on as its mirror image. Condition 0 gives the image bit for bit.
    """
    mirror, scale, ratio, cos_less_1, sin, right, down = condition
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    # From a pixel of the result back to where its value was: the inverses in reverse order.
    # Written out, since matrix products are not exact on accelerators.
    x = x - (width - 1) / 2 - right * SHIFT_STD * width
    y = y - (height - 1) / 2 - down * SHIFT_STD * height
    cos = cos_less_1 + 1
    x, y = cos * x + sin * y, cos * y - sin * x
    x = x * jnp.exp2(-SCALE_STD * (scale + ratio)) * (1 - 2 * mirror)
    y = y * jnp.exp2(-SCALE_STD * (scale - ratio))
    places = [y + (height - 1) / 2, x + (width - 1) / 2]
    one = jax.vmap(lambda c: map_coordinates(c, places, order=1, mode="mirror"), -1, -1)
    return one(image)
