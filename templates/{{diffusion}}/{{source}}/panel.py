"""How good and how honest drawn images are: figures and pictures of them. Trains no network.

Figures are always beside those of real images and of a Gaussian a class: alone they say little.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from .contract import Artifact, Beat, State
from .evaluate import at_once, make_likelihood, make_to_pixels, spaced, spread
from .generate import averaged, balanced_labels, make_generate
from .images.feature_nets import FeatureNet, open_features
from .images.features import train_classifier
from .images.metrics import (
    MAX_IMAGES,
    compare,
    frechet_distance,
    make_reference,
    mixture_bits_per_dim,
)
from .images.pictures import grid, labelled_table, neighbour_grid, strip
from .images.pixels import to_network
from .images.shards import Manifest, Split
from .model import Model
from .step import Learner

COLUMNS, NEIGHBOURS = 10, 3  # of a grid of images; training images below each of a row
GUIDANCES, STEPS = (1.0, 1.5, 3.0), (4, 10, 25)  # of the table of pictures
LIKELIHOOD_IMAGES = 2000  # held-out ones, at most, and no more than are drawn
SEARCHED = 1 << 30  # numbers of training images that are searched for copies, in bytes
FEATURE_IMAGES = 50_000  # training ones for FID and FD-DINOv2, the number of published samples
MIXTURE_DIMS = 256  # up to which a mixture of Gaussians is fitted: 784 took ten minutes


def make_artifacts(
    learner: Learner, mesh: Mesh, train: Split, manifest: Manifest
) -> Callable[[State, Beat], dict[str, Artifact]]:
    """State -> images of each class, their neighbours, their way from noise, guidance by steps."""
    config, kind = learner.config.sample, learner.kind
    to_pixels = make_to_pixels(learner, manifest)
    generate = make_generate(learner, mesh, config)
    steps = replace(config, sampler="heun") if config.sampler == "adaptive" else config
    follow = make_generate(learner, mesh, steps, keep=True)
    by_steps = [
        make_generate(learner, mesh, replace(steps, sampler_steps=count, guidance=GUIDANCES[-1]))
        for count in STEPS * bool(kind.classes and learner.config.objective.label_dropout)
    ]
    real = spread(train, MAX_IMAGES, latents=False)["image"]

    def shown(images: np.ndarray) -> Float[np.ndarray, "*N H W C"]:
        return np.asarray(to_network(to_pixels(images), kind.levels))

    def artifacts(state: State, beat: Beat) -> dict[str, Artifact]:
        params = averaged(state, config.ema)
        classes = min(kind.classes - len(kind.empty), COLUMNS) or COLUMNS
        labels = balanced_labels(learner, classes * COLUMNS)
        images = shown(generate(params, labels, 0, beat))
        path = shown(follow(params, labels[:classes], 0, beat))
        frames = np.linspace(0, path.shape[1] - 1, min(COLUMNS, path.shape[1])).round().astype(int)
        pictures = {
            "samples": grid(images, classes),
            "from-noise": strip(path[:, frames].swapaxes(0, 1)),
        }
        if jax.process_index() == 0:
            known = np.asarray(to_network(real, kind.levels))
            near = neighbour_grid(images[:COLUMNS], known, NEIGHBOURS, beat=beat)
            pictures["nearest-in-training"] = near
        if by_steps:
            scales = np.repeat(np.array(GUIDANCES, np.float32), classes)
            rows = np.tile(labels[:classes], len(GUIDANCES))
            same = np.tile(np.arange(classes, dtype=np.int32), len(GUIDANCES))  # noise in each row
            options = {"scale": scales, "indices": same}
            drawn = [shown(draw(params, rows, 0, beat, **options)) for draw in by_steps]
            cells = [
                [grid(part[i * classes : (i + 1) * classes], classes) for part in drawn]
                for i in range(len(GUIDANCES))
            ]
            names = [f"guidance {scale:g}" for scale in GUIDANCES]
            pictures["guidance-by-steps"] = labelled_table(
                cells, names, [f"{count} steps" for count in STEPS]
            )
        return dict(pictures)

    return artifacts


READING = """\
`floor` are training images in the place of samples, `baseline` is a Gaussian for each class. No
figure is good alone: guidance lowers the distances in features and loses recall, copies of training
images lower all of them but `memorisation`, which falls from 1 to 0 (below 0.85 a model copies).
`nearest_neighbour_accuracy` is 0.5 where samples cannot be told from real images, and 1 where they
always can. `bits_per_dimension` are of images whose levels are made continuous by uniform noise: a
model that was trained without --data.dequantize was not trained for them."""


def judge(
    run: Model,
    train: Split,
    heldout: Split,
    count: int,
    *,
    probes: int,
    features: str = "",
    beat: Beat = lambda: None,
) -> dict[str, Any]:
    """Figures of `count` images: `samples` beside `floor` and `baseline`, and the likelihood.

    At most as many are judged as there are training images, of `MAX_IMAGES` of them; more are drawn
    for the features alone. probes: as in `make_likelihood`. features: a file of weights, for FID or
    FD-DINOv2 too.
    """
    network = open_features(features) if features else None  # a wrong name is told at once
    kind, seed = run.learner.kind, run.learner.config.run.seed
    judged = min(count, len(train), MAX_IMAGES, at_once(train.pixels.shape))
    labels = balanced_labels(run.learner, count if network else judged)
    images = run.pixels(labels, seed, beat)
    likelihood = _likelihood(run, train, heldout, count, probes, beat)
    if jax.process_index() != 0:  # which alone writes the summary
        return {}
    (real, classes), (kept, kept_classes) = (_shown(s, kind.levels) for s in (train, heldout))
    classifier = train_classifier(real, classes, kind.classes, beat=beat)
    searched = train.pixels.read(spaced(len(train), SEARCHED // math.prod(train.pixels.shape)))
    found: dict[str, Any] = {"drawn": f"{len(images)} images, {run.about}", "judged": judged}
    found["searched_for_copies"] = len(searched)
    known = classes if kind.classes else None
    if known is not None:
        found["classifier_accuracy"] = classifier.accuracy(kept, kept_classes)
    reference = make_reference(real, known, kept, classifier, kind.levels, searched, beat=beat)
    # Any part of them would be the first classes where there are fewer than classes.
    chosen = np.random.default_rng(seed).permutation(len(images))[:judged]
    samples = np.asarray(to_network(images[chosen], kind.levels))
    found |= compare(samples, labels[chosen] if kind.classes else None, reference, beat)
    if network:
        found |= _distance_by(network, images, train, kind.levels, beat)
    return found | likelihood


def _shown(split: Split, levels: int) -> tuple[Float[np.ndarray, "N H W C"], np.ndarray]:
    """Images in [-1, 1], as many as metrics take, and their labels."""
    rows = spread(split, MAX_IMAGES, latents=False)
    return np.asarray(to_network(rows["image"], levels)), rows["label"]


def _likelihood(
    run: Model, train: Split, heldout: Split, count: int, probes: int, beat: Beat
) -> dict[str, dict[str, float]]:
    """Bits a number of the held-out and of as many training images; nothing for latents."""
    kind = run.learner.kind
    if kind.latents is not None:
        return {}
    likelihood, found = make_likelihood(run.learner, run.mesh), {}
    for name, split in (("heldout", heldout), ("train", train)):
        rows = spread(split, min(LIKELIHOOD_IMAGES, count, len(heldout)))
        found[name] = float(likelihood(run.params, rows, probes, beat).mean())
    if np.prod(kind.shape) <= MIXTURE_DIMS:
        known, unknown = (_shown(split, kind.levels)[0] for split in (train, heldout))
        found["heldout_of_gaussian_mixture"] = mixture_bits_per_dim(known, unknown, kind.levels)
    return {"bits_per_dimension": found}


def _distance_by(
    network: FeatureNet,
    images: UInt8[np.ndarray, "N H W C"],
    train: Split,
    levels: int,
    beat: Beat,
) -> dict[str, float]:
    """FID or FD-DINOv2 to the training images, by the features of the user's network."""

    def features(read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
        parts, size = [], at_once(images.shape[1:])
        for first in range(0, len(rows), size):
            pixels = read(rows[first : first + size])
            parts.append(network(np.asarray(to_network(pixels, levels))).astype(np.float64))
            beat()
        return np.concatenate(parts)

    real = spaced(len(train), FEATURE_IMAGES)
    ours = features(lambda rows: images[rows], np.arange(len(images)))
    distance = frechet_distance(ours, features(train.pixels.read, real))
    of_images = {"images": len(images), "training_images": len(real)}
    return {network.metric: distance} | {f"{network.metric}_{k}": n for k, n in of_images.items()}
