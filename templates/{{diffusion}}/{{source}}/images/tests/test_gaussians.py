"""What samples have to beat: Gaussians of classes, and the likelihood of a mixture of Gaussians."""

import math

import numpy as np
import pytest

from ..metrics import gaussian_samples, mixture_bits_per_dim
from . import digits


def test_gaussian_samples_have_mean_and_covariance_of_their_class() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 4, 4))
    images = np.concatenate([rng.normal(size=(50, 4)) @ root[i] + 10 * i for i in range(2)])
    labels = np.repeat([0, 1], 50)
    wanted = rng.permutation(np.repeat([0, 1], 20_000))
    found = gaussian_samples(images.reshape(-1, 2, 2, 1).astype(np.float32), labels, wanted)
    for label in range(2):
        ours, real = found[wanted == label].reshape(-1, 4), images[labels == label]
        scale = np.sqrt(np.trace(np.cov(real.T)))
        np.testing.assert_allclose(ours.mean(axis=0), real.mean(axis=0), atol=0.03 * scale)
        np.testing.assert_allclose(np.cov(ours.T), np.cov(real.T), atol=0.03 * scale**2)
    assert (
        np.corrcoef(found[:100].reshape(100, -1)).max(where=~np.eye(100, dtype=bool), initial=0) < 1
    )


def test_gaussian_samples_of_few_images() -> None:
    data = digits.load()
    three = gaussian_samples(data.train[:3], np.zeros(3, np.int32), np.zeros(40, np.int32))
    flat = (three - data.train[:3].mean(axis=0)).reshape(40, -1)
    assert np.linalg.matrix_rank(flat, tol=1e-3) == 2  # three points span a plane
    one = gaussian_samples(data.train[:3], np.arange(3), np.array([2, 2]))
    np.testing.assert_array_equal(one, data.train[[2, 2]])
    # A label that no image has is that of all of them.
    null = gaussian_samples(data.train[:3], np.arange(3), np.full(40, 3))
    assert np.linalg.matrix_rank((null - null.mean(axis=0)).reshape(40, -1), tol=1e-3) == 2


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # all images are one
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_per_dim_of_a_known_value(levels: int) -> None:
    """A Gaussian with the variance of the noise costs log2(2 pi e / 12) / 2 bits, at any level."""
    same = np.full((300, 8, 8, 1), 1.0, np.float32)
    expected = math.log2(2 * math.pi * math.e / 12) / 2
    assert mixture_bits_per_dim(same, same, levels) == pytest.approx(expected, abs=0.01)


def test_bits_per_dim_of_a_known_gaussian() -> None:
    rng, covariance = np.random.default_rng(0), np.array([[0.04, 0.036], [0.036, 0.04]])
    train, heldout = (
        rng.multivariate_normal([0.1, -0.2], covariance, n).reshape(-1, 1, 2, 1).astype(np.float32)
        for n in (2000, 2000)
    )
    entropy = math.log2(2 * math.pi * math.e) + math.log2(np.linalg.det(covariance)) / 2
    expected = entropy / 2 - 1 + 8  # 256 levels
    # Sixty numbers are fitted to 2000 images; values beyond the range are clipped.
    assert mixture_bits_per_dim(train, heldout, 256) == pytest.approx(expected, abs=0.03)


def test_bits_per_dim_of_digits() -> None:
    data = digits.load()
    # Uniform images have log2(17) = 4.09; one Gaussian has 2.95, ten have 2.59.
    assert 2.5 < mixture_bits_per_dim(data.train, data.heldout, 17) < 2.7
