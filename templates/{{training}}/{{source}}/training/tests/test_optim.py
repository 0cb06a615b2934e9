"""Schedule and updates follow their closed forms, and every setting of the optimizer acts."""

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ...errors import UserError
from ...runtime.sharding import is_spec
from ..layers import mirror_specs
from ..optim import make_optimizer, make_schedule
from ..optim_config import OptimConfig

CONFIG = OptimConfig(
    learning_rate=0.01, muon_learning_rate=0.02, horizon_steps=100, warmup_steps=10
)
LABELS = {"stack": "matrix", "embedding": "embedding", "gain": "vector"}
DECAYED = {"stack": True, "embedding": True, "gain": False}
SHAPES = {"stack": (3, 8, 24), "embedding": (16, 8), "gain": (8,)}
PARAMETERS = {name: jax.random.normal(jax.random.key(0), shape) for name, shape in SHAPES.items()}


def update(gradient: Any, **changes: Any) -> tuple[Any, Any]:
    """First updates from this gradient, and the optimizer's state after them."""
    optimizer = make_optimizer(replace(CONFIG, warmup_steps=0, **changes), LABELS, DECAYED)
    return optimizer.update(gradient, optimizer.init(PARAMETERS), PARAMETERS)


def assert_close(left: Any, right: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), left, right)


@pytest.mark.parametrize(
    ("schedule", "at_55", "at_85"),
    [
        ("cosine", 0.55, 0.1 + 0.9 * (1 + np.cos(np.pi * 75 / 90)) / 2),
        ("linear", 0.55, 1 - 0.9 * 75 / 90),
        ("wsd", 1.0, 1 - 0.9 * 5 / 20),
    ],
)
def test_schedule(schedule: str, at_55: float, at_85: float) -> None:
    at = make_schedule(replace(CONFIG, schedule=schedule, cooldown_fraction=0.2))
    assert_close([at(step) for step in range(11)], [(step + 1) / 11 for step in range(11)])
    assert_close([at(step) for step in (55, 85, 100, 10_000)], [at_55, at_85, 0.1, 0.1])


@pytest.mark.parametrize("warmup", [-1, 100])
def test_warmup_that_does_not_fit(warmup: int) -> None:
    with pytest.raises(UserError, match=r"(?s)--optim.warmup-steps.*0 <= warmup < horizon.*lower"):
        make_schedule(replace(CONFIG, warmup_steps=warmup))


@pytest.mark.parametrize(("optimizer", "peak"), [("adamw", 0.01), ("muon", 0.02)])
def test_decay_moves_exactly_what_is_marked(optimizer: str, peak: float) -> None:
    zero = jax.tree.map(jnp.zeros_like, PARAMETERS)
    moved, _ = update(zero, optimizer=optimizer, weight_decay=0.5)
    rates = {"stack": peak * 0.5, "embedding": 0.01 * 0.5, "gain": 0.0}
    assert_close(moved, {name: -rates[name] * PARAMETERS[name] for name in PARAMETERS})


def test_muon_orthogonalises_each_matrix_and_leaves_the_rest_to_adam() -> None:
    moved, _ = update(PARAMETERS, optimizer="muon", weight_decay=0.0)
    for layer in np.asarray(moved["stack"]):
        singular = np.linalg.svd(layer / 0.02 / np.sqrt(24 / 8), compute_uv=False)
        assert 0.6 < singular.min() <= singular.max() < 1.3, singular
    for name in ("embedding", "gain"):  # Adam's first step is the sign of the gradient
        assert_close(moved[name], -0.01 * jnp.sign(PARAMETERS[name]))


CHANGES = dict(
    optimizer="adamw",
    learning_rate=0.02,
    muon_learning_rate=0.03,
    weight_decay=0.2,
    beta1=0.8,
    beta2=0.8,
    schedule="linear",
    horizon_steps=90,
    warmup_steps=20,
    cooldown_fraction=0.5,
    final_fraction=0.2,
)


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
    assert set(CHANGES) <= {field.name for field in fields(base)}
    before = trace(base)
    for name, value in CHANGES.items():
        assert not np.allclose(trace(replace(base, **{name: value})), before, rtol=1e-3), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_state_is_sharded_like_its_parameter(optimizer: str) -> None:
    labels = {"blocks": {"head": "matrix", "gain": "vector"}, "head": "embedding"}
    specs = {"blocks": {"head": P(None, "fsdp"), "gain": P(None)}, "head": P("tensor")}
    parameters = jax.tree.map(lambda label: jnp.ones((2, 4, 4)[label == "embedding" :]), labels)
    state = make_optimizer(replace(CONFIG, optimizer=optimizer), labels, True).init(parameters)
    found: dict[str, set[P]] = {}
    mirrored = mirror_specs(state, specs)
    for path, spec in jax.tree_util.tree_leaves_with_path(mirrored, is_leaf=is_spec):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        found.setdefault("/".join(k for k in keys if k not in ("muon", "adam")), set()).add(spec)
    ours = {"blocks/head": {P(None, "fsdp")}, "blocks/gain": {P(None)}, "head": {P("tensor")}}
    assert found == ours | {"": {P()}}  # the last are counters
