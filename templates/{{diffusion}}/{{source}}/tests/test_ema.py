"""Averages equal their weighted sums, a skipped update moves none, others are made from a few."""

import weakref
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from .. import ema
from ..config import EmaConfig
from ..errors import UserError
from ..run_config import MeshConfig
from ..runtime.sharding import make_mesh
from ..training.layers import mirror_specs

CONFIG = EmaConfig(decays=(0.9, 0.999), power_stds=(0.05, 0.2))
NAMES = ["decay-0.9", "decay-0.999", "power-0.05", "power-0.2"]


def path_of(updates: int, seed: int = 0) -> list[dict[str, Any]]:
    """Parameters before the first update and after each: they move by random steps."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(size=(updates + 1, 6)), 0).astype(np.float32)
    return [{"layer": {"w": jnp.array(x[:4].reshape(2, 2)), "b": jnp.array(x[4:])}} for x in walk]


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])


def tracked(config: EmaConfig, path: list[Any]) -> list[dict[str, Any]]:
    """The averages before the first update and after each."""
    update = jax.jit(lambda averages, x, n: ema.update_ema(config, averages, x, n, jnp.bool(True)))
    found = [ema.init_ema(config, path[0])]
    for n, params in enumerate(path[1:], 1):
        found.append(update(found[-1], params, jnp.int32(n)))
    return found


def decay_weights(decay: float, updates: int) -> np.ndarray:
    """Of the parameters before the first update and after each: products of what is kept."""
    kept = [min(decay, (1 + n) / (10 + n)) for n in range(1, updates + 1)]
    new = [1.0, *(1 - k for k in kept)]
    return np.array([new[i] * np.prod(kept[i:]) for i in range(updates + 1)])


def power_weights(std: float, updates: int) -> np.ndarray:
    power = ema.exponent(std) + 1
    return np.diff(np.arange(updates + 1) ** power, prepend=0.0) / updates**power


@pytest.mark.parametrize("updates", [1, 2, 40])
def test_an_average_is_the_weighted_sum_of_all_parameters(updates: int) -> None:
    path = path_of(updates)
    found = tracked(CONFIG, path)[-1]
    assert list(found) == NAMES
    every = np.array([flat(x) for x in path])
    for name, average in found.items():
        kind, number = name.split("-")
        weights = {"decay": decay_weights, "power": power_weights}[kind](float(number), updates)
        assert weights.sum() == pytest.approx(1)
        # 40 roundings of float32 numbers of about 10.
        np.testing.assert_allclose(flat(average), weights @ every, atol=2e-5)


def test_a_warm_up_forgets_the_initial_parameters() -> None:
    assert decay_weights(0.9999, 1)[0] == pytest.approx(2 / 11)
    assert decay_weights(0.9999, 1000)[0] < 1e-15
    first, *_ = jax.tree.leaves(ema.shares(EmaConfig((0.9999,), ()), jnp.int32(10**6)))
    assert float(first) == pytest.approx(1e-4, rel=1e-6)


def test_a_late_share_of_a_power_average_keeps_its_digits() -> None:
    for n in (10**3, 10**6, 10**8):
        share = ema.shares(EmaConfig((), (0.05,)), jnp.int32(n))["power-0.05"]
        exact = 1 - (1 - np.longdouble(1) / n) ** np.longdouble(ema.exponent(0.05) + 1)
        assert float(share) == pytest.approx(float(exact), rel=1e-6)


def test_averages_start_as_float32_copies_that_can_be_donated() -> None:
    params = path_of(0)[0] | {"half": jnp.ones(3, jnp.bfloat16)}
    for init in (ema.init_ema, jax.jit(ema.init_ema, static_argnums=0)):
        first = {"params": params, "ema": init(CONFIG, params)}
        for average in first["ema"].values():
            assert {x.dtype for x in jax.tree.leaves(average)} == {jnp.dtype("float32")}
            np.testing.assert_array_equal(flat(average), flat(params))
        places = [x.addressable_data(0).unsafe_buffer_pointer() for x in jax.tree.leaves(first)]
        assert len({*places}) == len(places)


@pytest.mark.parametrize("count", [0, 1, 7])  # 0: the first step of all was skipped
def test_a_skipped_step_leaves_every_bit(count: int) -> None:
    before = jax.tree.map(lambda x: x.at[0].set(-0.0), ema.init_ema(CONFIG, path_of(0)[0]))
    bits = [np.asarray(x).tobytes() for x in jax.tree.leaves(before)]
    for params in (path_of(0, seed=1)[0], jax.tree.map(lambda x: x * jnp.nan, path_of(0)[0])):
        after = jax.jit(ema.update_ema, static_argnums=0)(
            CONFIG, before, params, jnp.int32(count), jnp.bool(False)
        )
        assert [np.asarray(x).tobytes() for x in jax.tree.leaves(after)] == bits


def test_an_update_needs_no_memory_but_the_averages_own() -> None:
    """With all optimizations, which the tests leave out."""
    params = {"w": jnp.ones((512, 512))}
    averages = ema.init_ema(CONFIG, params)
    step = jax.jit(ema.update_ema, static_argnums=0, donate_argnums=1)
    lowered = step.lower(CONFIG, averages, params, jnp.int32(1), jnp.bool(True))
    memory = lowered.compile({"xla_backend_optimization_level": 3}).memory_analysis()
    size = params["w"].nbytes
    assert memory.alias_size_in_bytes == len(NAMES) * size
    assert memory.temp_size_in_bytes < 0.01 * size


def test_only_floats_are_averaged() -> None:
    """A table of integers among the parameters would be spoiled: the annotation refuses it."""
    with pytest.raises(Exception, match="params"):
        ema.init_ema(CONFIG, {"w": jnp.ones(2), "schedule": jnp.arange(3)})


def test_averages_are_sharded_as_the_parameters() -> None:
    params = path_of(0)[0] | {"head": {"w": jnp.ones((8, 2))}}
    specs = jax.tree.map(lambda x: PartitionSpec(), params)
    specs["layer"]["w"], specs["head"]["w"] = PartitionSpec(None, "fsdp"), PartitionSpec("fsdp")
    state = {"params": params, "ema": ema.init_ema(CONFIG, params), "step": jnp.int32(0)}
    found = mirror_specs(jax.eval_shape(lambda: state), specs)
    assert found == {"params": specs, "ema": dict.fromkeys(NAMES, specs), "step": PartitionSpec()}


def test_a_width_gives_its_exponent() -> None:
    for std in (0.001, 0.05, 0.1, 0.2, ema.WIDEST):
        gamma = ema.exponent(std)
        assert ema.width(gamma) == pytest.approx(std)
        time = (np.arange(1_000_000) + 0.5) / 1_000_000
        weights = time**gamma / (time**gamma).sum()
        deviation = np.sqrt(weights @ time**2 - (weights @ time) ** 2)
        assert deviation == pytest.approx(std, rel=1e-5)
    assert ema.exponent(ema.WIDEST) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.29])
def test_a_width_that_no_average_has_is_refused(std: float) -> None:
    with pytest.raises(
        UserError, match=rf"width {std:g}\nexpected: more than 0 and at most 0\.2887"
    ):
        ema.init_ema(EmaConfig((), (std,)), {})


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=rf"--ema.decays {decay:g}"):
        ema.init_ema(EmaConfig((0.9, decay), ()), {})


def test_inner_products_are_integrals() -> None:
    time = (np.arange(200_000) + 0.5) / 1000  # steps up to 200
    cases = [(200.0, 3.0, 200.0, 3.0), (150.0, 16.0, 200.0, 3.0), (200.0, 0.5, 90.0, 6.0)]
    for a, p, b, q in cases:
        first, second = (
            np.where(time < s, (g + 1) * (time / s) ** g / s, 0) for s, g in ((a, p), (b, q))
        )
        assert ema.inner(a, p, b, q) == pytest.approx((first @ second) / 1000, rel=1e-4)
        assert ema.inner(b, q, a, p) == pytest.approx(ema.inner(a, p, b, q))


UPDATES, STDS = 2048, (0.05, 0.1)


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    """Parameters that approach a place and jump about it, as under SGD: (update, parameter)."""
    rng = np.random.default_rng(0)
    x, path = 2 * rng.normal(size=32), []
    for _ in range(UPDATES):
        x = 0.99 * x + 0.1 * rng.normal(size=32)
        path.append(x)
    return np.array(path)


def average_at(path: np.ndarray, std: float, step: int) -> np.ndarray:
    return power_weights(std, step)[1:] @ path[:step]


def reconstructed(path: np.ndarray, snapshots: int, std: float, step: int) -> np.ndarray:
    """From averages of two widths at so many equally spaced steps."""
    at = [UPDATES * (i + 1) // snapshots for i in range(snapshots)]
    pairs = [(s, w) for s in at for w in STDS]
    gammas = [ema.exponent(w) for _, w in pairs]
    weights = ema.post_hoc_weights([s for s, _ in pairs], gammas, step, ema.exponent(std))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(weights).sum() < 20
    return weights @ np.array([average_at(path, w, s) for s, w in pairs])


@pytest.mark.parametrize(
    ("std", "step", "snapshots", "within"),
    [
        (0.05, UPDATES, 4, 1e-6),  # one of those that were saved
        (0.075, UPDATES, 4, 6e-2),
        (0.075, UPDATES, 16, 2e-3),
        (0.03, UPDATES, 16, 3e-2),
        (0.15, UPDATES, 16, 5e-3),
        (0.2, UPDATES, 16, 2e-2),
        (0.075, UPDATES // 2, 16, 1e-2),  # earlier
    ],
)
def test_another_width_is_made_from_a_few_saved_averages(
    noisy: np.ndarray, std: float, step: int, snapshots: int, within: float
) -> None:
    exact = average_at(noisy, std, step)
    few = reconstructed(noisy, snapshots, std, step) - exact
    many = reconstructed(noisy, 4 * snapshots, std, step) - exact
    size = np.linalg.norm(exact)
    assert np.linalg.norm(few) < within * size
    assert np.linalg.norm(many) < max(1e-6 * size, 0.2 * np.linalg.norm(few))


def test_weights_stay_small_where_averages_are_nearly_the_same() -> None:
    gammas = [ema.exponent(w) for w in (0.05, 0.050001) for _ in range(50)]
    steps = [20.0 * (i + 1) for i in range(50)] * 2
    weights = ema.post_hoc_weights(steps, gammas, 1000, ema.exponent(0.03))
    assert np.abs(weights).sum() < 100
    twice = ema.post_hoc_weights([1000.0] * 2, [3.0] * 2, 1000, 3.0)
    np.testing.assert_allclose(twice, 0.5)
    huge = ema.post_hoc_weights([1e3, 1e9], [1e4, 1e4], 1e9, 1e4)
    np.testing.assert_allclose(huge, [0, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("std", "step", "steps"),
    [
        (0.01, 1000, (250, 500, 750, 1000)),  # narrower than those that are there
        (0.15, 1000, (500, 1000)),  # wider
        (0.05, 1001, (500, 1000)),  # later
        (0.05, 750, (500, 1000)),  # between: its weights end where those of none do
        (0.05, 100, (500, 1000)),  # before
        (0.05, 0, (500, 1000)),
        (0.05, 10, ()),
    ],
)
def test_what_the_saved_averages_cannot_give_is_refused(
    std: float, step: int, steps: tuple[int, ...]
) -> None:
    gammas = [ema.exponent(0.05)] * len(steps) + [ema.exponent(0.1)] * len(steps)
    saved = rf"0\.05, 0\.1 at {len(steps)} steps up to 1000" if steps else "any at 0 steps up to 0"
    said = rf"(?s)width {std:g} at step {step}\n.*width {saved}\n.*--keep-every-steps"
    with pytest.raises(UserError, match=said):
        ema.post_hoc_weights([*steps, *steps], gammas, step, ema.exponent(std))


def test_a_sum_of_trees_holds_few_of_them_and_stays_where_they_are() -> None:
    mesh = make_mesh(MeshConfig(fsdp=4))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    weights, alive, most = np.array([0.5, -1.5, 2.0, 0.25, -0.25]), [], [0]

    def saved() -> Iterator[dict[str, jax.Array]]:
        for i in range(len(weights)):
            leaf = jax.device_put(jnp.arange(8.0) + i, sharding)
            alive.append(weakref.ref(leaf))
            most[0] = max(most[0], sum(ref() is not None for ref in alive))
            yield {"w": leaf}
            del leaf

    total = ema.combine(saved(), weights)["w"]
    np.testing.assert_allclose(total, np.arange(8.0) + weights @ np.arange(5.0))
    assert total.sharding.is_equivalent_to(sharding, 1)
    assert most[0] <= 2
    with pytest.raises(ValueError, match="zip"):
        ema.combine(saved(), weights[:4])
