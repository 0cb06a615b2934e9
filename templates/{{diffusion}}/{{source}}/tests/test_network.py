"""Both backbones are functions of image, noise, class and augmentation, however they run."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from .. import dit, unet
from ..config import ModelConfig
from ..errors import UserError
from ..network import flops_per_image, make_network
from ..parts import attend, dropout, resolve_attention, sinusoids
from .networks import (
    AUGMENTED,
    CLASSES,
    CONFIGS,
    IMAGES,
    INPUTS,
    LABELS,
    NOISE,
    SHAPE,
    assert_close,
    filled,
    forward,
    gradient,
    make,
    merged,
    names,
    plain,
)

both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_output_is_zero(config: ModelConfig, dtype: Any) -> None:
    out = forward(replace(config, compute_dtype=dtype), plain(make(config)[1]))
    assert out.dtype == "float32"
    np.testing.assert_array_equal(out, np.zeros_like(IMAGES))


@both
def test_gates_and_last_layers_are_zero_at_first(config: ModelConfig) -> None:
    found = {name for name, w in names(plain(make(config)[1])).items() if not np.any(w)}
    zeros = {"dit": r"out|(blocks/)?modulation/.*"}
    zeros["unet"] = r"out|attention/out|.*bias|blocks/.*/(second|modulation/.*)"
    names_of_all = names(filled(config))
    assert found == {name for name in names_of_all if re.fullmatch(zeros[config.backbone], name)}


@both
def test_every_parameter_learns_within_four_steps(config: ModelConfig) -> None:
    parameters, learnt = plain(make(config)[1]), []
    for _ in range(4):
        slopes = gradient(config, parameters)
        learnt.append({name for name, slope in names(slopes).items() if np.any(slope)})
        parameters = jax.tree.map(lambda w, slope: w - slope, parameters, slopes)
    assert learnt[0] == {"out"}
    assert learnt[-1] == {*names(parameters)}
    # From then on every number of each parameter does, but for the classes that are not there.
    for name, slope in names(gradient(config, filled(config))).items():
        present = LABELS if name == "condition/label" else slice(None)
        assert np.all(np.asarray(slope)[present] != 0), name
        if name == "condition/label":
            np.testing.assert_array_equal(np.asarray(slope)[[1, 2]], 0)


def acts(config: ModelConfig, *inputs: Any) -> float:
    """The root mean square of what other inputs change."""
    parameters = filled(config)
    return float(
        jnp.sqrt(
            jnp.mean((forward(config, parameters, *inputs) - forward(config, parameters)) ** 2)
        )
    )


@both
def test_noise_class_and_augmentation_act(config: ModelConfig) -> None:
    ones, parameters = jnp.ones((CLASSES + 1, *SHAPE)), filled(config)
    every = jnp.arange(CLASSES + 1)
    outs = forward(config, parameters, ones, every * 0.0, every, None, None)
    apart = jnp.abs(outs[:, None] - outs[None]).mean((2, 3, 4))
    assert float(apart[~jnp.eye(CLASSES + 1, dtype=bool)].min()) > 0.01
    assert acts(config, IMAGES, NOISE + 0.1, LABELS, AUGMENTED, None) > 0.01
    assert acts(config, IMAGES, NOISE, LABELS, 1 + AUGMENTED, None) > 0.01
    # No augmentation and one that changed nothing are the same.
    assert_close(
        forward(config, parameters, IMAGES, NOISE, LABELS, 0 * AUGMENTED, None),
        forward(config, parameters, IMAGES, NOISE, LABELS, None, None),
        atol=1e-6,
    )
    # Images do not see each other.
    alone = forward(config, parameters, *(x[1:2] for x in INPUTS[:4]), None)
    assert_close(alone, forward(config, parameters)[1:2], atol=1e-5)


@both
def test_without_classes_the_label_is_ignored(config: ModelConfig) -> None:
    options = {"classes": 0, "augment": 0}
    parameters = filled(config, **options)
    assert {*names(parameters)} == {*names(filled(config))} - {
        "condition/label",
        "condition/augment",
    }
    model = jax.jit(merged(config, parameters, **options), static_argnums=(3, 4))
    assert_close(
        model(IMAGES, NOISE, LABELS, None, None), model(IMAGES, NOISE, 7 + LABELS, None, None)
    )


def test_dropout_keeps_the_mean() -> None:
    x = jnp.full((100_000,), 3.0)
    dropped = dropout(x, 0.2, jax.random.key(0))
    assert {*np.unique(dropped).tolist()} == {0.0, 3.75}
    # Five standard errors of the fraction, sqrt(0.2 * 0.8 / 100 000).
    assert abs(float((dropped == 0).mean()) - 0.2) < 5 * 0.00127
    assert dropout(x, 0.2, None) is x
    assert dropout(x.astype(jnp.bfloat16), 0.2, jax.random.key(0)).dtype == "bfloat16"


@both
def test_dropout_acts_with_a_key_and_differs_in_every_place(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping, parameters = replace(config, dropout=0.3), filled(config)
    assert_close(forward(dropping, parameters), forward(config, parameters))
    outs = [forward(dropping, parameters, *INPUTS[:4], jax.random.key(i)) for i in range(2)]
    assert float(jnp.abs(outs[0] - outs[1]).mean()) > 0.01
    kept = forward(config, parameters, *INPUTS[:4], jax.random.key(0))
    assert_close(kept, forward(config, parameters), atol=1e-6)
    seen: list[tuple[int, ...]] = []

    def note(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return x

    for module in (dit, unet):
        monkeypatch.setattr(module, "dropout", note)
    merged(config, parameters)(*INPUTS[:4], jax.random.key(0))
    jax.effects_barrier()
    expected = {"dit": 2 * config.layers, "unet": 6}[config.backbone]
    assert (len(seen), len({*seen})) == (expected, expected)


@both
def test_bfloat16_is_close_and_nothing_is_widened_by_accident(config: ModelConfig) -> None:
    narrow = replace(config, compute_dtype="bfloat16", dropout=0.1)
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(merged(narrow, filled(config)), *INPUTS[:4], jax.random.key(0))
    wide = forward(config, filled(config))
    error = forward(narrow, filled(config)) - wide
    # A few roundings of 2^-9 in each of the layers.
    assert 1e-4 < float(jnp.linalg.norm(error) / jnp.linalg.norm(wide)) < 0.03


@both
def test_remat_keeps_less_and_computes_the_same(config: ModelConfig) -> None:
    parameters, kept = filled(config), {}
    for policy in ("none", "dots", "full"):
        changed = replace(config, remat=policy)
        assert_close(
            gradient(changed, parameters), gradient(config, parameters), rtol=1e-4, atol=1e-5
        )
        residuals = jax.eval_shape(
            lambda p, c=changed: jax.vjp(lambda p: merged(c, p)(*INPUTS), p)[1], parameters
        )
        kept[policy] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))
    assert kept["full"] < kept["dots"] < kept["none"]


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (ModelConfig(width=128, layers=3, mlp_width=256, patch=4, scan_unroll=3), (64, 48, 3)),
        # Few layers, large patches and many registers: the embedding and the output are a third.
        (
            ModelConfig(width=128, layers=1, mlp_width=128, patch=16, registers=128),
            (256, 256, 3),
        ),
        # So large that the border, where XLA counts no product, is a small part.
        (ModelConfig(backbone="unet", width=64, layers=2, multipliers=(1, 2, 3)), (128, 96, 3)),
    ],
    ids=["dit", "patches", "unet"],
)
def test_flops_are_those_that_xla_counts(config: ModelConfig, shape: tuple[int, ...]) -> None:
    graph, declared = nnx.split(
        nnx.eval_shape(lambda: make_network(config, shape, 0, 0, jax.random.key(0)))
    )

    def run(parameters: Any, image: jax.Array) -> jax.Array:
        model = nnx.merge(graph, nnx.State(parameters))
        return model(image, jnp.zeros(1), jnp.zeros(1, jnp.int32), None, None)

    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    counted = 3 * jax.jit(run).lower(plain(declared), image).cost_analysis()["flops"]
    # Norms, softmax and activations, which the formula leaves out, are some per cent.
    assert 0.98 < counted / flops_per_image(config, shape) < 1.06


def test_attention_equals_its_definition() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 7, 4, 8)).astype(np.float32)
    powers = np.exp(np.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(8))
    powers /= powers.sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", powers, v).reshape(2, 7, 32)
    assert_close(jax.jit(attend, static_argnums=3)(q, k, v, "xla"), expected, atol=1e-5)


def test_attention_is_what_the_platform_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_attention("auto", "bfloat16", 64) == "xla"
    with pytest.raises(UserError, match=r"(?s)attention cudnn on cpu.*NVIDIA.*at auto"):
        make_network(replace(CONFIGS["dit"], attention="cudnn"), SHAPE, 0, 0, jax.random.key(0))
    gpu = SimpleNamespace(
        device_kind="NVIDIA H200", client=SimpleNamespace(platform_version="CUDA 13.0")
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert resolve_attention("auto", "bfloat16", 72) == "cudnn"
    assert resolve_attention("auto", "bfloat16", 72, "tpu") == "xla"
    assert resolve_attention("xla", "bfloat16", 72) == "xla"
    assert resolve_attention("auto", "float32", 72) == "xla"
    with pytest.raises(UserError, match=r"(?s)bfloat16 and heads of 12"):
        resolve_attention("cudnn", "bfloat16", 12)
    # The heads of a UNet are those where its attention is: 64 or 192 wide.
    for multipliers, expected in (((3, 1), "cudnn"), ((1, 3), "xla")):
        config = ModelConfig(backbone="unet", heads=1, multipliers=multipliers)
        network = nnx.eval_shape(
            lambda c=config: make_network(c, (8, 8, 1), 0, 0, jax.random.key(0))
        )
        assert (network.config.attention, network.config.compute_dtype) == (expected, "bfloat16")


def test_sinusoids_of_the_noise() -> None:
    noise = jnp.array([-1.5, 0.0, 0.3, 0.32])
    waves = np.asarray(sinusoids(noise))
    assert (waves.shape, waves.dtype) == ((4, 256), "float32")
    for i in (0, 1, 64, 127):
        angle = np.asarray(noise, np.float64) * 100 / 1000 ** (i / 128)
        # float32 holds an angle of 150 to 1e-5.
        assert_close(waves[:, i], np.cos(angle), atol=2e-5)
        assert_close(waves[:, 128 + i], np.sin(angle), atol=2e-5)
    assert np.abs(waves[2] - waves[3]).max() > 1
    slowest = np.asarray(sinusoids(jnp.linspace(-2, 2, 9)))[:, -1]
    assert (np.diff(slowest) > 0).all()
