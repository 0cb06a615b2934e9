"""Planted samples: each way to game one figure shows in another. Small and odd sets of images."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from ...errors import UserError
from .. import metrics
from ..features import train_classifier
from ..metrics import (
    compare,
    gaussian_samples,
    mixture_bits_per_dim,
    panel,
)
from . import digits
from .digits import (
    COUNT,
    Planted,
    blurred,
    class_gaussians,
    contracted,
    copies,
    heldout_copies,
    mean_image,
    near_copies,
    noise,
    one_class,
    perfect,
    refer,
    reference,
)

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


FLOOR = {
    "frechet_heldout": (0, 25),
    "kernel_heldout_x1000": (-500, 500),
    "sliced_wasserstein": (0, 0.12),
    "nearest_neighbour_accuracy": (0.4, 0.6),
    "precision": (0.8, 1),
    "recall": (0.8, 1),
    "class_agreement": (0.95, 1),
}
PLANTED: list[tuple[Callable[[], Planted], dict[str, tuple]]] = [
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
def test_planted(planted: Callable[[], Planted], expected: dict[str, tuple]) -> None:
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
    few = data.train[:40], data.train_labels[:40]
    for known, pixels in (((data.train, data.train_labels), None), (few, data.train)):
        small = refer(*known, data.heldout, classifier, 17, pixels)
        assert len(small.train_features) == len(small.heldout_features) == len(small.heldout) == 40
        assert panel(*copies(), small)["memorisation"] < 0.01
    blind = refer(*few, data.heldout, classifier, 17)
    assert panel(*copies(), blind)["memorisation"] > 0.8


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
    few = refer(known, labels, data.heldout[:60], digits.classifier(), digits.LEVELS)
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
    few = refer(data.train[:300], None, data.heldout[:60], digits.classifier(), 17)
    found = compare(digits.uniform(300), None, few)
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
    reference = refer(known, labels, images(heldout), classifier, 256)
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
        refer(data.train, None, data.heldout[:1], classifier, 17)
    with pytest.raises(UserError, match="train: 0 images"):
        mixture_bits_per_dim(data.train[:0], data.heldout, 17)
    with pytest.raises(UserError, match="samples: 1 images"):
        panel(data.heldout[:1], None, reference())
    broken = data.heldout[:9].copy()
    broken[3:5, 0, 0, 0] = np.nan, np.inf
    with pytest.raises(UserError, match="samples: 9 images, 2 of them with values not finite"):
        panel(broken, None, reference())
