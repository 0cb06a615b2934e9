"""How near a set of images comes to real ones: figures that no single trick can lower together.

Guidance lowers the feature distances but loses recall; copies lower all but `memorisation`. Each
figure is to be read beside that of real images and that of Gaussians, which `compare` gives.
Opens no file and draws no picture. Images are float32 in [-1, 1].
"""

from dataclasses import dataclass

import jax.numpy as jnp
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from ..contract import Beat
from ..errors import UserError
from .features import FEATURE_VARIANCE, Classifier
from .pixels import to_network, to_pixels

MAX_IMAGES = 5000  # of a set, drawn by the seed: the work grows with the square
PROJECTIONS = 512
NEIGHBOURS = 3  # whose distance is the radius of a ball, for precision and recall
COMPONENTS, NOISES = 10, 16  # of the mixture; dequantizations of an image it is fitted to
MAX_NUMBERS = 10**8  # that it is fitted to: 800 MB
FULL_COVARIANCE_DIMS = 256  # of the mixture; above them its covariances are diagonal


@dataclass(frozen=True, eq=False)
class Reference:
    """The real images that samples are judged against, and what is worked out once from them."""

    train: Float[np.ndarray, "N H W C"]
    train_labels: Int[np.ndarray, " N"]
    heldout: Float[np.ndarray, "M H W C"]
    classifier: Classifier
    levels: int
    seed: int
    train_features: Float[np.ndarray, "n F"]
    heldout_features: Float[np.ndarray, "M F"]
    heldout_distance: float
    """Median distance of a held-out image to the nearest training image."""


def make_reference(
    train: Float[np.ndarray, "N H W C"],
    train_labels: Int[np.ndarray, " N"] | None,
    heldout: Float[np.ndarray, "M H W C"],
    classifier: Classifier,
    levels: int,
    seed: int = 0,
    beat: Beat = lambda: None,
) -> Reference:
    """Real images of `levels` values a channel, on that grid (see pixels.py).

    Copies are looked for in all of `train`; for the rest, `MAX_IMAGES` of each set are drawn.
    """
    for name, images in (("training", train), ("held-out", heldout)):
        _check(images, train.shape[1:], name)
    heldout = _draw(heldout, seed)[0]
    distance = float(np.median(nearest(_flat(heldout), _flat(train), 1, beat)[0]))
    train_features = classifier.features(_draw(train, seed)[0])
    beat()
    heldout_features = classifier.features(heldout)
    labels = np.zeros(len(train), np.int32) if train_labels is None else train_labels
    beat()
    return Reference(
        train,
        labels,
        heldout,
        classifier,
        levels,
        seed,
        train_features,
        heldout_features,
        distance,
    )


def panel(
    samples: Float[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, " N"] | None,
    reference: Reference,
    beat: Beat = lambda: None,
) -> dict[str, float]:
    """All figures of one set of samples, first quantized to the grid of the data.

    labels: the classes that were asked for. Without any but the null label, or without classes,
    there is no `class_agreement`. The 1-NN accuracy, precision and recall need two sets of one
    size: the smaller decides, so they are comparable only between sets of one size.
    """
    r, classes = reference, reference.classifier.classes
    _check(samples, r.heldout.shape[1:], "sampled")
    samples, rows = _draw(samples, r.seed)
    samples = quantize(samples, r.levels)
    features = r.classifier.features(samples)
    beat()
    size, unit = min(len(samples), len(r.heldout)), FEATURE_VARIANCE**-0.5
    pixels, heldout = _flat(samples), _flat(r.heldout)
    kernel = kernel_distance(unit * features, unit * r.heldout_features)
    precision, recall = precision_recall(features[:size], r.heldout_features[:size])
    figures = {
        "frechet_train": frechet_distance(features, r.train_features),
        "frechet_heldout": frechet_distance(features, r.heldout_features),
        "kernel_heldout_x1000": 1000 * kernel,
    }
    beat()
    figures["sliced_wasserstein"] = sliced_wasserstein(pixels, heldout, r.seed)
    beat()
    figures["nearest_neighbour_accuracy"] = nearest_neighbour_accuracy(
        pixels[:size], heldout[:size], r.seed
    )
    beat()
    distance = float(np.median(nearest(pixels, _flat(r.train), 1, beat)[0]))
    figures |= {
        "memorisation": memorisation(distance, r.heldout_distance),
        "precision": precision,
        "recall": recall,
    }
    asked = np.full(len(samples), classes) if labels is None else labels[rows]
    if (asked < classes).any():
        agreed = r.classifier.classify(samples) == asked
        figures["class_agreement"] = float(agreed[asked < classes].mean())
    return figures


def compare(
    samples: Float[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, " N"] | None,
    reference: Reference,
    beat: Beat = lambda: None,
) -> dict[str, dict[str, float]]:
    """The panels of three sets of one size: the samples, real images, and Gaussians.

    "floor": training images, whose held-out figures no honest model gets below; to the training
    images themselves they are copies, so these two figures are left out. "baseline": a Gaussian per
    class with the labels of the samples. All three have as many images as the smallest set has.
    """
    r, rng = reference, np.random.default_rng(reference.seed)
    size = min(len(samples), len(r.train), MAX_IMAGES)
    rows, real = (rng.permutation(len(x))[:size] for x in (samples, r.train))
    asked = None if labels is None else labels[rows]
    wanted = np.zeros(size, np.int32) if asked is None else asked
    gaussian = gaussian_samples(r.train, r.train_labels, wanted, r.seed)
    floor = panel(r.train[real], r.train_labels[real], r, beat)
    return {
        "samples": panel(samples[rows], asked, r, beat),
        "floor": {k: v for k, v in floor.items() if k not in ("frechet_train", "memorisation")},
        "baseline": panel(gaussian, asked, r, beat),
    }


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

    Its mean is 0 for two sets of one distribution, so it may be negative.
    """

    def within(z: np.ndarray) -> float:
        kernel = polynomial_kernel(z)
        return (kernel.sum() - kernel.trace()) / (len(z) * (len(z) - 1))

    return float(within(x) + within(y) - 2 * polynomial_kernel(x, y).mean())


def sliced_wasserstein(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"], seed: int = 0
) -> float:
    """Mean 2-Wasserstein distance of projections on random directions, in units of a pixel's range.

    In one dimension it compares quantiles (Rabin et al. 2011); here as many as the smaller set has.
    """
    directions = np.random.default_rng(seed).normal(size=(x.shape[1], PROJECTIONS))
    directions = (directions / np.linalg.norm(directions, axis=0)).astype(x.dtype)
    count = min(len(x), len(y))
    at = (np.arange(count) + 0.5) / count
    # Hazen's rule puts the i-th of n values at (i + 1/2) / n.
    one, other = (np.quantile(z @ directions, at, axis=0, method="hazen") for z in (x, y))
    return float(np.sqrt(((one - other) ** 2).mean(axis=0)).mean())


def nearest_neighbour_accuracy(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "N D"], seed: int = 0
) -> float:
    """How often the nearest other image is of the same set (1-NN test, arXiv:1610.06545).

    0.5: the sets cannot be told apart; 1: they can; below 0.5: one has copies of the other. Real
    images lie on a grid, so that samples must be quantized first.
    """
    order = np.random.default_rng(seed).permutation(2 * len(x))  # so that chance decides ties
    points, is_x = np.concatenate([x, y])[order], order < len(x)
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


def memorisation(sample_distance: float, heldout_distance: float) -> float:
    """Median distance of a sample to the training images over that of a held-out image.

    1 is honest, below 0.85 is copying, 0 are copies; compare arXiv:2004.05675. Equal images,
    which have neither distance, give 1.
    """
    return (sample_distance + 1e-6) / (heldout_distance + 1e-6)


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


def gaussian_samples(
    images: Float[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, " N"],
    wanted: Int[np.ndarray, " K"],
    seed: int = 0,
) -> Float[np.ndarray, "K H W C"]:
    """An image of each wanted label from the Gaussian with its class's mean and covariance.

    Labels that are all 0 make one Gaussian; a label without images, such as the null label, takes
    all images. A weighted sum of centred images has their covariance, singular or not.
    """
    rng = np.random.default_rng(seed)
    drawn = np.empty((len(wanted), images[0].size), np.float32)
    for label in np.unique(wanted):
        members = labels == label
        found = _flat(images[members] if members.any() else images)
        found = found[rng.permutation(len(found))[:MAX_IMAGES]]
        weights = rng.normal(size=((wanted == label).sum(), len(found))).astype(np.float32)
        mean = found.mean(axis=0)
        drawn[wanted == label] = mean + weights @ (found - mean) / np.sqrt(max(1, len(found) - 1))
    return drawn.reshape(-1, *images.shape[1:])


def mixture_bits_per_dim(
    train: Float[np.ndarray, "N H W C"],
    heldout: Float[np.ndarray, "M H W C"],
    levels: int,
    seed: int = 0,
) -> float:
    """Bits per dimension of held-out images under a mixture of Gaussians fitted to the training's.

    -log2 p(x) / D - 1 + log2(levels), x dequantized and in [-1, 1): the likelihood to beat
    (arXiv:1511.01844, section 3.1).
    """
    for name, images in (("training", train), ("held-out", heldout)):
        _check(images, train.shape[1:], name)
    rng = np.random.default_rng(seed)

    def dequantized(images: np.ndarray) -> np.ndarray:
        noise = jnp.asarray(rng.random(images.shape, np.float32))
        return _flat(np.asarray(to_network(to_pixels(images, levels), levels, noise), np.float64))

    known, unknown = _draw(train, seed)[0], _draw(heldout, seed)[0]
    # Several noises an image keep the covariances from fitting one: 0.3 bits on digits.
    draws = max(1, min(NOISES, MAX_NUMBERS // known.size))
    fitted = dequantized(known.repeat(draws, axis=0))
    mixture = GaussianMixture(
        min(COMPONENTS, len(known)),
        covariance_type="full" if fitted.shape[1] <= FULL_COVARIANCE_DIMS else "diag",
        random_state=seed,
    )
    nats = -mixture.fit(fitted).score(dequantized(unknown))
    return float(nats / np.log(2) / fitted.shape[1] - 1 + np.log2(levels))


def quantize(images: Float[np.ndarray, "N H W C"], levels: int) -> Float[np.ndarray, "N H W C"]:
    """The nearest of the `levels` values that real images have."""
    return np.asarray(to_network(to_pixels(images, levels), levels))


def _draw(images: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_IMAGES`, in random order: samples may be sorted by class. And their rows."""
    rows = np.random.default_rng(seed).permutation(len(images))[:MAX_IMAGES]
    return images[rows], rows


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _check(images: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    if len(images) < 2 or images.shape[1:] != shape:
        raise UserError(
            got=f"{name} images of shape {images.shape}",
            expected=f"two or more of shape {shape}",
            do="compare images of one size, and keep some out of the training",
        )
    if broken := int((~np.isfinite(_flat(images)).all(axis=1)).sum()):
        raise UserError(
            got=f"{broken} of {len(images)} {name} images with values that are not finite",
            expected="finite values",
            do="take an earlier checkpoint, or train with a lower learning rate",
        )
