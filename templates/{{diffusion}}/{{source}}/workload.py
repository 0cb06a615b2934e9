"""Makes the `Workload` of a diffusion model from images, network and step. Computes nothing."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from .config import Config
from .contract import Beat, Section, State, Workload
from .errors import UserError
from .evaluate import make_evaluate
from .generate import averaged
from .images.prepare import prepare
from .images.rows import Rows
from .images.shards import describe, manifest_file, open_split, read_manifest
from .model import Model
from .network import flops_per_image
from .panel import READING, judge, make_artifacts
from .records.mirror import Mirror
from .runtime.distributed import barrier
from .step import Learner, expected_kind, init_state, kind_of, make_learner, train_step
from .training.axes import spec
from .training.batches import fit_micro_batches, make_batches
from .training.layers import state_specs
from .training.optim_config import smaller_steps

log = logging.getLogger(__name__)

BATCH_SPEC = spec(None, "batch")  # micro-batch, image


def make_workload(config: Config, mesh: Mesh) -> Workload:
    """The diffusion model on its images, which are prepared first where they are missing."""
    config, data = _with_fitting_micro_batches(config, mesh), config.data
    if jax.process_index() == 0:
        prepare(data)
    barrier("prepared")
    if jax.process_index() > 0:
        Mirror(data.prepared_dir, process=jax.process_index()).fetch()
    manifest = read_manifest(data.prepared_dir)
    train, heldout = (open_split(data.prepared_dir, name) for name in ("train", "heldout"))
    learner = make_learner(config, kind_of(manifest))
    if config.sample.guidance != 1 and not learner.kind.classes:
        raise UserError(
            got=f"--sample.guidance {config.sample.guidance:g}, and images without classes",
            expected="1, or images of several classes",
            do="leave guidance at 1, or put the images of each class into a folder of its own",
        )
    epochs = config.run.steps * data.batch_size / len(train)
    if jax.process_index() == 0:
        log.info("%s", describe(manifest))
        log.info("%d steps are %.2f epochs of %d images", config.run.steps, epochs, len(train))
    rows = make_batches(
        Rows(train),
        seed=config.run.seed,
        batch_size=data.batch_size,
        micro_batches=config.optim.micro_batches,
        sharding=NamedSharding(mesh, BATCH_SPEC),
    )

    def finish(state: State, beat: Beat) -> tuple[dict[str, Any], dict[str, Section]]:
        params = averaged(state, config.sample.ema)
        model = Model(learner, params, manifest, mesh, int(state["step"]), Path())
        found = judge(model, train, heldout, config.sample.images, probes=1, beat=beat)
        origin = {"images_sha256": manifest.images_sha256, "epochs": epochs}
        return found | origin, {"How to read the figures": READING}

    return replace(
        _on_shapes(learner, mesh),
        batch=rows,
        evaluate=make_evaluate(learner, heldout, mesh),
        artifacts=make_artifacts(learner, mesh, train, manifest),
        finish=finish,
        identity={"images_sha256": manifest.images_sha256},
        # As worked out from --steps where they follow it.
        tunable={
            f"optim.{name}": getattr(learner.config.optim, name)
            for name in ("horizon_steps", "warmup_steps")
        },
        run_files=manifest_file(data.prepared_dir),
    )


def make_dry_workload(config: Config, mesh: Mesh) -> Workload:
    """The diffusion model without images, for `preflight`: its batches are shapes, not arrays."""
    config = _with_fitting_micro_batches(config, mesh)
    platform = mesh.devices.flat[0].platform
    return _on_shapes(make_learner(config, expected_kind(config.data), platform), mesh)


def _with_fitting_micro_batches(config: Config, mesh: Mesh) -> Config:
    optim = fit_micro_batches(config.optim, config.data.batch_size, mesh)
    return replace(config, optim=optim)


def _on_shapes(learner: Learner, mesh: Mesh) -> Workload:
    config, kind = learner.config, learner.kind
    shape = (config.optim.micro_batches, config.data.batch_size // config.optim.micro_batches)
    sharding, dtype = NamedSharding(mesh, BATCH_SPEC), "float16" if kind.latents else "uint8"
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, *kind.shape), dtype, sharding=sharding),
        "label": jax.ShapeDtypeStruct(shape, "int32", sharding=sharding),
    }
    images_per_step = config.data.batch_size
    return Workload(
        init=partial(init_state, learner),
        step=partial(train_step, learner),
        batch=lambda cursor: batch,
        stride=images_per_step,
        specs=partial(state_specs, learner.declared),
        rate=("images", images_per_step),
        flops_per_step=flops_per_image(config.model, kind.shape) * images_per_step,
        nonfinite="skip",
        smaller_steps=smaller_steps(config.optim),
        flops_formula="6 x parameters x the tokens that they multiply + attention",
    )
