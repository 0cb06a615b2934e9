"""Runs without classes, with levels made continuous, and of latents: drawn, judged and exported."""

import json
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load_file

from .. import exported, panel
from ..config import Config, DrawConfig
from ..errors import Exit, UserError
from ..images.features import train_classifier
from ..images.latents import unscale
from ..images.pixels import to_pixels
from ..runtime.loop import run
from ..runtime.sharding import make_mesh
from ..trained import open_run
from ..workload import make_workload
from . import tiny


def train(folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The summary of a run of two steps in `folder / "run"`."""
    config = tiny.in_folder(folder, config, steps=2, eval_every_steps=0)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    monkeypatch.setattr(panel, "train_classifier", partial(train_classifier, steps=30))
    assert run(make_workload(config, mesh), config, mesh) == Exit.DONE
    return dict(json.loads((folder / "run" / "summary.json").read_text()))


def drawn_by_export(folder: Path, count: int) -> np.ndarray:
    exported.export_run(str(folder / "run"), str(folder / "out"), DrawConfig())
    sampler = export.deserialize(bytearray((folder / "out/sampler.stablehlo").read_bytes()))
    labels = np.arange(count, dtype=np.int32) % 10
    weights = load_file(folder / "out/model.safetensors")
    return np.asarray(sampler.call(weights, labels, np.uint32(3)))


def assert_same(images: np.ndarray, expected: np.ndarray) -> None:
    """Another program of the same numbers: a value may fall on the other side of a level."""
    assert images.dtype == expected.dtype == np.uint8
    assert (np.abs(images.astype(int) - expected.astype(int)) <= 1).all()
    assert (images == expected).mean() > 0.99


def test_a_run_without_classes_on_continuous_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.changed(
        tiny.CONFIG,
        data={"conditional": False, "dequantize": True},
        objective={"label_dropout": 0.0},
    )
    made, known = panel.make_reference, []

    def watched(train: Any, labels: Any, *rest: Any, **options: Any) -> Any:
        known.append(labels)
        return made(train, labels, *rest, **options)

    monkeypatch.setattr(panel, "make_reference", watched)
    summary = train(tmp_path, config, monkeypatch)
    assert known == [None]  # one Gaussian, not that of class 0
    assert "class_agreement" not in summary["samples"]
    opened = open_run(tmp_path / "run")
    images = opened.sample(12, seed=3)
    assert images.shape == (12, 8, 8, 1)
    assert_same(drawn_by_export(tmp_path, 12), images)
    with pytest.raises(UserError, match="a model of classes"):
        opened.labels(4, [1])
    with pytest.raises(UserError, match=r"guidance"):
        open_run(tmp_path / "run", DrawConfig(guidance=2.0)).sample(4)
    # Away from an earlier network it needs no classes.
    guided = open_run(tmp_path / "run", DrawConfig(guidance=2.0, guide_step=2))
    np.testing.assert_array_equal(guided.sample(12, seed=3), images)  # it is the same network


class Blocks:
    """Blocks of 2 x 2 pixels as channels, of another mean and spread."""

    def encode(self, images: jax.Array, key: jax.Array) -> jax.Array:
        blocks = images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
        return 3 * blocks.reshape(-1, 4, 4, 4) + 1

    def decode(self, latents: jax.Array) -> jax.Array:
        blocks = ((latents - 1) / 3).reshape(-1, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4)
        return blocks.reshape(-1, 8, 8, 1)


def test_a_run_of_latents_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("blocks")
    module.BLOCKS = Blocks()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "blocks", module)
    config = tiny.changed(
        tiny.CONFIG,
        model={"patch": 2},
        data={"autoencoder": "blocks:BLOCKS", "expects": (4, 4, 4, 10)},
    )
    summary = train(tmp_path, config, monkeypatch)
    assert "bits_per_dimension" not in summary
    assert summary["floor"]["frechet_heldout"] < summary["samples"]["frechet_heldout"]
    opened = open_run(tmp_path / "run")
    images = opened.sample(12, seed=3)
    assert images.shape == (12, 8, 8, 1)
    generated = opened._generate(opened.params, opened.labels(12), 3)
    latents = unscale(jnp.asarray(generated), opened.manifest.latents, 0.5)
    assert_same(images, np.asarray(to_pixels(Blocks().decode(latents), 17)))
    sampled = drawn_by_export(tmp_path, 12)
    assert sampled.shape == (12, 4, 4, 4)
    np.testing.assert_allclose(sampled, latents, atol=1e-3)
    with pytest.raises(UserError, match="likelihood of a model of latents"):
        opened.bits_per_dimension(images, opened.labels(12))


def test_guidance_without_classes_is_refused_before_the_training(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    config = tiny.changed(
        tiny.CONFIG,
        data={"source": str(tmp_path / "images.npy"), "expects": (8, 8, 1, 0)},
        sample={"guidance": 2.0},
    )
    config = tiny.in_folder(tmp_path, config)
    with pytest.raises(UserError, match=r"(?s)guidance 2.*without classes.*folder of its own"):
        make_workload(config, make_mesh(config.mesh, jax.devices()[:1]))
