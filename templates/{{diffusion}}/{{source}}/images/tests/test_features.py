"""The classifier learns, is decided by its seed, and takes images of any size and number."""

import jax
import numpy as np
import pytest

from .. import features
from ..features import FEATURE_VARIANCE, Classifier, train_classifier
from . import digits


def test_it_learns_the_classes_and_its_features_have_one_size() -> None:
    data = digits.load()
    classifier = digits.classifier()
    # 98.9 % after 500 steps; ten classes at random have 10 %.
    assert classifier.accuracy(data.heldout, data.heldout_labels) > 0.93
    found = classifier.features(data.train)
    assert found.shape == (len(data.train), 32)
    np.testing.assert_allclose(found.var(axis=0).mean(), FEATURE_VARIANCE, rtol=1e-3)
    # Classes lie apart: a nearest class mean finds most of them.
    means = np.stack([found[data.train_labels == c].mean(axis=0) for c in range(10)])
    held = classifier.features(data.heldout)
    nearest = ((held[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == data.heldout_labels).mean() > 0.85


def test_accuracy_is_the_share_of_right_classes() -> None:
    data, classifier = digits.load(), digits.classifier()
    said = classifier.classify(data.heldout)
    wrong = np.where(np.arange(len(said)) % 4 == 0, (said + 1) % 10, said)
    assert classifier.accuracy(data.heldout[:80], wrong[:80]) == 0.75


def test_the_seed_decides() -> None:
    data = digits.load()
    beats: list[int] = []

    def trained(seed: int) -> np.ndarray:
        few = train_classifier(
            data.train, data.train_labels, 10, seed=seed, steps=3, beat=lambda: beats.append(1)
        )
        return few.features(data.heldout[:9])

    np.testing.assert_array_equal(trained(0), trained(0))
    assert np.abs(trained(0) - trained(1)).max() > 0.1
    assert len(beats) == 4 * 3  # one a step
    random = [train_classifier(data.train, None, 0, seed=seed) for seed in (0, 1)]
    assert np.abs(np.subtract(*(r.features(data.heldout[:9]) for r in random))).max() > 0.1


def test_each_image_is_taken_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data, classifier = digits.load(), digits.classifier()
    images = data.heldout[:150]  # a batch and a part of one
    together = classifier.features(images)
    monkeypatch.setattr(features, "BATCH", 40)
    np.testing.assert_allclose(classifier.features(images), together, atol=1e-4)
    np.testing.assert_allclose(classifier.features(images[149:]), together[149:], atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "convolutions", "positions"),
    [
        ((1, 1, 1), 2, 1),
        ((8, 8, 1), 4, 16),
        ((5, 9, 2), 6, 2 * 3),  # to 3 x 5, to 2 x 3
        ((64, 64, 3), 8, 16),
        ((70, 30, 4), 8, 3 * 2),  # in strides of 3: 24 x 10, to 12 x 5, to 6 x 3, to 3 x 2
    ],
)
def test_any_size_of_images(shape: tuple[int, ...], convolutions: int, positions: int) -> None:
    layers = features._init(jax.random.key(0), shape, 3)
    assert len(layers) == convolutions + 2
    wide = 32 if convolutions == 2 else 64
    assert layers[-2]["weight"].shape == (positions * wide, 32)
    images = np.random.default_rng(0).uniform(-1, 1, (5, *shape)).astype(np.float32)
    found = Classifier(layers, 3, 1.0).features(images)
    assert found.shape == (5, 32)
    assert (found.std(axis=0) > 0).any()  # it sees the images
    # Pixels of every place count, those at the edges too.
    images[:, -1, -1] += 1
    assert np.abs(Classifier(layers, 3, 1.0).features(images) - found).max() > 0


def test_weights_keep_the_size_of_what_passes() -> None:
    images = np.random.default_rng(0).normal(size=(64, 16, 16, 3)).astype(np.float32)
    layers = features._init(jax.random.key(1), images.shape[1:], 1)
    squares = (Classifier(layers, 1, 1.0).features(images) ** 2).mean()
    assert 0.1 < squares < 10  # of inputs of mean square 1 (arXiv:1502.01852)


def test_without_classes_the_features_are_random_and_still_tell_sets_apart() -> None:
    data = digits.load()
    random = train_classifier(data.train, None, 0)
    assert (random.classify(data.heldout) == 0).all()
    found = random.features(data.train)
    np.testing.assert_allclose(found.var(axis=0).mean(), FEATURE_VARIANCE, rtol=1e-3)
    held = random.features(data.heldout)
    noise = random.features(digits.uniform(len(data.heldout)))
    real, other = (((x.mean(axis=0) - found.mean(axis=0)) ** 2).sum() for x in (held, noise))
    assert other > 20 * real


def test_equal_images_are_no_trouble() -> None:
    same = np.zeros((3, 8, 8, 1), np.float32)
    classifier = train_classifier(same, None, 0)
    assert classifier.scale == 1.0
    assert np.isfinite(classifier.features(same)).all()
