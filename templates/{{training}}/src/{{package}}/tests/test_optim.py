"""The optimizer does what its settings say, by the closed forms of its schedule and its updates."""

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from ..errors import UserError
from ..optim import make_optimizer, make_schedule, mirror_specs
from ..optim_config import OptimConfig
from ..sharding import is_spec

CONFIG = OptimConfig(
    learning_rate=0.01, muon_learning_rate=0.02, horizon_steps=100, warmup_steps=10
)
LABELS = {"stack": "matrix", "embedding": "embedding", "gain": "vector"}
DECAYED = {"stack": True, "embedding": True, "gain": False}
PARAMETERS = {
    "stack": jax.random.normal(jax.random.key(0), (3, 8, 24)),
    "embedding": jax.random.normal(jax.random.key(1), (16, 8)),
    "gain": jnp.ones(8),
}


def update(gradient: Any, **changes: Any) -> tuple[Any, Any]:
    """First updates from this gradient, and the optimizer's state after them."""
    optimizer = make_optimizer(replace(CONFIG, warmup_steps=0, **changes), LABELS, DECAYED)
    return optimizer.update(gradient, optimizer.init(PARAMETERS), PARAMETERS)


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [
        ("cosine", 0.1 + 0.9 * (1 + np.cos(np.pi * 45 / 90)) / 2),
        ("linear", 1 - 0.9 * 45 / 90),
        ("wsd", 1.0),
    ],
)
def test_schedule(schedule: str, middle: float) -> None:
    at = make_schedule(replace(CONFIG, schedule=schedule))
    warmup = [(step + 1) / 11 for step in range(11)]
    np.testing.assert_allclose([at(step) for step in range(11)], warmup, rtol=1e-5)
    np.testing.assert_allclose([at(55), at(100), at(10_000)], [middle, 0.1, 0.1], rtol=1e-5)


def test_wsd_cools_down_at_the_end() -> None:
    at = make_schedule(replace(CONFIG, schedule="wsd", cooldown_fraction=0.2, final_fraction=0.0))
    np.testing.assert_allclose([at(step) for step in (10, 80, 85, 90, 100)], [1, 1, 0.75, 0.5, 0])


@pytest.mark.parametrize("warmup", [-1, 100])
def test_warmup_that_does_not_fit(warmup: int) -> None:
    with pytest.raises(UserError, match=r"(?s)--optim.warmup-steps.*0 <= warmup < horizon.*lower"):
        make_schedule(replace(CONFIG, warmup_steps=warmup))


@pytest.mark.parametrize(("optimizer", "peak"), [("adamw", 0.01), ("muon", 0.02)])
def test_decay_moves_exactly_what_is_marked(optimizer: str, peak: float) -> None:
    zero = jax.tree.map(jnp.zeros_like, PARAMETERS)
    moved, _ = update(zero, optimizer=optimizer, weight_decay=0.5)
    expected = {
        "stack": -peak * 0.5 * PARAMETERS["stack"],
        "embedding": -0.01 * 0.5 * PARAMETERS["embedding"],
        "gain": np.zeros(8),
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, expected)


@pytest.mark.parametrize(("clip", "norm"), [(1.0, 1.0), (0.0, 40.0), (50.0, 40.0)])
def test_clipping_bounds_the_global_norm(clip: float, norm: float) -> None:
    gradient = jax.tree.map(lambda x: 40 * x / optax.tree.norm(PARAMETERS), PARAMETERS)
    _, state = update(gradient, clip_norm=clip, beta1=0.75)
    np.testing.assert_allclose(4 * optax.tree.norm(optax.tree.get(state, "mu")), norm, rtol=1e-5)


def test_muon_orthogonalises_each_matrix_and_leaves_the_rest_to_adam() -> None:
    moved, _ = update(PARAMETERS, optimizer="muon", weight_decay=0.0)
    for layer in np.asarray(moved["stack"]):
        singular = np.linalg.svd(layer / 0.02 / np.sqrt(24 / 8), compute_uv=False)
        assert 0.6 < singular.min() <= singular.max() < 1.3, singular
    for name in ("embedding", "gain"):
        np.testing.assert_allclose(moved[name], -0.01 * jnp.sign(PARAMETERS[name]), rtol=1e-3)


CHANGES = {
    "optimizer": "adamw",
    "learning_rate": 0.02,
    "muon_learning_rate": 0.03,
    "weight_decay": 0.2,
    "beta1": 0.8,
    "beta2": 0.8,
    "clip_norm": 2.0,
    "schedule": "linear",
    "horizon_steps": 90,
    "warmup_steps": 20,
    "cooldown_fraction": 0.5,
    "final_fraction": 0.2,
}


def trace(config: OptimConfig) -> np.ndarray:
    """The schedule here and there, and the updates of a second step after a large first one."""
    schedule, optimizer = make_schedule(config), make_optimizer(config, LABELS, DECAYED)
    small = jax.tree.map(lambda x: jnp.flip(x) / 40, PARAMETERS)
    _, state = optimizer.update(PARAMETERS, optimizer.init(PARAMETERS), PARAMETERS)
    updates, _ = optimizer.update(small, state, PARAMETERS)
    rates = jnp.stack([schedule(step) for step in (0, 15, 60, 80, 110)])
    return np.concatenate([jnp.ravel(x) for x in jax.tree.leaves((rates, updates))])


def test_every_field_acts() -> None:
    base = replace(CONFIG, optimizer="muon", schedule="wsd")
    names = {field.name for field in fields(base)}
    assert set(CHANGES) == names - {"micro_batches"}, "CHANGES lacks a field, or has one too many"
    before = trace(base)
    for name, value in CHANGES.items():
        assert not np.allclose(trace(replace(base, **{name: value})), before, rtol=1e-3), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_state_is_sharded_like_its_parameter(optimizer: str) -> None:
    labels = {"blocks": {"head": "matrix", "gain": "vector"}, "head": "embedding"}
    specs = {"blocks": {"head": P(None, "fsdp"), "gain": P(None)}, "head": P("tensor")}
    shapes = {
        "blocks": {"head": jnp.ones((2, 4, 4)), "gain": jnp.ones(4)},
        "head": jnp.ones((8, 4)),
    }
    decayed = jax.tree.map(lambda label: label != "vector", labels)
    state = make_optimizer(replace(CONFIG, optimizer=optimizer), labels, decayed).init(shapes)
    found: dict[str, set[P]] = {}
    mirrored = mirror_specs(state, specs)
    for path, spec in jax.tree_util.tree_leaves_with_path(mirrored, is_leaf=is_spec):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        tail = "/".join(key for key in keys if key not in ("muon", "adam"))
        found.setdefault(tail, set()).add(spec)
    assert found == {
        "blocks/head": {P(None, "fsdp")},
        "blocks/gain": {P(None)},
        "head": {P("tensor")},
        "": {P()},  # counters
    }
