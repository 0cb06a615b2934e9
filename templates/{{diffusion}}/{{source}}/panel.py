"""How good and how honest drawn images are: figures and pictures of them. Trains no network.

Figures are always beside those of real images and of a Gaussian a class: alone they say little.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from .contract import Artifact, Beat, Section, State
from .evaluate import at_once, make_likelihood, make_to_pixels, spread
from .generate import averaged, balanced_labels, make_generate
from .images.feature_nets import open_features
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
LIKELIHOOD_IMAGES = 2000  # held-out ones, at most
FEATURE_IMAGES = 50_000  # training ones for FID and FD-DINOv2, the number of published samples
MIXTURE_DIMS = 1024  # up to which a mixture of Gaussians is fitted


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
        classes = min(kind.classes, COLUMNS) or COLUMNS
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


def make_panel(
    learner: Learner, mesh: Mesh, train: Split, heldout: Split, manifest: Manifest
) -> Callable[[State, Beat], tuple[dict[str, Any], dict[str, Section]]]:
    """State -> the figures of the summary, and a section of the report."""

    def finish(state: State, beat: Beat) -> tuple[dict[str, Any], dict[str, Section]]:
        config = learner.config.sample
        run = Model(
            learner, averaged(state, config.ema), manifest, mesh, int(state["step"]), Path()
        )
        found = judge(run, train, heldout, config.images, probes=1, beat=beat)
        return found, {"How to read the figures": READING}

    return finish


READING = """\
`floor` are training images in the place of samples, `baseline` is a Gaussian for each class. No
figure is good alone: guidance lowers the distances in features and loses recall, copies of training
images lower all of them but `memorisation`, which falls from 1 to 0 (below 0.85 a model copies).
`nearest_neighbour_accuracy` is 0.5 where samples cannot be told from real images, and 1 where they
always can."""


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

    probes: as in `make_likelihood`. features: a file of weights, for FID or FD-DINOv2 too.
    """
    kind, seed = run.learner.kind, run.learner.config.run.seed
    labels = balanced_labels(run.learner, count)
    images = run.pixels(labels, seed, beat)
    likelihood = _likelihood(run, train, heldout, probes, beat)
    if jax.process_index() != 0:  # which alone writes the summary
        return {}
    (real, classes), (kept, kept_classes) = (_shown(s, kind.levels) for s in (train, heldout))
    classifier = train_classifier(real, classes, kind.classes, beat=beat)
    found: dict[str, Any] = {"drawn": f"{count} images, {run.about}"}
    if kind.classes:
        found["classifier_accuracy"] = classifier.accuracy(kept, kept_classes)
    reference = make_reference(real, classes, kept, classifier, kind.levels, beat=beat)
    judged = min(len(images), at_once(images.shape[1:]))
    labels, samples = labels[:judged], np.asarray(to_network(images[:judged], kind.levels))
    found |= compare(samples, labels if kind.classes else None, reference, beat) | likelihood
    if features:
        found |= _distance_by(features, images, train, kind.levels, beat)
    return found


def _shown(split: Split, levels: int) -> tuple[Float[np.ndarray, "N H W C"], np.ndarray]:
    """Images in [-1, 1], as many as metrics take, and their labels."""
    rows = spread(split, MAX_IMAGES, latents=False)
    return np.asarray(to_network(rows["image"], levels)), rows["label"]


def _likelihood(
    run: Model, train: Split, heldout: Split, probes: int, beat: Beat
) -> dict[str, dict[str, float]]:
    """Bits a number of the held-out and of as many training images; nothing for latents."""
    kind = run.learner.kind
    if kind.latents is not None:
        return {}
    likelihood, found = make_likelihood(run.learner, run.mesh, probes), {}
    for name, split in (("heldout", heldout), ("train", train)):
        rows = spread(split, min(LIKELIHOOD_IMAGES, len(heldout)))
        found[name] = float(likelihood(run.params, rows, beat).mean())
    if np.prod(kind.shape) <= MIXTURE_DIMS:
        known, unknown = (_shown(split, kind.levels)[0] for split in (train, heldout))
        found["heldout_of_gaussian_mixture"] = mixture_bits_per_dim(known, unknown, kind.levels)
    return {"bits_per_dimension": found}


def _distance_by(
    path: str, images: UInt8[np.ndarray, "N H W C"], train: Split, levels: int, beat: Beat
) -> dict[str, float]:
    """FID or FD-DINOv2 to the training images, by the features of the user's network."""
    network = open_features(path)

    def features(read: Callable[[range], np.ndarray], count: int) -> Float[np.ndarray, "N D"]:
        parts, size = [], at_once(images.shape[1:])
        for first in range(0, count, size):
            pixels = read(range(first, min(first + size, count)))
            parts.append(network(np.asarray(to_network(pixels, levels))))
            beat()
        return np.concatenate(parts)

    real = min(len(train), FEATURE_IMAGES)
    ours = features(lambda rows: images[rows.start : rows.stop], len(images))
    distance = frechet_distance(ours, features(train.pixels.read, real))
    of_images = {"images": len(images), "training_images": real}
    return {network.metric: distance} | {f"{network.metric}_{k}": n for k, n in of_images.items()}
