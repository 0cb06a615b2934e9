"""The held-out loss: of the average that draws, over all noise, told apart by it."""

import jax
import numpy as np
import pytest

from ..evaluate import NOISES, make_evaluate, spread
from ..images.prepare import prepare
from ..images.shards import Split, open_split
from ..step import expected_kind, init_state, make_learner
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


def test_it_covers_all_noise_evenly(heldout: Split) -> None:
    found = losses(heldout, "decay-0.9", 0.0, "flow-x")  # a network that says 0
    bins = [found[f"heldout_loss_noise_{i + 1}of{NOISES}"] for i in range(NOISES)]
    assert np.mean(bins) == pytest.approx(found["heldout_loss"], rel=0.02)
    # Its error in v is x / t: the mean of 1 / t^2 from a to b is 1 / (a b).
    x = 2 * spread(heldout, 360)["image"].astype(float) / 255 - 1
    expected = [(x**2).mean() * 16 / (i * (i + 1)) for i in range(1, NOISES)]
    np.testing.assert_allclose(bins[1:], expected, rtol=0.05)
