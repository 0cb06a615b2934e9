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

CONFIG = OptimConfig(learning_rate=0.01, muon_learning_rate=0.02, horizon_steps=100, warmup_steps=10)
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


def test_adam_moves_by_the_sign_at_first() -> None:
    moved, _ = update(PARAMETERS, weight_decay=0.0)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -0.01 * jnp.sign(g), rtol=1e-3), moved, PARAMETERS
    )


def test_muon_orthogonalises_each_matrix_and_leaves_the_rest_to_adam() -> None:
    moved, _ = update(PARAMETERS, optimizer="muon", weight_decay=0.0)
    for layer in np.asarray(moved["stack"]):
        singular = np.linalg.svd(layer / 0.02 / np.sqrt(24 / 8), compute_uv=False)
        assert 0.6 < singular.min() <= singular.max() < 1.3, singular
    for name in ("embedding", "gain"):
        np.testing.assert_allclose(moved[name], -0.01 * jnp.sign(PARAMETERS[name]), rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("field", [f.name for f in fields(OptimConfig) if f.name != "micro_batches"])
def test_every_field_changes_the_updates(optimizer: str, field: str) -> None:
    base = replace(CONFIG, optimizer=optimizer, schedule="wsd")
    others = {"optimizer": {"adamw": "muon", "muon": "adamw"}[optimizer], "schedule": "linear"}
    value = getattr(base, field)

    def updates(config: OptimConfig) -> np.ndarray:
        chain = make_optimizer(config, LABELS, DECAYED)

