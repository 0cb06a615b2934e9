"""A network and its parameters as an object: images, their likelihood. Opens no checkpoint."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from .errors import UserError
from .evaluate import at_once, make_likelihood, make_to_pixels
from .generate import Generate, balanced_labels, make_generate
from .images.shards import Manifest, Split, SplitName, open_split, read_manifest
from .step import Learner
from .training.prepared import places


@dataclass(frozen=True)
class Model:
    """Parameters on the devices that are here. Each method compiles at its first call."""

    learner: Learner
    params: Any
    """The average that `learner.config.sample.ema` names."""
    manifest: Manifest
    mesh: Mesh
    step: int
    run_dir: Path
    weak: Any = None
    """A network to guide away from; None = the model without its classes."""
    weak_step: int | None = None

    def sample(
        self, count: int = 16, labels: Int[np.ndarray, " K"] | None = None, *, seed: int = 0
    ) -> UInt8[np.ndarray, "N H W C"]:
        """Images of these classes, else of all classes in turn. The same seed draws the same."""
        return self.pixels(self.labels(count, labels), seed)

    def labels(self, count: int, labels: Any = None) -> Int[np.ndarray, " N"]:
        """The classes of `count` images: those given, repeated, else all in turn."""
        classes = self.learner.kind.classes
        if labels is None or len(labels) == 0:
            return balanced_labels(self.learner, count)
        given = np.asarray(labels)
        if not (given.ndim == 1 and given.min() >= 0 and given.max() < classes):
            raise UserError(
                got=f"classes {given.tolist()}",
                expected=f"numbers from 0 to {classes - 1}" if classes else "a model of classes",
                do="choose among these" if classes else "leave them out",
            )
        return np.resize(given, count).astype(np.int32)

    def pixels(
        self, labels: Int[np.ndarray, " N"], seed: int, beat: Callable[[], None] = lambda: None
    ) -> UInt8[np.ndarray, "N H W C"]:
        """Images of these labels, as pixels are stored; no more are in memory as floats at once
        than `evaluate.NUMBERS` allows."""
        size, parts = at_once(self.manifest.shape), []
        for first in range(0, len(labels), size):
            part = labels[first : first + size]
            indices = first + np.arange(len(part), dtype=np.int32)
            images = self._generate(self.params, part, seed, beat, weak=self.weak, indices=indices)
            parts.append(self.to_pixels(images))
        return np.concatenate(parts)

    def bits_per_dimension(
        self,
        pixels: UInt8[np.ndarray, "N H W C"],
        labels: Int[np.ndarray, " N"],
        *,
        probes: int = 0,
        beat: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, " N"]:
        """Exact likelihood of dequantized images; probes > 0 estimates it, sooner."""
        if self.learner.kind.latents is not None:
            raise UserError(
                got="the likelihood of a model of latents",
                expected="a model of pixels",
                do="train without --data.autoencoder",
            )
        return self._likelihood(self.params, {"image": pixels, "label": labels}, probes, beat)

    @property
    def about(self) -> str:
        """How the images are drawn, in words."""
        s = self.learner.config.sample
        guidance = f", guidance {s.guidance:g}" if s.guidance != 1 else ""
        guidance += f" away from step {self.weak_step}" if self.weak is not None else ""
        steps = "" if s.sampler == "adaptive" else f" in {s.sampler_steps} steps"
        return f"{s.sampler}{steps}{guidance}, {s.ema}"

    def split(self, name: SplitName) -> Split:
        """The images of its training, `train` or `heldout`, which are not in the run folder."""
        given, sha256 = self.learner.config.data.prepared_dir, self.manifest.images_sha256
        for place in places(self.run_dir, given):
            found = None
            with contextlib.suppress(UserError):  # it has none, or that of another kind of data
                found = read_manifest(place).images_sha256
            if found == sha256:
                return open_split(place, name)
        raise UserError(
            got=f"no {given} near {self.run_dir}, below the working folder, or where it was",
            expected=f"the prepared images of the training, images_sha256 {sha256[:12]}",
            do=f"copy them to ./{given}, or prepare the same images again: "
            f"`prepare --config {self.run_dir / 'config.json'}`",
        )

    @cached_property
    def to_pixels(self) -> Callable[..., UInt8[np.ndarray, "..."]]:
        """Images of the network -> pixels as they are stored."""
        return make_to_pixels(self.learner, self.manifest)

    @cached_property
    def _likelihood(self) -> Callable[..., Float[np.ndarray, " N"]]:
        return make_likelihood(self.learner, self.mesh)

    @cached_property
    def _generate(self) -> Generate:
        return make_generate(self.learner, self.mesh, self.learner.config.sample)
