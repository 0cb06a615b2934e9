"""The held-out loss: of the average that draws, over all noise, told apart by it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ..evaluate import NOISES, make_evaluate, spread
from ..images.prepare import prepare
from ..images.shards import Split, open_split
from ..step import expected_kind, image_losses, init_state, make_learner
from . import tiny
from .tiny import CONFIG, changed


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Split:
    config = tiny.in_folder(tmp_path_factory.mktemp("digits"))
    prepare(config.data, show=False)
    return open_split(config.data.prepared_dir, "heldout")


def losses(heldout: Split, ema: str, scale: float, objective: str = "flow-v") -> dict[str, float]:
    """With the output of the network's average scaled, and that of its parameters not."""
    config = changed(CONFIG, sample={"ema": ema}, objective={"name": objective})
    learner = make_learner(config, expected_kind(config.data))
    state = init_state(learner, jax.random.key(0))
    out = jax.random.normal(jax.random.key(1), state["params"]["out"].shape)
    state["params"]["out"] = out
    state["ema"]["decay-0.9"]["out"] = scale * out
    return make_evaluate(learner, heldout, tiny.compiled()[0])(state, lambda: None)


def test_it_is_of_the_average_that_draws(heldout: Split) -> None:
    raw, same, other = (
        losses(heldout, *asked) for asked in (("raw", 2.0), ("decay-0.9", 1.0), ("decay-0.9", 2.0))
    )
    assert same == raw
    assert abs(other["heldout_loss"] / raw["heldout_loss"] - 1) > 0.1


def test_it_is_of_each_image_its_class_and_noise_of_its_own(heldout: Split) -> None:
    config = changed(CONFIG, sample={"ema": "raw"}, data={"dequantize": True})
    learner = make_learner(config, replace(expected_kind(config.data), levels=17))
    state = init_state(learner, jax.random.key(0))
    leaves, tree = jax.tree.flatten(state["params"])
    random = np.random.default_rng(0)  # at the start no class changes anything
    state["params"] = tree.unflatten([x + 0.1 * random.normal(size=x.shape) for x in leaves])
    found = make_evaluate(learner, heldout, tiny.compiled()[0])(state, lambda: None)
    rows = spread(heldout, 360)
    count = len(rows["label"])
    keys = [jax.random.fold_in(jax.random.key(1), index) for index in range(count)]
    eps = [jax.random.normal(jax.random.fold_in(key, 0), (8, 8, 1)) for key in keys]
    lit = [jax.random.uniform(jax.random.fold_in(key, 2**31 - 1), (8, 8, 1)) for key in keys]
    share = (np.arange(count) * 0.618033988749895 + 0.5) % 1
    drawn = {
        "x": 2 * (rows["image"] + np.stack(lit)) / 17 - 1,
        "eps": np.stack(eps),
        "t": 0.002 + 0.998 * share,
        "label": rows["label"],
    }
    drawn = {name: jnp.asarray(x, "i4" if name == "label" else "f4") for name, x in drawn.items()}
    expected = image_losses(learner, state["params"], drawn, train=False)
    assert found["heldout_loss"] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_it_covers_all_noise_evenly(heldout: Split) -> None:
    found = losses(heldout, "decay-0.9", 0.0, "flow-x")  # a network that says 0
    bins = [found[f"heldout_loss_noise_{i + 1}of{NOISES}"] for i in range(NOISES)]
    assert np.mean(bins) == pytest.approx(found["heldout_loss"], rel=0.02)
    # Its error in v is x / t: the mean of 1 / t^2 from a to b is 1 / (a b).
    x = 2 * spread(heldout, 360)["image"].astype(float) / 255 - 1
    expected = [(x**2).mean() * 16 / (i * (i + 1)) for i in range(1, NOISES)]
    np.testing.assert_allclose(bins[1:], expected, rtol=0.05)
