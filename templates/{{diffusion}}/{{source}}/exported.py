"""Writes a checkpoint as files that need no code of this project: weights, and a sampler.

The sampler is StableHLO by `jax.export`, with fixed steps: an adaptive solver does not serialise.
It takes the weights as arguments, so that it stays small.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jaxtyping import Array, Float, Int, UInt32

from . import standalone
from .config import DrawConfig
from .errors import UserError
from .generate import guided_denoiser
from .images.latents import unscale
from .images.pixels import to_pixels
from .objectives import OBJECTIVES
from .records import store
from .run_config import flatten, to_dict
from .samplers import draw_noise, image_keys, sample
from .step import Learner, make_learner
from .trained import open_run
from .training.weights_file import write_weights

PLATFORMS = ("cpu", "cuda", "tpu")


def export_run(run_dir: str, to: str, draw: DrawConfig) -> None:
    """Write model.safetensors, sampler.stablehlo, config.json and sample.py to the folder `to`."""
    run = open_run(run_dir, draw)
    config, folder = run.learner.config, store.on_disk(to)
    if config.sample.sampler == "adaptive":
        raise UserError(
            got="--sampler adaptive",
            expected="a sampler of fixed steps: a loop without a known end does not serialise",
            do="choose heun, dpm++, euler or churn",
        )
    if run.weak is not None:
        raise UserError(
            got="--guide-step",
            expected="one network: the exported sampler has no place for a second one",
            do="leave it out; guidance away from the prediction without class is exported",
        )
    learner = portable(run.learner)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: np.asarray(x) for name, x in flatten(run.params).items()}
    write_weights(folder / "model.safetensors", weights)
    (folder / "sampler.stablehlo").write_bytes(serialise(learner, weights))
    kind = learner.kind
    about = {"step": run.step, "average": config.sample.ema, "classes": kind.classes}
    about |= {"shape": kind.shape, "levels": kind.levels, "class_names": run.manifest.class_names}
    about |= {"latents": None if kind.latents is None else run.manifest.request["autoencoder"]}
    about |= {"jax": jax.__version__, "settings": to_dict(config)}
    (folder / "config.json").write_text(json.dumps(about, indent=1))
    (folder / "sample.py").write_text(Path(standalone.__file__).read_text("utf-8"))
    print(f"{folder}: weights and sampler of step {run.step}; try `python {folder}/sample.py`")


def portable(learner: Learner) -> Learner:
    """The same network in float32, with attention that every platform has."""
    model = replace(learner.config.model, compute_dtype="float32", attention="xla")
    return make_learner(replace(learner.config, model=model), learner.kind, "cpu")


def serialise(learner: Learner, weights: dict[str, np.ndarray]) -> bytes:
    """(weights by name, int32 labels [b], uint32 seed) -> images, for any b, as bytes."""
    config = learner.config
    path, kind = OBJECTIVES[config.objective.name].path, learner.kind

    def draw(
        weights: dict[str, Array], labels: Int[Array, " b"], seed: UInt32[Array, ""]
    ) -> Float[Array, "b H W C"] | Any:
        params = unflatten(weights)
        keys = image_keys(jax.random.key(seed), jax.numpy.arange(labels.shape[0]))
        sampling = config.sample
        estimates = guided_denoiser(learner, sampling, params, None, labels, sampling.guidance)
        images = sample(sampling, path, estimates, draw_noise(keys, kind.shape), keys)
        if kind.latents is not None:
            return unscale(images, kind.latents, config.objective.sigma_data)
        return to_pixels(images, kind.levels, dequantized=config.data.dequantize)

    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    labels = jax.ShapeDtypeStruct(export.symbolic_shape("b"), "int32")
    seed = jax.ShapeDtypeStruct((), "uint32")
    made = export.export(jax.jit(draw), platforms=PLATFORMS)(shapes, labels, seed)
    return bytes(made.serialize())


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """What `flatten` was given: nested dicts by dotted names."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, last = name.split(".")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return tree
