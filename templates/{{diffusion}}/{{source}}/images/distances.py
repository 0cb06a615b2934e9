"""Distances between two sets of vectors: of samples and real images, or of their features.

Pure functions of NumPy arrays, each with its formula. Which sets to compare is for metrics.py.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from ..contract import Beat

PROJECTIONS = 512
NEIGHBOURS = 3  # the last of which is on the ball, for precision and recall


def frechet_distance(x: Float[np.ndarray, "N F"], y: Float[np.ndarray, "M F"]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of means and covariances (arXiv:1706.08500).

    With S = R'R, tr (S1 S2)^(1/2) is the sum of the singular values of R1 R2': no root of a
    matrix, nothing complex, exact also where there are fewer vectors than features.
    """
    root_x, root_y = (
        np.linalg.qr((z - z.mean(axis=0)) / np.sqrt(max(1, len(z) - 1)), mode="r") for z in (x, y)
    )
    common = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    shift = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return max(0.0, float(shift + (root_x**2).sum() + (root_y**2).sum() - 2 * common))


def kernel_distance(x: Float[np.ndarray, "N F"], y: Float[np.ndarray, "M F"]) -> float:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3 (KID, arXiv:1801.01401), all at once.

    Its mean is 0 for two sets of one distribution, so it may be negative. Wants two of each.
    """

    def within(z: np.ndarray) -> float:
        kernel = polynomial_kernel(z)
        return (kernel.sum() - kernel.trace()) / (len(z) * (len(z) - 1))

    return float(within(x) + within(y) - 2 * polynomial_kernel(x, y).mean())


def sliced_wasserstein(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"], seed: int = 0
) -> float:
    """Mean of W2 of the projections on random unit vectors, in the units of x (Rabin et al. 2011).

    In one dimension W2^2 is the mean squared difference of quantiles: as many as the smaller set.
    """
    directions = np.random.default_rng(seed).normal(size=(x.shape[1], PROJECTIONS))
    directions = (directions / np.linalg.norm(directions, axis=0)).astype(x.dtype)
    count = min(len(x), len(y))
    at = (np.arange(count) + 0.5) / count
    # Hazen's rule puts the i-th of n values at (i + 1/2) / n.
    one, other = (np.quantile(z @ directions, at, axis=0, method="hazen") for z in (x, y))
    return float(np.sqrt(((one - other) ** 2).mean(axis=0)).mean())


def nearest_neighbour_accuracy(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "N D"]) -> float:
    """How often the nearest other image is of the same set (1-NN test, arXiv:1610.06545).

    0.5: the sets cannot be told apart; 1: they can; below 0.5: one has copies of the other. Real
    images lie on a grid, so that samples must be quantized first.
    """
    points, is_x = np.concatenate([x, y]), np.arange(2 * len(x)) < len(x)
    found = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points).kneighbors()[1]
    return float((is_x[found[:, 0]] == is_x).mean())


def nearest(
    queries: Float[np.ndarray, "N D"],
    references: Float[np.ndarray, "M D"],
    count: int,
    beat: Beat = lambda: None,
) -> tuple[Float[np.ndarray, "N K"], Int[np.ndarray, "N K"]]:
    """Euclidean distances and indices of the K = min(count, M) nearest references."""
    index = NearestNeighbors(n_neighbors=min(count, len(references)), algorithm="brute")
    index.fit(references)
    found = []
    for start in range(0, len(queries), 500):
        found.append(index.kneighbors(queries[start : start + 500]))
        beat()
    distances, rows = zip(*found, strict=True)
    return np.concatenate(distances), np.concatenate(rows)


def memorisation(
    to_train: Float[np.ndarray, " N"], heldout_to_train: Float[np.ndarray, " M"]
) -> float:
    """Median distance of samples to their nearest training images, over that of held-out images.

    1 is honest, below 0.85 is copying, 0 are copies; compare arXiv:2004.05675. Where all images
    are one, and neither is away from the training images, it is 1.
    """
    # Of a distance 1e-6 may be left by rounding.
    return float((np.median(to_train) + 1e-5) / (np.median(heldout_to_train) + 1e-5))


def precision_recall(
    x: Float[np.ndarray, "N F"], y: Float[np.ndarray, "N F"]
) -> tuple[float, float]:
    """Share of samples x within a ball of the real y, and of y within a ball of x.

    A ball reaches to the third nearest of its own set (arXiv:1904.06991, equations 1 and 2).
    """
    rank = min(NEIGHBOURS, len(x) - 1)  # itself, at distance 0, has rank 0
    radius_x, radius_y = (np.partition(cdist(z, z), rank, axis=1)[:, rank] for z in (x, y))
    between = cdist(x, y)
    precision = (between <= radius_y).any(axis=1).mean()
    return float(precision), float((between <= radius_x[:, None]).any(axis=0).mean())
