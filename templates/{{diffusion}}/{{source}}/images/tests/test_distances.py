"""Distances against closed forms and slow references of their definitions."""

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from ..distances import (
    frechet_distance,
    kernel_distance,
    memorisation,
    nearest,
    nearest_neighbour_accuracy,
    precision_recall,
    sliced_wasserstein,
)

RNG = np.random.default_rng(0)


def vectors(count: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Vectors that have exactly this mean and unbiased covariance."""
    z = RNG.normal(size=(count, len(mean)))
    q = np.linalg.qr(z - z.mean(axis=0))[0] * math.sqrt(count - 1)
    return mean + q @ np.linalg.cholesky(covariance).T


def test_frechet_distance_of_gaussians() -> None:
    roots = RNG.normal(size=(2, 6, 6))
    (s1, s2), (m1, m2) = roots @ roots.swapaxes(1, 2), RNG.normal(size=(2, 6))
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    x, y = vectors(50, m1, s1), vectors(31, m2, s2)
    np.testing.assert_allclose(frechet_distance(x, y), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(y, x), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(3 * x, 3 * y), 9 * expected, rtol=1e-9)
    assert 0 <= frechet_distance(x, x) < 1e-9


def test_frechet_distance_of_fewer_vectors_than_features() -> None:
    # Two points each, along one line: standard deviations 3 sqrt(2) and sqrt(2).
    line = np.eye(1, 40)[0]
    x, y = np.outer([3, -3], line), np.outer([1, -1], line)
    np.testing.assert_allclose(frechet_distance(x, y), 2 * (3 - 1) ** 2)
    # Along lines at right angles there is nothing in common.
    z = np.outer([1, -1], np.eye(40)[7])
    np.testing.assert_allclose(frechet_distance(x, z), 2 * (9 + 1))
    np.testing.assert_allclose(frechet_distance(np.zeros((3, 40)), np.ones((2, 40))), 40)
    assert frechet_distance(np.ones((1, 4)), np.ones((1, 4))) == 0


def test_kernel_distance_by_its_sums() -> None:
    x, y = RNG.normal(size=(7, 3)), RNG.normal(0.5, 2, (5, 3))
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    within = lambda z: np.mean(  # noqa: E731
        [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
    )
    between = np.mean([kernel(a, b) for a in x for b in y])
    np.testing.assert_allclose(kernel_distance(x, y), within(x) + within(y) - 2 * between)


def test_kernel_distance_is_unbiased() -> None:
    halves = (RNG.permutation(RNG.normal(size=(60, 8))) for _ in range(400))
    found = np.array([kernel_distance(z[:30], z[30:]) for z in halves])
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    # Sums with the diagonal would add tr k / n, about 16 / 30 for each half.
    assert error < 0.02
    assert (found < 0).any()


@pytest.mark.parametrize("counts", [(400, 400), (400, 1200), (1000, 300)])
def test_sliced_wasserstein_in_one_dimension(counts: tuple[int, int]) -> None:
    x, y = (np.sort(RNG.normal(size=n))[:, None] for n in counts)
    grid = (np.arange(100_000) + 0.5) / 100_000
    # Quantiles of empirical distributions are steps; unequal sets are compared at fewer.
    steps = np.array([z[(grid * len(z)).astype(int), 0] for z in (x, 2 * y + 3)])
    expected = math.sqrt(((steps[0] - steps[1]) ** 2).mean())
    tolerance = 1e-6 if counts[0] == counts[1] else 0.02
    np.testing.assert_allclose(sliced_wasserstein(x, 2 * y + 3), expected, rtol=tolerance)
    np.testing.assert_allclose(sliced_wasserstein(x, x + 3), 3, rtol=1e-6)


def test_sliced_wasserstein_of_a_shift() -> None:
    x, shift = RNG.normal(size=(50, 64)), RNG.normal(size=64)
    # The mean length of a unit vector's component in 64 dimensions, |shift| apart.
    component = math.gamma(32) / (math.sqrt(math.pi) * math.gamma(32.5))
    expected = np.linalg.norm(shift) * component
    # 512 directions: a standard error of 0.76 / sqrt(512) of it.
    np.testing.assert_allclose(sliced_wasserstein(x, x + shift), expected, rtol=0.1)
    assert sliced_wasserstein(x, x + shift, 0) == sliced_wasserstein(x, x + shift, 0)
    assert sliced_wasserstein(x, x + shift, 0) != sliced_wasserstein(x, x + shift, 1)


def test_nearest_neighbour_accuracy() -> None:
    same = nearest_neighbour_accuracy(RNG.normal(size=(1500, 4)), RNG.normal(size=(1500, 4)))
    assert abs(same - 0.5) < 0.04  # four standard errors
    x = RNG.normal(size=(60, 4))
    assert nearest_neighbour_accuracy(x, x + 100) == 1
    assert nearest_neighbour_accuracy(x, x + 1e-3) == 0  # copies
    assert nearest_neighbour_accuracy(np.zeros((50, 4)), np.zeros((50, 4))) == pytest.approx(
        0.5, abs=0.02
    )
    # Half of x lies apart, and finds itself; of the rest a third is x, of which as much finds x.
    far = np.where(np.arange(1500) % 2, 50.0, 0.0)[:, None]
    mixed = nearest_neighbour_accuracy(RNG.normal(size=(1500, 4)) + far, RNG.normal(size=(1500, 4)))
    assert mixed == pytest.approx(1 / 4 + 1 / 4 / 3 + 1 / 2 * 2 / 3, abs=0.03)


def test_nearest() -> None:
    queries, references = RNG.normal(size=(1203, 5)), RNG.normal(size=(40, 5))
    beats: list[int] = []
    distances, rows = nearest(queries, references, 3, lambda: beats.append(1))
    every = np.linalg.norm(queries[:, None] - references, axis=-1)
    np.testing.assert_array_equal(rows, every.argsort(axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :3])
    assert len(beats) == 3
    assert nearest(queries, references[:2], 3)[1].shape == (1203, 2)


def test_memorisation_is_a_ratio_of_medians() -> None:
    heldout = np.array([1.0, 2.0, 9.0])
    assert memorisation(np.array([0.5, 1.0, 70.0]), heldout) == pytest.approx(0.5, rel=1e-4)
    assert memorisation(np.zeros(3), heldout) < 1e-4
    assert memorisation(np.zeros(3), np.zeros(2)) == 1
    assert np.isfinite(memorisation(heldout, np.zeros(2)))


def test_precision_and_recall_by_hand() -> None:
    # Balls of y reach 3 from its ends and 2 from within; those of x reach 3 and 2 times a tenth.
    y = np.array([[0.0], [1.0], [2.0], [3.0]])
    x = np.array([[5.5], [5.6], [5.7], [6.05]])
    assert precision_recall(x, y) == (0.75, 0)  # 6.05 is more than 3 from 3.0
    assert precision_recall(y, x) == (0, 0.75)
    assert precision_recall(x, x) == (1, 1)
    wide = 4.2 * (y - 1.5)
    assert precision_recall(wide, y) == (0.5, 1)
    assert precision_recall(y[:2], y[:2] + 0.5) == (1, 1)  # fewer than three neighbours
    assert precision_recall(y[:2], y[:2] + 1.5) == (0.5, 0.5)


def test_precision_and_recall_of_a_part() -> None:
    y = np.concatenate([RNG.normal(size=(100, 8)), RNG.normal(40, 1, (100, 8))])
    x = RNG.normal(size=(200, 8))
    precision, recall = precision_recall(x, y)
    assert precision > 0.7  # every sample is good
    assert 0.3 < recall <= 0.5  # half of the real ones is missing
