"""Planted samples: each way to game one figure shows in another. Small and odd sets of images."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ...errors import UserError
from .. import metrics
from ..features import train_classifier
from ..metrics import (
    Reference,
    compare,
    gaussian_samples,
    make_reference,
    mixture_bits_per_dim,
    panel,
)
from . import digits

COUNT = 180
LABELS = np.arange(COUNT, dtype=np.int32) % 10
NAMES = [
    "frechet_train",
    "frechet_heldout",
    "kernel_heldout_x1000",
    "sliced_wasserstein",
    "nearest_neighbour_accuracy",
    "memorisation",
    "precision",
    "recall",
    "class_agreement",
]


@cache
def reference() -> Reference:
    """Half of the held-out digits; the other half takes the place of perfect samples."""
    data = digits.load()
    return make_reference(
        data.train, data.train_labels, data.heldout[:COUNT], digits.classifier(), digits.LEVELS
    )


def perfect() -> tuple[np.ndarray, np.ndarray]:
    return digits.load().heldout[COUNT:], digits.load().heldout_labels[COUNT:]


def copies() -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(3).permutation(len(digits.load().train))[:COUNT]
    return digits.load().train[rows], digits.load().train_labels[rows]


def near_copies() -> tuple[np.ndarray, np.ndarray]:
    """A fifth of the pixels is one level off."""
    images, labels = copies()
    off = np.random.default_rng(4).choice([-1, 0, 1], images.shape, p=[0.1, 0.8, 0.1])
    return images + off.astype(np.float32) / 8, labels


def heldout_copies() -> tuple[np.ndarray, np.ndarray]:
    return digits.load().heldout[:COUNT], digits.load().heldout_labels[:COUNT]


def one_class() -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits.load().heldout, digits.load().heldout_labels
    return images[labels == 3], LABELS[: (labels == 3).sum()]


def noise() -> tuple[np.ndarray, np.ndarray]:
    return digits.noise(COUNT), LABELS


def blurred() -> tuple[np.ndarray, np.ndarray]:
    images, labels = perfect()
    return gaussian_filter(images, (0, 0.7, 0.7, 0)), labels


def mean_image() -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(digits.load().train.mean(axis=0, keepdims=True), COUNT, axis=0), LABELS


def contracted() -> tuple[np.ndarray, np.ndarray]:
    """Half the way to the mean of its class, as guidance does it."""
    images, labels = perfect()
    data = digits.load()
    means = np.stack([data.train[data.train_labels == c].mean(axis=0) for c in range(10)])
    return (images + means[labels]) / 2, labels


def class_gaussians() -> tuple[np.ndarray, np.ndarray]:
    data = digits.load()
    return gaussian_samples(data.train, data.train_labels, LABELS), LABELS


FLOOR = {
    "frechet_heldout": (0, 25),
    "kernel_heldout_x1000": (-500, 500),
    "sliced_wasserstein": (0, 0.12),
    "nearest_neighbour_accuracy": (0.4, 0.6),
    "precision": (0.8, 1),
    "recall": (0.8, 1),
    "class_agreement": (0.95, 1),
}
PLANTED: list[tuple[Callable[[], tuple[np.ndarray, np.ndarray]], dict[str, tuple]]] = [
    (perfect, FLOOR | {"memorisation": (0.9, 1.1), "frechet_train": (0, 20)}),
    # Copies of the training set: all is well but for one figure.
    (copies, FLOOR | {"memorisation": (0, 0.01), "frechet_train": (0, 10)}),
    (near_copies, FLOOR | {"memorisation": (0, 0.3)}),
    # Copies of what they are compared with: nearer than any real image.
    (
        heldout_copies,
        {
            "frechet_heldout": (0, 1e-6),
            "frechet_train": (2, 30),
            "sliced_wasserstein": (0, 1e-6),
            "nearest_neighbour_accuracy": (0, 0.01),
            "memorisation": (1, 1),
            "precision": (1, 1),
            "recall": (1, 1),
        },
    ),
    # One class, and good: precise, new, and far from all there is.
    (
        one_class,
        {
            "frechet_heldout": (300, 2000),
            "precision": (0.9, 1),
            "recall": (0, 0.3),
            "class_agreement": (0, 0.2),
            "memorisation": (0.8, 1.2),
        },
    ),
    (
        noise,
        {
            "frechet_train": (200, 1000),
            "frechet_heldout": (200, 1000),
            "kernel_heldout_x1000": (5000, 1e5),
            "sliced_wasserstein": (0.4, 0.7),
            "nearest_neighbour_accuracy": (0.99, 1),
            "memorisation": (3, 4),
            "recall": (0, 0.1),
            "class_agreement": (0, 0.2),
        },
    ),
    # Of the right class, and not real.
    (
        blurred,
        {
            "frechet_heldout": (150, 800),
            "nearest_neighbour_accuracy": (0.8, 1),
            "recall": (0, 0.2),
            "class_agreement": (0.8, 1),
        },
    ),
    (
        mean_image,
        {
            "frechet_heldout": (500, 3000),
            "nearest_neighbour_accuracy": (0.9, 1),
            "memorisation": (1.3, 1.7),
            "recall": (0, 0),
            "class_agreement": (0.05, 0.15),
        },
    ),
    # Classes become clearer, precision rises, variety goes.
    (
        contracted,
        {
            "nearest_neighbour_accuracy": (0.6, 0.75),
            "precision": (0.9, 1),
            "recall": (0, 0.4),
            "class_agreement": (0.99, 1),
        },
    ),
    (
        class_gaussians,
        {
            "frechet_heldout": (25, 60),
            "nearest_neighbour_accuracy": (0.55, 0.8),
            "memorisation": (1.05, 1.3),
            "class_agreement": (0.95, 1),
        },
    ),
]


@pytest.mark.parametrize(("planted", "expected"), PLANTED, ids=lambda x: getattr(x, "__name__", ""))
def test_planted(
    planted: Callable[[], tuple[np.ndarray, np.ndarray]], expected: dict[str, tuple]
) -> None:
    found = panel(*planted(), reference())
    assert list(found) == NAMES
    outside = {k: found[k] for k, (low, high) in expected.items() if not low <= found[k] <= high}
    assert not outside


def test_images_count_as_they_would_be_saved() -> None:
    images, labels = perfect()
    off = np.random.default_rng(0).uniform(-0.06, 0.06, images.shape)  # a level is 0.125
    found = panel((images + off).astype(np.float32), labels, reference())
    assert found == panel(images, labels, reference())


def test_the_order_of_samples_says_nothing() -> None:
    """Samples sorted by class are more than the held-out images: a part of them is drawn."""
    data, labels = digits.load(), np.repeat(np.arange(10, dtype=np.int32), 80)
    found = panel(gaussian_samples(data.train, data.train_labels, labels), labels, reference())
    # The first 180 alone, of three classes, have 0.85 and 0.25.
    assert found["nearest_neighbour_accuracy"] < 0.8
    assert found["recall"] > 0.6
    assert found["class_agreement"] > 0.9


def test_labels() -> None:
    images, labels = perfect()
    null = np.where(np.arange(COUNT) < 90, labels, 10).astype(np.int32)  # half without a class
    null[0] = (labels[0] + 1) % 10
    right = digits.classifier().classify(images)[:90] == null[:90]
    assert panel(images, null, reference())["class_agreement"] == pytest.approx(right.mean())
    without = panel(images, None, reference())
    assert list(without) == NAMES[:-1]
    assert list(panel(images, np.full(COUNT, 10, np.int32), reference())) == NAMES[:-1]


def test_copies_are_found_in_all_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_IMAGES", 40)
    data, classifier = digits.load(), digits.classifier()
    small = make_reference(data.train, data.train_labels, data.heldout, classifier, 17)
    assert len(small.train_features) == len(small.heldout_features) == len(small.heldout) == 40
    assert panel(*copies(), small)["memorisation"] < 0.01


@pytest.mark.parametrize(("train", "size"), [(1437, COUNT), (60, 60)])
def test_compare_takes_equal_counts(train: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data, real = digits.load(), metrics.panel
    seen: list[tuple[int, bool]] = []

    def watched(images: np.ndarray, labels: np.ndarray, *rest: object) -> dict[str, float]:
        agreed = digits.classifier().classify(images) == labels
        seen.append((len(images), bool(agreed.mean() > 0.75)))
        return real(images, labels, *rest)

    monkeypatch.setattr(metrics, "panel", watched)
    known, labels = data.train[:train], data.train_labels[:train]
    few = make_reference(known, labels, data.heldout[:60], digits.classifier(), digits.LEVELS)
    beats: list[int] = []
    found = compare(*noise(), few, lambda: beats.append(1))
    assert list(found) == ["samples", "floor", "baseline"]
    assert sorted(seen) == [(size, False), (size, True), (size, True)]
    assert list(found["samples"]) == list(found["baseline"]) == NAMES
    # Training images are no measure of copying.
    assert list(found["floor"]) == [x for x in NAMES if x not in ("frechet_train", "memorisation")]
    distance = {name: figures["frechet_heldout"] for name, figures in found.items()}
    assert distance["floor"] < distance["baseline"] < distance["samples"]
    assert len(beats) >= 6


def test_compare_without_labels() -> None:
    data = digits.load()
    few = make_reference(data.train[:300], None, data.heldout[:60], digits.classifier(), 17)
    found = compare(digits.noise(300), None, few)
    assert "class_agreement" not in found["samples"]
    assert "class_agreement" not in found["baseline"]
    # One Gaussian, which has no clear classes.
    assert found["baseline"]["frechet_heldout"] > 2 * found["floor"]["frechet_heldout"]


SMALL = np.random.default_rng(5)


@pytest.mark.parametrize(
    ("kind", "train", "heldout"), [("noise", 2, 2), ("noise", 7, 3), ("constant", 7, 3)]
)
def test_small_sets_have_finite_figures(kind: str, train: int, heldout: int) -> None:
    def images(count: int) -> np.ndarray:
        if kind == "constant":
            return np.full((count, 5, 4, 3), 1.0, np.float32)
        return SMALL.uniform(-1, 1, (count, 5, 4, 3)).astype(np.float32)

    known, labels = images(train), np.zeros(train, np.int32)
    classifier = train_classifier(known, labels, 1, steps=1)  # one class
    reference = make_reference(known, labels, images(heldout), classifier, 256)
    for figures in compare(images(5), np.zeros(5, np.int32), reference).values():
        assert all(math.isfinite(figure) for figure in figures.values())
        assert all(isinstance(figure, float) for figure in figures.values())
        if kind == "constant":
            distances = [v for k, v in figures.items() if "frechet" in k or "wasserstein" in k]
            assert max(distances) < 1e-6
            assert figures["recall"] == 1
            assert figures.get("memorisation", 1) == 1
    assert math.isfinite(mixture_bits_per_dim(known, reference.heldout, 256))


def test_refusals() -> None:
    data, classifier = digits.load(), digits.classifier()
    with pytest.raises(UserError, match="heldout: 1 images, 0 of them"):
        make_reference(data.train, None, data.heldout[:1], classifier, 17)
    with pytest.raises(UserError, match="train: 0 images"):
        mixture_bits_per_dim(data.train[:0], data.heldout, 17)
    with pytest.raises(UserError, match="samples: 1 images"):
        panel(data.heldout[:1], None, reference())
    broken = data.heldout[:9].copy()
    broken[3:5, 0, 0, 0] = np.nan, np.inf
    with pytest.raises(UserError, match="samples: 9 images, 2 of them with values not finite"):
        panel(broken, None, reference())


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
