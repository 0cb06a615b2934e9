"""How near samples come to real images: figures that no single trick improves together.

Guidance lowers the distances of features but loses recall; copies improve all but `memorisation`.
Each figure is to be read beside that of real images and that of Gaussians, which `compare` gives.
Opens no file. Images are float32 in [-1, 1], on the grid of their levels (see pixels.py).
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn.mixture import GaussianMixture

from ..contract import Beat
from ..errors import UserError
from .distances import (
    frechet_distance,
    kernel_distance,
    memorisation,
    nearest,
    nearest_neighbour_accuracy,
    precision_recall,
    sliced_wasserstein,
)
from .features import FEATURE_VARIANCE, Classifier
from .pixels import to_network, to_pixels

MAX_IMAGES = 5000  # of a set, drawn by the seed: the work grows with the square
COMPONENTS = 10  # of the mixture

type Images = Float[np.ndarray, "_ H W C"]
type Labels = Int[np.ndarray, " _"]


@dataclass(frozen=True, eq=False)
class Reference:
    """The real images that samples are judged against, and what is worked out once from them."""

    train: Images
    train_labels: Labels
    heldout: Images
    classifier: Classifier
    levels: int
    seed: int
    train_features: Float[np.ndarray, "n F"]
    heldout_features: Float[np.ndarray, "M F"]
    searched: UInt8[np.ndarray, "K H W C"]
    heldout_to_searched: Float[np.ndarray, " M"]


def make_reference(
    train: Images,
    train_labels: Labels | None,
    heldout: Images,
    classifier: Classifier,
    levels: int,
    searched: UInt8[np.ndarray, "K H W C"],
    seed: int = 0,
    beat: Beat = lambda: None,
) -> Reference:
    """At most `MAX_IMAGES` of a set are taken, but copies are looked for in all of `searched`: the
    pixels of training images."""
    _check(train=train, heldout=heldout)
    labels = np.zeros(len(train), np.int32) if train_labels is None else train_labels
    heldout, _ = _draw(heldout, seed)
    distances = _to_nearest(heldout, searched, levels, beat)
    known, kept = (classifier.features(images) for images in (_draw(train, seed)[0], heldout))
    beat()
    common = train, labels, heldout, classifier, levels, seed
    return Reference(*common, known, kept, searched, distances)


def panel(
    samples: Images, labels: Labels | None, reference: Reference, beat: Beat = lambda: None
) -> dict[str, float]:
    """All figures of a set of samples, which are first brought to the grid of real images.

    labels: the classes that were asked for; without any but the null label `class_agreement` is
    left out. 1-NN accuracy, precision and recall take as many of each set as the smaller one has,
    and depend on how many that are.
    """
    r = reference
    _check(heldout=r.heldout, samples=samples)
    samples, rows = _draw(samples, r.seed)
    samples = np.asarray(to_network(to_pixels(samples, r.levels), r.levels))
    features, kept = r.classifier.features(samples), r.heldout_features
    beat()
    pixels, heldout = _flat(samples), _flat(r.heldout)
    size = min(len(samples), len(heldout))
    unit = FEATURE_VARIANCE**-0.5  # KID's kernel is meant for features of about this size
    precision, recall = precision_recall(features[:size], kept[:size])
    figures = {
        "frechet_train": frechet_distance(features, r.train_features),
        "frechet_heldout": frechet_distance(features, kept),
        "kernel_heldout_x1000": 1000 * kernel_distance(unit * features, unit * kept),
        "sliced_wasserstein": sliced_wasserstein(pixels, heldout, r.seed),
        "nearest_neighbour_accuracy": nearest_neighbour_accuracy(pixels[:size], heldout[:size]),
        "memorisation": memorisation(
            _to_nearest(samples, r.searched, r.levels, beat), r.heldout_to_searched
        ),
        "precision": precision,
        "recall": recall,
    }
    asked = np.full(len(samples), r.classifier.classes) if labels is None else labels[rows]
    if (known := asked < r.classifier.classes).any():
        agreed = r.classifier.classify(samples) == asked
        figures["class_agreement"] = float(np.mean(agreed[known]))
    return figures


def compare(
    samples: Images, labels: Labels | None, reference: Reference, beat: Beat = lambda: None
) -> dict[str, dict[str, float]]:
    """The panels of "samples", "floor" and "baseline": three sets of as many images.

    floor: training images, so without figures that compare them with themselves. baseline: a
    Gaussian for each class, with the labels of the samples; without labels one Gaussian.
    """
    r, rng = reference, np.random.default_rng(reference.seed)
    size = min(len(samples), len(r.train), MAX_IMAGES)
    rows, real = (rng.permutation(len(images))[:size] for images in (samples, r.train))
    asked = None if labels is None else labels[rows]
    wanted = np.zeros(size, np.int32) if asked is None else asked
    floor = panel(r.train[real], r.train_labels[real], r, beat)
    return {
        "samples": panel(samples[rows], asked, r, beat),
        "floor": {k: v for k, v in floor.items() if k not in ("frechet_train", "memorisation")},
        "baseline": panel(
            gaussian_samples(r.train, r.train_labels, wanted, r.seed), asked, r, beat
        ),
    }


def gaussian_samples(images: Images, labels: Labels, wanted: Labels, seed: int = 0) -> Images:
    """An image of each wanted label from the Gaussian with its class's mean and covariance.

    Labels that are all 0 make one Gaussian; a label without images, as the null label, takes all.
    """
    rng = np.random.default_rng(seed)
    drawn = np.empty((len(wanted), *images.shape[1:]), np.float32)
    for label in np.unique(wanted):
        found, rows = images[labels == label], wanted == label
        found, _ = _draw(found if len(found) else images, seed)
        mean, degrees = found.mean(axis=0), max(1, len(found) - 1)
        # A weighted sum of centred images has their covariance, be it singular or not.
        weights = rng.normal(size=(rows.sum(), len(found))).astype(np.float32)
        drawn[rows] = mean + np.tensordot(weights, found - mean, 1) / np.sqrt(degrees)
    return drawn


def mixture_bits_per_dim(train: Images, heldout: Images, levels: int, seed: int = 0) -> float:
    """Bits per dimension of held-out images by a mixture of Gaussians: the likelihood to beat.

    -log2 p(x) / D - 1 + log2(levels), where x is dequantized and in [-1, 1): the 1 is for the
    width of that range (arXiv:1511.01844, section 3.1).
    """
    _check(train=train, heldout=heldout)
    known, unknown = (_draw(images, seed)[0] for images in (train, heldout))
    dims, noise = train[0].size, np.random.default_rng(seed).random(unknown.shape)

    def dequantized(images: np.ndarray, noise: np.ndarray) -> np.ndarray:
        pixels, u = to_pixels(images, levels), jnp.asarray(noise, jnp.float32)
        return _flat(np.asarray(to_network(pixels, levels, u), np.float64))

    # A covariance wants more images than dimensions; where it has too few, variances must do.
    full = min(COMPONENTS, len(known) // (2 * dims))
    mixture = GaussianMixture(
        full or min(COMPONENTS, 1 + len(known) // 20),
        covariance_type="full" if full else "diag",
        # The noise by its mean and variance instead of by draws: 0.3 bits better on digits.
        reg_covar=(2 / levels) ** 2 / 12,
        random_state=seed,
    )
    mixture.fit(dequantized(known, np.full(known.shape, 0.5)))
    nats = -mixture.score(dequantized(unknown, noise))
    return float(nats / np.log(2) / dims - 1 + np.log2(levels))


def _to_nearest(
    images: Images, searched: UInt8[np.ndarray, "K H W C"], levels: int, beat: Beat
) -> Float[np.ndarray, " N"]:
    """Distance of each image to the nearest of those that are searched, some of them at a time."""
    least = np.full(len(images), np.inf)
    for first in range(0, len(searched), MAX_IMAGES):
        part = np.asarray(to_network(searched[first : first + MAX_IMAGES], levels))
        least = np.minimum(least, nearest(_flat(images), _flat(part), 1, beat)[0][:, 0])
    return least


def _draw(images: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_IMAGES`, in random order as samples may be sorted by class; and their rows."""
    rows = np.random.default_rng(seed).permutation(len(images))[:MAX_IMAGES]
    return images[rows], rows


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _check(**sets: np.ndarray) -> None:
    """UserError where a set has fewer than two images, or any that is not finite."""
    for name, images in sets.items():
        broken = int((~np.isfinite(images).all(axis=(1, 2, 3))).sum())
        if len(images) < 2 or broken:
            raise UserError(
                got=f"{name}: {len(images)} images, {broken} of them with values not finite",
                expected="two or more images, all of them finite",
                do="hold more images out, or take a checkpoint of before the loss broke down",
            )
