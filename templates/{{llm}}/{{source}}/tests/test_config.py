"""Every setting acts, and what cannot work is refused before it starts."""

import ast
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ..attention import resolve_attention
from ..cli import parse
from ..config import PRESETS, Config, ModelConfig, validate
from ..errors import UserError
from ..run_config import from_dict, identity_of, option, to_dict, tunables_of
from ..step import init_state, make_learner, objective
from ..training.layers import state_specs
from .tiny import BOS, CONFIG, VOCAB

FREE = {"compute_dtype", "attention", "remat", "scan_unroll", "micro_batches"}


def test_every_field_is_read() -> None:
    read = set()
    for path in Path(__file__).parents[1].rglob("*.py"):
        if not {"tests", "conftest"} & {*path.parts, path.stem} and not path.stem.endswith(
            "config"
        ):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
                    read.add((owner.lstrip("_").removesuffix("_config"), node.attr))
    names = [name.split(".") for name in to_dict(Config())]
    assert not [f for f in names if not {(owner, f[1]) for owner in (f[0], "config", "c")} & read]


CHANGES = dict(
    layers=3,
    width=64,
    heads=2,
    kv_heads=4,
    head_dim=16,
    mlp_width=32,
    qk_norm=False,
    tied_embeddings=False,
    rope_theta=5e5,
    rope_factor=2.0,
    rope_context=64,
    logit_cap=5.0,
    z_loss=0.1,
    compute_dtype="bfloat16",
    remat="dots",
    scan_unroll=2,
)


def traced(config: Config) -> str:
    """The program of the loss, and the constants that it holds."""
    learner = make_learner(config, VOCAB, BOS)
    params = jax.eval_shape(partial(init_state, learner), jax.random.key(0))["params"]
    tokens = jax.ShapeDtypeStruct((2, 17), "int32")
    jaxpr = jax.make_jaxpr(partial(objective, learner))(params, tokens)
    return f"{jaxpr} {[np.asarray(x).tobytes() for x in jaxpr.consts]}"


def test_every_field_of_the_model_changes_the_program() -> None:
    assert set(CHANGES) <= {field.name for field in fields(ModelConfig)}
    base = from_dict(CONFIG, {"model.rope_factor": 4.0, "model.rope_context": 16})
    before = traced(base)
    assert traced(base) == before
    changes = {f"model.{name}": value for name, value in CHANGES.items()}
    changes["data.packing"] = "documents"
    assert not [k for k, v in changes.items() if traced(from_dict(base, {k: v})) == before]


def test_zero_keeps_all_checkpoints() -> None:
    config = from_dict(Config(), {"run.keep_checkpoints": 0})
    assert validate(config).run == config.run


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds(name: str) -> None:
    config = validate(PRESETS[name]())
    learner = make_learner(config, config.data.vocab_size, 0)
    state_specs(learner.declared, jax.eval_shape(partial(init_state, learner), jax.random.key(0)))


def test_an_option_is_what_the_command_line_takes() -> None:
    def other(value: object) -> object:
        if isinstance(value, bool):
            return not value
        return (2 * value or 4) if isinstance(value, int) else value + 0.01

    known = identity_of(Config()) | tunables_of(Config())
    others = {n: other(v) for n, v in known.items() if isinstance(v, int | float)}
    options = [word for name, value in others.items() for word in option(name, value).split()]
    config = parse(["train", *options]).keywords["config"]
    assert {n: v for n, v in to_dict(config).items() if n in others} == others


def test_what_a_resume_must_match() -> None:
    """Of our settings; those that you add are for you to mark."""
    must_match = {f"model.{name}" for name in CHANGES if name not in FREE}
    must_match |= {"optim.optimizer", "run.seed", "data.seq_len", "data.batch_size"}
    listed = {"learning_rate", "muon_learning_rate", "weight_decay", "beta1", "beta2", "clip_norm"}
    listed |= {"schedule", "horizon_steps", "warmup_steps", "cooldown_fraction", "final_fraction"}
    assert must_match <= set(identity_of(Config()))
    assert {"run.steps"} | {f"optim.{name}" for name in listed} <= set(tunables_of(Config()))
    marked = identity_of(Config()) | tunables_of(Config())
    assert not [name for name in marked if name.split(".")[1] in FREE]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.heads": 6, "model.kv_heads": 4}, r"heads 6 .*kv-heads 4.*divide.*\[1, 2, 3, 6\]"),
        ({"model.head_dim": 7}, r"head-dim 7.*even.*choose 8"),
        ({"model.layers": 4, "model.scan_unroll": 3}, r"scan-unroll 3 with 4 layers.*divisor"),
        ({"model.attention": "cudnn", "data.packing": "segments"}, r"cudnn.*packing at auto"),
        ({"model.kv_heads": 0}, r"--model.kv-heads 0.*more than 0"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)got: .*{words}"):
        validate(from_dict(Config(), changes))


def test_attention_is_what_the_platform_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_attention("auto", "documents", "bfloat16", 64) == "xla"
    with pytest.raises(UserError, match=r"(?s)attention cudnn on cpu.*NVIDIA.*at auto"):
        resolve_attention("cudnn", "documents", "bfloat16", 64)

    gpu = SimpleNamespace(
        device_kind="NVIDIA H200", client=SimpleNamespace(platform_version="CUDA 13.0")
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert resolve_attention("auto", "auto", "bfloat16", 128) == "cudnn"
    assert resolve_attention("xla", "auto", "bfloat16", 128) == "xla"
    # What JAX's wrapper of the kernel refuses, or does slowly.
    for packing, dtype, head_dim in (
        ("segments", "bfloat16", 64),
        ("auto", "float32", 64),
        ("auto", "bfloat16", 12),
        ("auto", "bfloat16", 192),
    ):
        assert resolve_attention("auto", packing, dtype, head_dim) == "xla"
    with pytest.raises(UserError, match=r"(?s)float32 and heads of 64.*bfloat16"):
        resolve_attention("cudnn", "documents", "float32", 64)
