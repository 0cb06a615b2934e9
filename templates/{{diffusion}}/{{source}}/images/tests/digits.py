"""Digits of scikit-learn for the tests of metrics, a small classifier of them, planted samples."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from ..features import Classifier, train_classifier
from ..metrics import Reference, gaussian_samples, make_reference
from ..pixels import to_pixels

LEVELS = 17
COUNT = 180  # images of a planted set
LABELS = np.arange(COUNT, dtype=np.int32) % 10

type Planted = tuple[np.ndarray, np.ndarray]
"""Images, and the classes that were asked for."""


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
    """Half of the held-out digits; the other half takes the place of perfect samples."""
    data = load()
    return refer(data.train, data.train_labels, data.heldout[:COUNT], classifier(), LEVELS)


def refer(
    train: np.ndarray,
    labels: np.ndarray | None,
    heldout: np.ndarray,
    classifier: Classifier,
    levels: int,
    searched: np.ndarray | None = None,
) -> Reference:
    """A reference whose copies are looked for in `searched`, or in all of `train`."""
    pixels = np.asarray(to_pixels(train if searched is None else searched, levels))
    return make_reference(train, labels, heldout, classifier, levels, pixels)


def perfect() -> Planted:
    return load().heldout[COUNT:], load().heldout_labels[COUNT:]


def copies() -> Planted:
    rows = np.random.default_rng(3).permutation(len(load().train))[:COUNT]
    return load().train[rows], load().train_labels[rows]


def near_copies() -> Planted:
    """A fifth of the pixels is one level off."""
    images, labels = copies()
    off = np.random.default_rng(4).choice([-1, 0, 1], images.shape, p=[0.1, 0.8, 0.1])
    return images + off.astype(np.float32) / 8, labels


def heldout_copies() -> Planted:
    return load().heldout[:COUNT], load().heldout_labels[:COUNT]


def one_class() -> Planted:
    images, labels = load().heldout, load().heldout_labels
    return images[labels == 3], LABELS[: (labels == 3).sum()]


def noise() -> Planted:
    return uniform(COUNT), LABELS


def blurred() -> Planted:
    images, labels = perfect()
    return gaussian_filter(images, (0, 0.7, 0.7, 0)), labels


def mean_image() -> Planted:
    return np.repeat(load().train.mean(axis=0, keepdims=True), COUNT, axis=0), LABELS


def contracted() -> Planted:
    """Half the way to the mean of its class, as guidance does it."""
    images, labels = perfect()
    data = load()
    means = np.stack([data.train[data.train_labels == c].mean(axis=0) for c in range(10)])
    return (images + means[labels]) / 2, labels


def class_gaussians() -> Planted:
    data = load()
    return gaussian_samples(data.train, data.train_labels, LABELS), LABELS


def uniform(count: int) -> np.ndarray:
    """Noise in [-1, 1)."""
    return np.random.default_rng(1).uniform(-1, 1, (count, 8, 8, 1)).astype(np.float32)
