"""Digits of scikit-learn for the tests of metrics, a small classifier of them, planted samples."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn.datasets import load_digits

from ..features import Classifier, train_classifier
from ..metrics import Reference, make_reference

LEVELS = 17


@dataclass(frozen=True, eq=False)
class Digits:
    """Images float32 [N, 8, 8, 1] in [-1, 1] and their classes."""

    train: np.ndarray
    train_labels: np.ndarray
    heldout: np.ndarray
    heldout_labels: np.ndarray


@cache
def load() -> Digits:
    """1437 and 360 digits, in an order of their own: writers follow each other in the source."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    images = (2 * pixels.astype(np.float32) / 16 - 1).reshape(-1, 8, 8, 1)[order]
    labels = labels.astype(np.int32)[order]
    return Digits(images[:1437], labels[:1437], images[1437:], labels[1437:])


@cache
def classifier() -> Classifier:
    """Trained for a fifth of the usual time."""
    return train_classifier(load().train, load().train_labels, 10, steps=100)


@cache
def reference() -> Reference:
    """All digits."""
    data = load()
    return make_reference(data.train, data.train_labels, data.heldout, classifier(), LEVELS)


def noise(count: int) -> np.ndarray:
    """Uniform in [-1, 1)."""
    return np.random.default_rng(1).uniform(-1, 1, (count, 8, 8, 1)).astype(np.float32)
