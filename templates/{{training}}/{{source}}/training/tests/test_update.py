"""Any split of a batch gives one gradient; a non-finite update changes only the counters."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

from ..optim import EPSILON, make_optimizer
from ..optim_config import OptimConfig
from ..update import (
    FASTEST,
    LARGEST,
    Sums,
    clip,
    init_update,
    mean_gradient,
    update,
)


def loss_fn(parameters: Array, rows: Array) -> tuple[Array, Sums]:
    """Squared error of the rows that count, as many in each part as their last column says."""
    counted = rows[:, 2]
    loss = (counted * (rows[:, :2] @ parameters - 1) ** 2).sum()
    return 2 * loss, {"loss": loss, "weight": counted.sum()}


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_accumulation_equals_one_large_batch(parts: int) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    rows[:, 2] = [1, 1, 1, 1, 0, 1, 0, 0]  # the last of four parts weighs nothing
    weights = jnp.array([0.5, -2.0])
    means, gradient = mean_gradient(loss_fn, weights, rows.reshape(parts, -1, 3))
    counted = rows[rows[:, 2] == 1, :2]
    errors = counted @ np.asarray(weights) - 1
    np.testing.assert_allclose(means["loss"], (errors**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 4 * (errors[:, None] * counted).mean(0), rtol=1e-5)
    assert set(means) == {"loss"}


def test_accumulation_compiles_the_model_once() -> None:
    def program(parts: int) -> str:
        rows = jnp.ones((parts, 8 // parts, 3))
        return jax.jit(mean_gradient, static_argnums=0).lower(loss_fn, jnp.ones(2), rows).as_text()

    assert program(4).count("dot_general") == program(1).count("dot_general") > 0
    assert ("while" in program(4), "while" in program(1)) == (True, False)


def test_nothing_that_counts_is_no_gradient() -> None:
    _, gradient = mean_gradient(loss_fn, jnp.ones(2), jnp.zeros((2, 3, 3)))
    assert not jax.tree.reduce(jnp.logical_or, jax.tree.map(jnp.any, gradient))


CONFIG = OptimConfig(horizon_steps=100, warmup_steps=2, learning_rate=0.1, muon_learning_rate=0.1)
LABELS = {"stack": "matrix", "table": "embedding", "gain": "vector"}
SHAPES = {"stack": (2, 4, 8), "table": (16, 4), "gain": (4,)}
PARAMETERS = {name: jax.random.normal(jax.random.key(0), shape) for name, shape in SHAPES.items()}
GRADIENT = jax.tree.map(lambda x: jnp.flip(x) / 7, PARAMETERS)
MEANS = {"loss": jnp.asarray(3.0)}


def stepped(config: OptimConfig, steps: int = 1, **changes: Any) -> tuple[Any, Any, Any]:
    """State after some ordinary updates, that with `changes`, and what one update makes of it."""
    optimizer = make_optimizer(config, LABELS, True)
    step = jax.jit(lambda state, *found: update(config, optimizer, state, *found))
    state = init_update(optimizer, PARAMETERS, jax.random.key(0))
    for _ in range(steps):
        state, _ = step(state, GRADIENT, MEANS)
    state |= changes.get("state", lambda state: {})(state)
    found = step(state, changes.get("gradient", GRADIENT), changes.get("means", MEANS))
    return state, *found


def assert_same_bits(left: Any, right: Any) -> None:
    def bits(x: jax.Array) -> np.ndarray:
        plain = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return np.asarray(plain).view(np.uint32)

    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), left, right)


def with_leaf(tree: Any, name: str, value: float) -> Any:
    """One number of one array replaced."""
    return tree | {name: tree[name].at[(0,) * tree[name].ndim].set(value)}


BAD: dict[str, dict[str, Any]] = {
    "gradient": {"gradient": with_leaf(GRADIENT, "stack", jnp.nan)},
    "gradient of a vector": {"gradient": with_leaf(GRADIENT, "gain", -jnp.inf)},
    "norm": {"gradient": with_leaf(GRADIENT, "table", 1e30)},
    "loss": {"means": {"loss": jnp.asarray(jnp.nan)}},
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_changes_no_bit_but_the_counters(optimizer: str, bad: str) -> None:
    before, after, metrics = stepped(replace(CONFIG, optimizer=optimizer), **BAD[bad])
    assert (after["step"], after["skipped"]) == (before["step"] + 1, 1)
    assert metrics["skipped"] == 1
    counters = {"step": before["step"], "skipped": before["skipped"]}
    assert_same_bits(after | counters, before)


# The first of a warmup takes a third of a rate.
FAST: dict[str, dict[str, Any]] = {
    "too large for a float": {"learning_rate": 1e39, "muon_learning_rate": 1e39},
    "of AdamW": {"learning_rate": 1e5, "weight_decay": 0.0},
    "of Muon": {"optimizer": "muon", "muon_learning_rate": 1e5, "weight_decay": 0.0},
    "decay makes larger": {"learning_rate": 60.0, "weight_decay": 0.2},
    "of Muon, too": {"optimizer": "muon", "muon_learning_rate": 60.0, "weight_decay": 0.2},
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("fast", FAST)
def test_a_rate_at_which_parameters_may_overflow_is_not_taken(fast: str) -> None:
    before, after, _ = stepped(replace(CONFIG, **FAST[fast]), steps=0)
    assert after["skipped"] == 1
    assert_same_bits(after["params"], before["params"])
    assert_same_bits(after["opt_state"], before["opt_state"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gradient_that_is_too_large_is_not_taken(optimizer: str) -> None:
    config = replace(CONFIG, optimizer=optimizer, clip_norm=0.0)
    gradient = jax.tree.map(jnp.zeros_like, GRADIENT)
    before, after, metrics = stepped(
        config, 0, gradient=with_leaf(gradient, "table", 1.01 * LARGEST)
    )
    assert jnp.isfinite(metrics["grad_norm"])
    assert after["skipped"] == 1
    assert_same_bits(after["opt_state"], before["opt_state"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("clip_norm", "size"), [(0.0, 1e10), (1.0, 1e18)])
def test_a_large_gradient_is_taken(optimizer: str, clip_norm: float, size: float) -> None:
    config = replace(CONFIG, optimizer=optimizer, clip_norm=clip_norm)
    for steps in range(3):
        _, after, _ = stepped(config, steps, gradient=with_leaf(GRADIENT, "table", size))
        assert after["skipped"] == 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_finite_update_is_the_unjudged_one_bit_for_bit(optimizer: str) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    chain = make_optimizer(config, LABELS, True)

    @jax.jit
    def unjudged(state: Any) -> Any:
        clipped = clip(GRADIENT, optax.tree.norm(GRADIENT), config.clip_norm)
        updates, opt_state = chain.update(clipped, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return state | {"params": params, "opt_state": opt_state, "step": state["step"] + 1}

    before, after, metrics = stepped(config)
    assert_same_bits(after, unjudged(before))
    assert metrics["skipped"] == after["skipped"] == 0


def test_the_rate_told_is_the_rate_applied() -> None:
    config = replace(CONFIG, optimizer="muon", learning_rate=0.2)
    bad = BAD["gradient"]
    for steps in range(3):
        _, after, metrics = stepped(config, steps, **bad)
        assert metrics["learning_rate"] == pytest.approx(0.2 * (steps + 1) / 3)  # warmup
        assert metrics["muon_learning_rate"] == pytest.approx(0.1 * (steps + 1) / 3)
        assert after["step"] == steps + 1


@pytest.mark.parametrize(("limit", "norm"), [(1.0, 1.0), (0.0, 40.0), (50.0, 40.0)])
def test_clipping_bounds_the_global_norm(limit: float, norm: float) -> None:
    gradient = jax.tree.map(lambda x: 40 * x / optax.tree.norm(PARAMETERS), PARAMETERS)
    _, state, metrics = stepped(replace(CONFIG, clip_norm=limit, beta1=0.75), 0, gradient=gradient)
    moment = optax.tree.norm(optax.tree.get(state["opt_state"], "mu"))
    np.testing.assert_allclose(moment, (1 - 0.75) * norm, rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], 40.0, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.0), (0.999, 0.0)])
def test_what_is_taken_keeps_a_state_finite(optimizer: str, betas: tuple[float, float]) -> None:
    """The largest gradients and rates, and after them the smallest, as often as it takes."""
    config = OptimConfig(optimizer=optimizer, beta1=betas[0], beta2=betas[1], clip_norm=0.0)
    config = replace(config, learning_rate=FASTEST, muon_learning_rate=FASTEST)
    config = replace(config, weight_decay=2 / FASTEST, schedule="constant", horizon_steps=10**6)
    chain = make_optimizer(replace(config, warmup_steps=0), LABELS, True)
    step = jax.jit(partial(update, replace(config, warmup_steps=0), chain))
    state = init_update(chain, PARAMETERS, jax.random.key(0))
    scale = 0.99 * LARGEST / optax.tree.norm(GRADIENT)
    for number in range(60):
        part = [1.0, -1.0, 1e-20, 1e-40, 0.0][number % 5 if number < 30 else 2 + number % 3]
        taken = jax.tree.map(lambda x, part=part: scale * part * x, GRADIENT)
        state, metrics = step(state, taken, MEANS)
        assert metrics["skipped"] == 0
        moments = optax.tree.get_all_with_path(state["opt_state"], "mu")
        assert all(largest(mu) <= LARGEST for _, mu in moments if jax.tree.leaves(mu))
        moved = FASTEST * LARGEST / EPSILON / (1 - config.beta1)
        assert largest(state["params"]) <= 10 + (number + 1) * moved
        assert jnp.isfinite(largest(state["opt_state"]))


def largest(tree: Any) -> jax.Array:
    """The largest magnitude of all floats in a tree."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.abs(x).max() for x in floats]).max()
