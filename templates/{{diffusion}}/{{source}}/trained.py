"""A trained model as an object: images, their likelihood. Trains and writes nothing.

    run = open_run("runs/demo")
    run.sample(16), run.bits_per_dimension(images, labels)

It needs no mesh and no start-up by its caller.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from .config import Config, DrawConfig, SampleConfig, average_names, validate
from .ema import combine, exponent, post_hoc_weights
from .errors import UserError
from .evaluate import make_likelihood, make_to_pixels
from .generate import Generate, balanced_labels, make_generate
from .images.shards import Manifest, Split, open_split, read_manifest
from .records.mirror import Mirror
from .run_config import check_settings
from .runtime.saved import Saved, find_saved, mesh_that_fits, saved_steps
from .step import Learner, init_state, kind_of, make_learner
from .training.layers import state_specs


@dataclass(frozen=True)
class Trained:
    """A trained model on the devices that are here. Each method compiles at its first call."""

    learner: Learner
    params: Any
    """The average that `learner.config.sample.ema` names."""
    manifest: Manifest
    mesh: Mesh
    step: int
    weak: Any = None
    """A network to guide away from; None = the model without its classes."""

    def sample(
        self, count: int = 16, labels: Int[np.ndarray, " N"] | None = None, *, seed: int = 0
    ) -> UInt8[np.ndarray, "N H W C"]:
        """Images of these classes, else of all classes in turn. The same seed draws the same."""
        return self.to_pixels(self.draw(self.labels(count, labels), seed))

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

    def draw(
        self, labels: Int[np.ndarray, " N"], seed: int, beat: Callable[[], None] = lambda: None
    ) -> Float[np.ndarray, "N H W C"]:
        """Images of the network, before they are pixels."""
        return self._generate(self.params, labels, seed, beat, weak=self.weak)

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
        likelihood = make_likelihood(self.learner, self.mesh, probes)
        return likelihood(self.params, {"image": pixels, "label": labels}, beat)

    @property
    def about(self) -> str:
        """How the images are drawn, in words."""
        s = self.learner.config.sample
        guidance = f", guidance {s.guidance:g}" if s.guidance != 1 else ""
        steps = "" if s.sampler == "adaptive" else f" in {s.sampler_steps} steps"
        return f"{s.sampler}{steps}{guidance}, {s.ema}"

    def split(self, name: str) -> Split:
        """The images of its training, `train` or `heldout`, which are not in the run folder."""
        return open_split(self.learner.config.data.prepared_dir, name)  # type: ignore[arg-type]

    @cached_property
    def to_pixels(self) -> Callable[..., UInt8[np.ndarray, "..."]]:
        """Images of the network -> pixels as they are stored."""
        return make_to_pixels(self.learner, self.manifest)

    @cached_property
    def _generate(self) -> Generate:
        return make_generate(self.learner, self.mesh, self.learner.config.sample)


def open_run(run_dir: str | Path, draw: DrawConfig | None = None) -> Trained:
    """A checkpoint, verified, with its settings; the run folder is all that it needs.

    draw: which network, and how it draws; None = the newest, as the run's settings say. UserError
    where there is no such checkpoint or average.
    """
    draw = check_settings(draw or DrawConfig())
    run = Mirror(str(run_dir), reader=True)
    for part in ("config.json", "inputs/"):
        run.fetch(part)
    saved = find_saved(run_dir, Config(), draw.step)
    manifest = read_manifest(run.local / "inputs")
    given = {f.name: getattr(draw, f.name) for f in fields(SampleConfig) if hasattr(draw, f.name)}
    given = {name: value for name, value in given.items() if value is not None}
    config = replace(
        saved.config,
        model=replace(saved.config.model, attention="auto"),  # for these devices
        sample=replace(saved.config.sample, **given),
    )
    # Another average than those that are kept is made below.
    usual = replace(config, sample=replace(config.sample, ema="raw"))
    validate(usual)
    learner, mesh = make_learner(config, kind_of(manifest)), mesh_that_fits(config.mesh)
    name = config.sample.ema
    params = load_average(run_dir, saved, learner, mesh, name)
    weak = None
    if draw.guide_step is not None:
        earlier = find_saved(run_dir, Config(), draw.guide_step)
        weak = load_average(run_dir, earlier, learner, mesh, name)
    return Trained(learner, params, manifest, mesh, saved.step, weak)


def load_average(
    run_dir: str | Path, saved: Saved[Config], learner: Learner, mesh: Mesh, name: str
) -> Any:
    """The parameters of a checkpoint under the name of an average.

    `power-STD` of another width than those that are kept is the nearest sum of all averages of the
    checkpoints up to this one (EDM2, arXiv:2312.02696, section 3.2).
    """
    bare = jax.eval_shape(partial(init_state, learner), jax.random.key(0))
    specs = state_specs(learner.declared, bare)

    def load(saved: Saved[Config], *path: str) -> Any:
        tree, where = bare, specs
        for part in path:
            tree, where = tree[part], where[part]
        return saved.load_part(path, tree, where, mesh)

    if name == "raw":
        return load(saved, "params")
    if name in average_names(learner.config.ema):
        return load(saved, "ema", name)
    kind, _, text = name.partition("-")
    try:
        gamma = exponent(float(text)) if kind == "power" else None
    except ValueError:
        gamma = None
    kept = learner.config.ema.power_stds
    if gamma is None or not kept:
        raise UserError(
            got=f"the average {name}",
            expected=f"one of raw, {', '.join(average_names(learner.config.ema))}"
            + ", or power-STD of another width" * bool(kept),
            do="choose one of these, or train with --ema.decays and --ema.power-stds",
        )
    sources = [
        (find_saved(run_dir, Config(), step), std)
        for step in saved_steps(run_dir)
        if step <= saved.step
        for std in kept
    ]
    updates = [s.step - int(load(s, "skipped")) for s, _ in sources]
    gammas = [exponent(std) for _, std in sources]
    weights = post_hoc_weights(updates, gammas, updates[-1], gamma)
    return combine((load(s, "ema", f"power-{std:g}") for s, std in sources), weights)
