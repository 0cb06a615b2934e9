"""Every setting acts, and what cannot work is refused before it starts."""

import ast
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ..config import PRESETS, Config, ModelConfig, ObjectiveConfig, validate
from ..errors import UserError
from ..run_config import from_dict, identity_of, to_dict, tunables_of
from ..step import expected_kind, init_state, make_learner, train_step
from ..training.layers import state_specs
from . import tiny
from .tiny import CONFIG

FREE = {"compute_dtype", "attention", "remat", "scan_unroll", "micro_batches"}


def test_every_field_is_read() -> None:
    read = set()
    for path in Path(__file__).parents[1].rglob("*.py"):
        if not {"tests", "conftest"} & {*path.parts, path.stem} and not path.stem.endswith(
            "run_config"
        ):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
                    read.add((owner.lstrip("_").removesuffix("_config"), node.attr))
    owners = {"config", "c", "m", "s", "objective", "sampling"}
    names = [name.split(".") for name in to_dict(Config())]
    assert not [f for f in names if not {(owner, f[1]) for owner in {f[0], *owners}} & read]


CHANGES: dict[str, Any] = dict(
    width=32,
    layers=3,
    heads=1,
    patch=2,
    mlp_width=32,
    registers=0,
    rope_theta=7.0,
    dropout=0.5,
    compute_dtype="bfloat16",
    remat="dots",
    scan_unroll=2,
)
OBJECTIVE: dict[str, Any] = dict(
    name="edm",
    weight="min-snr",
    times="uniform",
    time_mean=1.0,
    time_std=2.0,
    stratified=False,
    label_dropout=0.1,
)
OTHERS = {
    "ema.decays": (0.8,),
    "ema.power_stds": (0.2,),
    "data.flip": True,
    "data.augment": 0.5,
    "data.dequantize": True,
    "data.conditional": False,
}


def traced(config: Config) -> str:
    """The program of the step, and the constants that it holds."""
    learner = make_learner(config, expected_kind(config.data))
    state = jax.eval_shape(partial(init_state, learner), jax.random.key(0))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tiny.batch(0))
    jaxpr = jax.make_jaxpr(partial(train_step, learner))(state, shapes)
    return f"{jaxpr} {[np.asarray(x).tobytes() for x in jaxpr.consts]}"


def test_every_field_of_model_and_objective_changes_the_program() -> None:
    left_out = {"backbone", "multipliers", "attention"}  # of the UNet; of GPUs
    assert {*CHANGES} == {field.name for field in fields(ModelConfig)} - left_out
    left_out = {"min_snr_gamma", "sigma_data"}  # of other objectives, below
    assert {*OBJECTIVE} == {field.name for field in fields(ObjectiveConfig)} - left_out
    before = traced(CONFIG)
    assert traced(CONFIG) == before
    changes = {f"model.{name}": value for name, value in CHANGES.items()}
    changes |= {f"objective.{name}": value for name, value in OBJECTIVE.items()} | OTHERS
    changes["model.backbone"] = "unet"
    assert not [k for k, v in changes.items() if traced(from_dict(CONFIG, {k: v})) == before]
    for base, change in (
        ({"objective.weight": "min-snr"}, {"objective.min_snr_gamma": 1.0}),
        ({"objective.name": "edm"}, {"objective.sigma_data": 1.0}),
        ({"model.backbone": "unet"}, {"model.multipliers": (1, 3)}),
    ):
        assert traced(from_dict(CONFIG, base)) != traced(from_dict(CONFIG, base | change))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds(name: str) -> None:
    config = validate(PRESETS[name]())
    learner = make_learner(config, expected_kind(config.data))
    state_specs(learner.declared, jax.eval_shape(partial(init_state, learner), jax.random.key(0)))


def test_what_a_resume_must_match() -> None:
    """Of our settings; those that you add are for you to mark."""
    must_match = {f"model.{name}" for name in CHANGES if name not in FREE}
    must_match |= {f"objective.{name}" for name in OBJECTIVE} | {*OTHERS}
    assert must_match | {"run.seed", "data.batch_size"} <= set(identity_of(Config()))
    marked = identity_of(Config()) | tunables_of(Config())
    assert not [name for name in marked if name.split(".")[1] in FREE]
    assert not [name for name in marked if name.startswith("sample.")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.heads": 3}, r"width 64 --model.heads 3.*multiple of 4.*width 60"),
        ({"model.layers": 4, "model.scan_unroll": 3}, r"scan-unroll 3 with 4 layers.*divisor"),
        ({"sample.ema": "decay-0.5"}, r"decay-0.5.*raw, decay-0.999, decay-0.9999, power-0.05"),
        ({"sample.guidance_from": 0.5, "sample.guidance_to": 0.4}, r"from 0.5 to 0.4.*exchange"),
        ({"model.backbone": "unet", "model.width": 50}, r"widths \[50, 100\].*multiples of 4"),
        ({"model.backbone": "unet", "model.multipliers": ()}, r"widths \[\].*model.multipliers"),
        (
            {"model.backbone": "unet", "model.multipliers": (0, 2)},
            r"widths \[0, 128\].*than 0",
        ),
        ({"model.backbone": "unet", "model.heads": 3}, r"with 3 heads.*the last"),
        ({"sample.guidance": 2.0, "objective.label_dropout": 0.0}, r"guidance 2.*label-dropout"),
        ({"data.autoencoder": "a:b", "data.flip": True}, r"autoencoder with --data.flip"),
        ({"data.batch_size": 0}, r"--data.batch-size 0.*more than 0"),
        ({"objective.label_dropout": 1.5}, r"label-dropout 1.5.*at most 1"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)got: .*{words}"):
        validate(from_dict(Config(), changes))
