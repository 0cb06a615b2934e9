"""Opens a checkpoint as a model that draws. Trains and writes nothing.

    run = open_run("runs/demo")
    run.sample(16), run.bits_per_dimension(images, labels)

It needs no mesh and no start-up by its caller.
"""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from .config import Config, DrawConfig, SampleConfig, average_names, validate
from .ema import combine, exponent, post_hoc_weights
from .errors import UserError
from .images.shards import read_manifest
from .model import Model
from .records.mirror import Mirror
from .run_config import check_settings
from .runtime.saved import Saved, all_saved, find_saved, mesh_that_fits
from .step import Learner, init_state, kind_of, make_learner
from .training.layers import state_specs


def open_run(run_dir: str | Path, draw: DrawConfig | None = None) -> Model:
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
    if draw.guide_step is not None and config.sample.guidance == 1:
        raise UserError(
            got=f"--guide-step {draw.guide_step} with guidance 1, which is none",
            expected="a guidance above 1",
            do="add --guidance 2, or leave --guide-step out",
        )
    # Another average than those that are kept is made below, and an earlier network needs no class.
    guidance = config.sample.guidance if draw.guide_step is None else 1.0
    validate(replace(config, sample=replace(config.sample, ema="raw", guidance=guidance)))
    learner, mesh = make_learner(config, kind_of(manifest)), mesh_that_fits(config.mesh)
    name = config.sample.ema
    params = load_average(run_dir, saved, learner, mesh, name)
    weak = None
    if draw.guide_step is not None:
        earlier = find_saved(run_dir, Config(), draw.guide_step)
        weak = load_average(run_dir, earlier, learner, mesh, name)
    return Model(learner, params, manifest, mesh, saved.step, run.local, weak, draw.guide_step)


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
    found = [other for other in all_saved(run_dir, Config()) if other.step <= saved.step]
    done = [other.step - int(load(other, "skipped")) for other in found]
    updates = [updates for updates in done for _ in kept]
    gammas = [exponent(std) for _ in found for std in kept]
    weights = post_hoc_weights(updates, gammas, updates[-1], gamma)
    averages = (load(other, "ema", f"power-{std:g}") for other in found for std in kept)
    return combine(averages, weights)
