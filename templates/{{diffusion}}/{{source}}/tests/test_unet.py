"""The UNet's parts follow their definitions, and its blocks are wired as a U."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ..config import ModelConfig
from ..errors import UserError
from ..network import make_network
from ..unet import conv, double, group_norm, halve, places
from .networks import (
    INPUTS,
    UNET,
    assert_close,
    filled,
    forward,
    make,
    merged,
    plain,
)


def numpy_conv(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height, j : j + width] @ weights[i, j] for i in range(3) for j in range(3)
    )


def numpy_norm(x: np.ndarray, groups: int) -> np.ndarray:
    out = np.zeros_like(x)
    size = x.shape[-1] // groups
    for image, group in np.ndindex(len(x), groups):
        part = x[image, ..., group * size : (group + 1) * size]
        out[image, ..., group * size : (group + 1) * size] = (part - part.mean()) / np.sqrt(
            part.var() + 1e-6
        )
    return out


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_a_residual_block_equals_its_definition() -> None:
    parameters = filled(UNET)
    model = merged(UNET, parameters)
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters["blocks"]["down_1_0"])
    x = jax.random.normal(jax.random.key(5), (2, 4, 6, 8))
    condition = jax.random.normal(jax.random.key(6), (2, 32))
    out = jax.jit(model.blocks["down_1_0"])(x, condition, None)
    x, condition = np.asarray(x, np.float64), np.asarray(condition, np.float64)
    h = numpy_conv(silu(numpy_norm(x, 2) * w["gain"] + w["bias"]), w["first"])
    both = condition @ w["modulation"]["matrix"] + w["modulation"]["bias"]
    shift, scale = np.split(both[:, None, None], 2, -1)
    h = numpy_conv(silu(numpy_norm(h, 4) * (1 + scale) + shift), w["second"])
    expected = x @ w["shortcut"] + h
    assert_close(out, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_blocks_are_wired_as_a_u() -> None:
    m = merged(UNET, filled(UNET))
    image, noise, label, augment, _ = INPUTS

    @jax.jit
    def by_hand() -> jax.Array:
        c = m.condition(noise, label, augment, jnp.dtype("float32"))
        b = {name: lambda x, name=name: m.blocks[name](x, c, None) for name in m.blocks}
        down_0 = b["down_0_0"](conv(image, m.first))
        down_1 = b["down_1_0"](halve(down_0))
        h = b["middle_0"](down_1)
        normed = group_norm(h, m.attention_gain[...][None], m.attention_bias[...][None])
        h = b["middle_1"](h + m.attention(normed.reshape(4, 8, 16)).reshape(4, 2, 4, 16))
        h = b["up_1_0"](jnp.concatenate([h, down_1], -1))
        h = b["up_0_0"](jnp.concatenate([double(h), down_0], -1))
        h = group_norm(h, m.out_gain[...][None], m.out_bias[...][None])
        return conv(jax.nn.silu(h), m.out)

    assert_close(forward(UNET, filled(UNET)), by_hand(), atol=1e-5)


def test_groups_divide_the_channels() -> None:
    for channels in (4, 20, 48, 176):
        x = jax.random.normal(jax.random.key(channels), (1, 3, 3, channels))
        out = np.asarray(group_norm(x, jnp.ones((1, channels)), jnp.zeros((1, channels))))
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % (4 * g) == 0)
        assert_close(out, numpy_norm(np.asarray(x), groups), atol=1e-4)


def test_halving_and_doubling() -> None:
    x = jnp.arange(16.0).reshape(1, 2, 8, 1)
    assert_close(halve(x)[0, 0, :, 0], [4.5, 6.5, 8.5, 10.5])
    assert_close(halve(double(x)), x)
    assert_close(double(x)[0, 1::2, ::2, 0], x[0, ..., 0])


def test_blocks_fit_together_at_every_depth() -> None:
    config = ModelConfig(backbone="unet", width=8, layers=2, heads=2, multipliers=(1, 3, 2))
    found = places(config)
    assert [(p.name, p.inputs, p.outputs) for p in found] == [
        ("down_0_0", 8, 8),
        ("down_0_1", 8, 8),
        ("down_1_0", 8, 24),
        ("down_1_1", 24, 24),
        ("down_2_0", 24, 16),
        ("down_2_1", 16, 16),
        ("middle_0", 16, 16),
        ("middle_1", 16, 16),
        ("up_2_0", 16 + 16, 16),
        ("up_2_1", 16 + 16, 16),
        ("up_1_0", 16 + 24, 24),
        ("up_1_1", 24 + 24, 24),
        ("up_0_0", 24 + 8, 8),
        ("up_0_1", 8 + 8, 8),
    ]
    out = jax.eval_shape(
        lambda x: make_network(config, (8, 12, 3), 0, 0, jax.random.key(0))(
            x, jnp.zeros(1), jnp.zeros(1, jnp.int32), None, None
        ),
        jnp.zeros((1, 8, 12, 3)),
    )
    assert out.shape == (1, 8, 12, 3)


@pytest.mark.parametrize("shape", [(12, 32, 3), (32, 12, 3)])
def test_images_that_cannot_be_halved(shape: tuple[int, int, int]) -> None:
    config = replace(UNET, multipliers=(1, 2, 2, 2))
    words = rf"(?s)images of {shape[0]} x {shape[1]} and 4 --model.multipliers.*halved 3 times"
    with pytest.raises(UserError, match=words + ".*at most 3 multipliers.*a multiple of 8"):
        make_network(config, shape, 0, 0, jax.random.key(0))


def test_kernels_keep_the_size_of_what_they_read() -> None:
    x = jax.random.normal(jax.random.key(0), (64, 16, 16, 8))
    out = conv(x, merged(UNET, plain(make(UNET)[1])).blocks["down_1_0"].first)
    # 1152 random weights: their variance is known to 4 per cent.
    assert math.isclose(float(out[:, 1:-1, 1:-1].var()), 1, rel_tol=0.2)
