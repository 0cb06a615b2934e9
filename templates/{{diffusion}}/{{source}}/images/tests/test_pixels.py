"""Pixels go to the network's range and come back exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ..pixels import to_network, to_pixels


@pytest.mark.parametrize("levels", [2, 17, 255, 256])
def test_every_value_comes_back(levels: int) -> None:
    values = np.arange(levels, dtype=np.uint8).reshape(1, -1, 1)
    images = to_network(values, levels)
    assert images.dtype == jnp.float32
    assert images[0, 0, 0] == -1
    assert images[0, -1, 0] == 1
    np.testing.assert_allclose(np.diff(images[0, :, 0]), 2 / (levels - 1), rtol=1e-4)
    np.testing.assert_array_equal(to_pixels(images, levels), values)
    # Up to half a level away, and in less precision, too.
    near = images + 0.98 / (levels - 1) * jnp.cos(jnp.arange(levels))[None, :, None]
    np.testing.assert_array_equal(to_pixels(near, levels), values)
    if levels == 17:
        np.testing.assert_array_equal(to_pixels(images.astype(jnp.bfloat16), levels), values)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 256), st.integers(0, 2**32 - 1))
def test_dequantized_values_come_back(levels: int, seed: int) -> None:
    key = jax.random.key(seed)
    values = (np.arange(256) % levels).astype(np.uint8).reshape(1, -1, 1)
    noise = jax.random.uniform(key, values.shape, maxval=0.999)  # beyond, 32 bits round up
    images = to_network(values, levels, noise)
    np.testing.assert_array_equal(to_pixels(images, levels, dequantized=True), values)
    np.testing.assert_allclose(images, 2 * (values + noise) / levels - 1, atol=1e-6)


def test_dequantized_values_fill_the_range_evenly() -> None:
    values = jnp.repeat(jnp.arange(17, dtype=jnp.uint8), 500).reshape(-1, 1, 1)
    noise = jax.random.uniform(jax.random.key(0), values.shape)
    images = np.sort(to_network(values, 17, noise).ravel())
    even = np.linspace(-1, 1, images.size)
    assert images.min() >= -1
    assert np.abs(images - even).max() < 2 / 17 * 0.15  # Kolmogorov: 500 draws in each level


def test_what_is_out_of_range_is_clipped() -> None:
    images = jnp.array([-jnp.inf, -1.5, 1.5, jnp.inf]).reshape(1, 4, 1)
    for dequantized in (False, True):
        pixels = to_pixels(images, 17, dequantized=dequantized)
        assert pixels.ravel().tolist() == [0, 0, 16, 16]
        assert pixels.dtype == jnp.uint8
