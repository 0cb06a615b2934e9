"""DINOv2's vision Transformer: images -> the class token. Computes no distance and reads no file.

The reference is FD-DINOv2 of EDM2 (arXiv:2312.02696), which follows dgm-eval (arXiv:2306.04675):
`dinov2_vitl14` of facebookresearch/dinov2, here under the tensor names of facebook/dinov2-large on
the Hugging Face Hub. ViT-S/14 and ViT-B/14 are taken too, but are other metrics; the giant, whose
MLP is gated, and networks with registers are not.

Hugging Face's own code differs: it crops images, and places position embeddings by the exact ratio
of the grids (see `positions`). dgm-eval rounds resized images to 8 bits, EDM2 and this file do not.
"""

import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

METRIC = "FD-DINOv2"
TOKEN, POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
PATCHES = "embeddings.patch_embeddings.projection"
LINEAR = (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "mlp.fc1",
    "mlp.fc2",
)
FIRST = f"{PATCHES}.weight"  # tells a file of this network
ORIGIN = """FD-DINOv2: the file as it is, which this downloads:
hf download facebook/dinov2-large model.safetensors --local-dir ."""
SIZE = 224  # height and width that the network sees, pixels
HEAD_WIDTH = 64  # at every size of DINOv2; the file does not tell
NORM_EPSILON = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, by channel, in 0 ... 1

type Params = Mapping[str, Array]


def layer_names(found: Iterable[str]) -> list[str]:
    """What the names of each layer's tensors start with, in order."""
    numbers = (int(name.split(".")[2]) for name in found if name.startswith("encoder.layer."))
    return [f"encoder.layer.{i}." for i in range(max(numbers, default=0) + 1)]


def tensor_names(found: Iterable[str]) -> set[str]:
    """The names of a whole file, of as many layers as are found."""
    of_layer = ("norm1", "norm2", *LINEAR)
    pairs = {"layernorm", PATCHES} | {layer + x for layer in layer_names(found) for x in of_layer}
    scales = {f"{layer}layer_scale{i}.lambda1" for layer in layer_names(found) for i in (1, 2)}
    return (
        {TOKEN, POSITIONS} | scales | {f"{x}.{part}" for x in pairs for part in ("weight", "bias")}
    )


def features(params: Params, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
    """The class token after the last norm, of images in 0 ... 255."""
    # With antialiasing both JAX and torch take Keys' -0.5, without it torch takes -0.75.
    x = jax.image.resize(images, (len(images), SIZE, SIZE, 3), "cubic", antialias=True)
    x = (x / 255 - jnp.asarray(MEAN)) / jnp.asarray(STD)
    kernel = params[f"{PATCHES}.weight"]
    x = jax.lax.conv_general_dilated(
        x, kernel, kernel.shape[2:], "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    batch, side, _, width = x.shape
    x = (x + params[f"{PATCHES}.bias"]).reshape(batch, side * side, width)
    x = jnp.concatenate([jnp.broadcast_to(params[TOKEN], (batch, 1, width)), x], 1)
    x = x + positions(params[POSITIONS], side)
    for name in layer_names(params):
        x = layer(params, name, x)
    return norm(params, "layernorm", x[:, 0])


def positions(table: Float[Array, "1 N D"], side: int) -> Float[Array, "1 T D"]:
    """The class token's position, then those of a grid, resampled to side x side patches.

    Torch's bicubic (Keys' -0.75, borders repeated). The ratio of the grids is off by design: DINOv2
    adds 0.1 to the side, and its published features are computed so.
    """
    grid = math.isqrt(table.shape[1] - 1)
    if grid == side:
        return table
    centres = (np.arange(side) + 0.5) * grid / (side + 0.1) - 0.5
    taps = np.floor(centres)[:, None].astype(int) + np.arange(-1, 3)
    t, a = np.abs(centres[:, None] - taps), -0.75
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
    weights = np.where(t <= 1, near, far)
    # [side, grid]: what each output takes of each input; taps beyond the border add to its pixel.
    matrix = np.einsum("st,stg->sg", weights, np.eye(grid)[taps.clip(0, grid - 1)])
    matrix = matrix.astype(np.float32)
    patches = table[0, 1:].reshape(grid, grid, -1)
    patches = jnp.einsum("yi,xj,ijd->yxd", matrix, matrix, patches).reshape(1, side * side, -1)
    return jnp.concatenate([table[:, :1], patches], 1)


def layer(params: Params, name: str, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Attention and MLP, each behind a norm and scaled by channel, added to x."""

    def linear(part: str, x: Array) -> Array:
        return x @ params[f"{name}{part}.weight"].T + params[f"{name}{part}.bias"]

    h = norm(params, f"{name}norm1", x)
    query, key, value = (linear(p, h).reshape(*x.shape[:2], -1, HEAD_WIDTH) for p in LINEAR[:3])
    h = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
    x = x + params[f"{name}layer_scale1.lambda1"] * linear("attention.output.dense", h)
    h = norm(params, f"{name}norm2", x)
    h = linear("mlp.fc2", jax.nn.gelu(linear("mlp.fc1", h), approximate=False))
    return x + params[f"{name}layer_scale2.lambda1"] * h


def norm(params: Params, name: str, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """LayerNorm."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + NORM_EPSILON)
    return x * params[f"{name}.weight"] + params[f"{name}.bias"]
