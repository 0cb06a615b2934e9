"""The Transformer equals a NumPy reference; its patches, positions and sizes are as published."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ..config import ModelConfig
from ..dit import modulate, patchify, rope_table, unpatchify
from ..errors import UserError
from ..network import flops_per_image, make_network
from ..parts import rotate
from . import reference_dit
from .networks import (
    AUGMENTED,
    DIT,
    IMAGES,
    LABELS,
    NOISE,
    assert_close,
    filled,
    forward,
    gradient,
    names,
    plain,
)


def test_the_network_equals_its_reference() -> None:
    parameters = jax.tree.map(lambda w: np.asarray(w, np.float64), filled(DIT))
    out = forward(DIT, filled(DIT))
    for i in range(len(IMAGES)):
        expected = reference_dit.dit(
            parameters,
            *(np.asarray(x[i], np.float64) for x in (IMAGES, NOISE)),
            int(LABELS[i]),
            np.asarray(AUGMENTED[i], np.float64),
            patch=2,
            heads=2,
            theta=DIT.rope_theta,
        )
        assert_close(out[i], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_patches_are_near_pixels_in_reading_order() -> None:
    places = np.stack(np.indices((4, 6)), -1)[None].astype(np.float32)
    tokens = patchify(jnp.asarray(places), 2).reshape(6, 4, 2)
    for i, token in enumerate(np.asarray(tokens)):
        row, column = divmod(i, 3)
        corner = np.array([2 * row, 2 * column])
        np.testing.assert_array_equal(token - corner, [[0, 0], [0, 1], [1, 0], [1, 1]])
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    for patch in (1, 2):
        np.testing.assert_array_equal(unpatchify(patchify(x, patch), 6 // patch, patch), x)


@pytest.mark.parametrize("shape", [(12, 18, 1), (18, 12, 1)])
def test_patches_that_do_not_fill_the_image(shape: tuple[int, int, int]) -> None:
    words = (
        rf"(?s)--model.patch 4 for images of {shape[0]} x {shape[1]}.*\[1, 2, 3, 6\].*--data.size"
    )
    with pytest.raises(UserError, match=words):
        make_network(replace(DIT, patch=4), shape, 0, 0, jax.random.key(0))


def test_scores_depend_on_distances_by_row_and_column_alone() -> None:
    table = jnp.asarray(rope_table(16, 3, 5, 2, 100.0))
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    q, k = (rotate(jnp.tile(x, (1, 17, 1, 1)), table)[0, :, 0] for x in (q, k))
    scores = np.asarray(q[2:] @ k[2:].T).reshape(3, 5, 3, 5)
    found: dict[tuple[int, int], list[float]] = {}
    for r, c, s, d in np.ndindex(3, 5, 3, 5):
        found.setdefault((r - s, c - d), []).append(scores[r, c, s, d])
    assert max(np.ptp(same) for same in found.values()) < 1e-4
    means = sorted(float(np.mean(same)) for same in found.values())
    assert len(means) == 5 * 9
    assert np.diff(means).min() > 1e-4  # no two distances look the same
    # The fastest pair of an axis turns by one radian a patch.
    assert_close(table[0, 2 + 5, :4], np.cos(100.0 ** (-np.arange(4) / 4)), atol=1e-6)
    assert_close(table[0, 2 + 5, 4:], np.ones(4))
    x = jax.random.normal(jax.random.key(1), (1, 17, 1, 16))
    np.testing.assert_array_equal(rotate(x, table)[:, :2], x[:, :2])  # registers


def test_registers_are_read_but_no_output_is_one() -> None:
    assert np.all(np.asarray(gradient(DIT, filled(DIT))["registers"]) != 0)
    without = replace(DIT, registers=0)
    assert {*names(filled(DIT))} - {*names(filled(without))} == {"registers"}
    fewer = {name: w for name, w in filled(DIT).items() if name != "registers"}
    out, other = forward(DIT, filled(DIT)), forward(without, fewer)
    assert other.shape == out.shape
    assert float(jnp.abs(other - out).mean()) > 0.01


def test_modulation_is_computed_in_float32() -> None:
    x = 1e3 * jax.random.normal(jax.random.key(0), (2, 3, 64))
    shift, scale = jax.random.normal(jax.random.key(1), (2, 2, 64))
    narrow = [y.astype(jnp.bfloat16) for y in (x, shift, scale)]
    wide = [np.asarray(y, np.float64) for y in narrow]
    expected = wide[0] / np.sqrt((wide[0] ** 2).mean(-1, keepdims=True))
    expected = expected * (1 + wide[2][:, None]) + wide[1][:, None]
    out = modulate(*narrow)
    assert out.dtype == "bfloat16"
    # The last rounding alone.
    assert_close(out.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)


def test_scan_and_its_unrolling_are_one_function() -> None:
    unrolled = replace(DIT, scan_unroll=2)
    assert_close(forward(unrolled, filled(DIT)), forward(DIT, filled(DIT)), atol=1e-5)
    texts = [forward.lower(c, filled(DIT)).as_text() for c in (DIT, unrolled)]
    assert ["while" in text for text in texts] == [True, False]


PUBLISHED = {  # settings, shape of an image or latent, classes, parameters
    "DiT-B/2": (ModelConfig(width=768, layers=12, heads=12, mlp_width=2048), (32, 32, 4), 130e6),
    "DiT-XL/2": (ModelConfig(width=1152, layers=28, heads=16, mlp_width=3072), (32, 32, 4), 675e6),
    "JiT-B/16": (
        ModelConfig(width=768, layers=12, heads=12, mlp_width=2048, patch=16),
        (256, 256, 3),
        131e6,
    ),
}


@pytest.mark.parametrize(("config", "shape", "count"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_sizes_are_those_published(
    config: ModelConfig, shape: tuple[int, int, int], count: float
) -> None:
    model = nnx.eval_shape(lambda: make_network(config, shape, 1000, 0, jax.random.key(0)))
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(plain(nnx.state(model)))]
    assert abs(sum(sizes) / count - 1) < 0.005


def test_flops_of_dit_xl_are_those_published() -> None:
    """118.6 Gflop in the paper's table 4: it counts multiplications of one forward pass."""
    config, shape, _ = PUBLISHED["DiT-XL/2"]
    assert abs(flops_per_image(replace(config, registers=0), shape) / 6 / 118.64e9 - 1) < 0.005
