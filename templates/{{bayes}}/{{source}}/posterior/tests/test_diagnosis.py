"""Draws that are wrong in one way are refused for that, and draws that are right are not."""

import numpy as np
import pytest
import xarray

from ..diagnosis import judge, settling

RANDOM = np.random.default_rng(0)
SHAPE = (4, 1000)


def tree(**changes: np.ndarray) -> xarray.DataTree:
    posterior = {
        "mu": (("chain", "draw"), RANDOM.normal(size=SHAPE)),
        "theta": (("chain", "draw", "school"), RANDOM.normal(size=(*SHAPE, 2))),
        "one": (("chain", "draw"), np.ones(SHAPE)),
    }
    stats = {
        "energy": (("chain", "draw"), RANDOM.normal(size=SHAPE)),
        "diverging": (("chain", "draw"), np.zeros(SHAPE, bool)),
        "reached_max_treedepth": (("chain", "draw"), np.zeros(SHAPE, bool)),
    }
    for name, values in changes.items():
        group = posterior if name in posterior else stats
        group[name] = (group[name][0], values)
    return xarray.DataTree.from_dict(
        {
            "posterior": xarray.Dataset(posterior, {"school": ["A", "B"]}),
            "sample_stats": xarray.Dataset(stats),
        }
    )


def once(row: int = 2) -> np.ndarray:
    flags = np.zeros(SHAPE, bool)
    flags[row, 7] = True
    return flags


def walk(strength: float, size: tuple[int, ...] = SHAPE) -> np.ndarray:
    """An autoregression of the first order."""
    noise, found = RANDOM.normal(size=size), np.zeros(size)
    for i in range(1, size[1]):
        found[:, i] = strength * found[:, i - 1] + noise[:, i]
    return found


def apart() -> np.ndarray:
    theta = RANDOM.normal(size=(*SHAPE, 2))
    theta[3, :, 1] += 0.5
    return theta


def wide() -> np.ndarray:
    """One chain whose scale is another: only folded draws show it."""
    return RANDOM.normal(size=SHAPE) * np.array([1, 1, 1, 2])[:, None]


def test_good_draws_may_be_used() -> None:
    verdict = judge(tree())
    assert verdict.is_good
    assert "may be used" in verdict.words()
    assert {*verdict.rows} == {"mu", "theta[A]", "theta[B]"}
    assert verdict.figures["ess_bulk_min"] > 2500
    assert 1.5 < verdict.figures["bfmi_min"] < 2.5  # 2 for independent energies


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"diverging": once()}, "1 of 4000 draws diverge"),
        ({"reached_max_treedepth": once()}, "largest tree depth"),
        ({"energy": walk(0.95)}, "E-BFMI below 0.3 in chain 0"),
        ({"theta": apart()}, "R-hat above 1.01; the worst: theta[B]"),
        ({"mu": wide()}, "R-hat above 1.01; the worst: mu"),
        ({"mu": walk(0.95)}, "bulk ESS below 400; the worst: mu"),
        ({"mu": np.repeat(RANDOM.normal(size=(4, 1)), 1000, axis=1)}, "the worst: mu inf"),
    ],
)
def test_each_fault_is_named(changes: dict[str, np.ndarray], words: str) -> None:
    verdict = judge(tree(**changes))
    assert not verdict.is_good
    assert words in verdict.words()
    assert "to do:" in verdict.words()


def test_what_is_not_identified_is_not_judged() -> None:
    bad = tree(theta=apart())
    assert judge(bad, ("mu",)).is_good
    assert not judge(bad).is_good


def test_a_run_in_warm_up_has_no_draws() -> None:
    empty = tree().map_over_datasets(lambda d: d.isel(draw=slice(0)) if "draw" in d.dims else d)
    verdict = judge(empty)
    assert not verdict.is_good
    assert "no draws" in verdict.words()


def guide(log_weights: np.ndarray, **notes: float) -> xarray.DataTree:
    """Draws of a guide on one chain."""
    found = tree()
    found = found.map_over_datasets(lambda d: d.isel(chain=[0]) if "chain" in d.dims else d)
    found["sample_stats/log_weight"] = xarray.DataArray(log_weights[None], dims=("chain", "draw"))
    found.attrs |= settling(np.zeros(8)) | notes
    return found


def test_a_guide_is_judged_by_its_weights() -> None:
    for weights, shape in ((0.3, 0.0), (1.5, 1.5)):
        # Of the generalised Pareto distribution, whose shape the k-hat is.
        uniform = RANDOM.uniform(size=SHAPE[1])
        values = -weights * np.log(uniform) if shape else weights * RANDOM.normal(size=SHAPE[1])
        verdict = judge(guide(values))
        assert verdict.is_good is (shape == 0)
        assert verdict.figures["khat"] == pytest.approx(shape, abs=0.6)
        assert verdict.figures["elbo"] == pytest.approx(values.mean())
    assert "k-hat" in verdict.words()
    assert "--method nuts" in verdict.words()
    assert judge(guide(np.full(SHAPE[1], -3.0))).is_good
    for wrong in (np.nan, np.inf):
        values = np.where(np.arange(SHAPE[1]) == 3, wrong, RANDOM.normal(size=SHAPE[1]))
        assert not judge(guide(values)).is_good


def test_weights_say_which_quantity_a_guide_misses() -> None:
    found = guide(np.zeros(SHAPE[1]))
    found["sample_stats/log_weight"] = 3 * found["posterior/theta"][:, :, 1]
    verdict = judge(found)
    assert next(iter(verdict.rows)) == "theta[B]"
    assert "the worst, in deviations of their means: theta[B]" in verdict.words()
    # By exp(3 x), the mean of a standard normal moves by as much as there are draws for.
    assert 1.5 < verdict.rows["theta[B]"]["shift"] < 3
    assert verdict.rows["mu"]["shift"] < 1.5


def test_an_elbo_that_still_rises_is_refused() -> None:
    steps, noise = np.arange(100), RANDOM.normal(size=100)
    for losses, rises in (
        (50 + noise, False),
        (50 + 100 * np.exp(-steps / 10) + noise, False),
        (50 + 100 * np.exp(-steps / 40) + noise, True),
        (50 - 0.01 * steps, False),  # less than a nat
        (50 - 0.1 * steps + 100 * noise, False),  # hidden by noise
    ):
        verdict = judge(guide(0.1 * RANDOM.normal(size=SHAPE[1]), **settling(losses)))
        assert verdict.is_good is not rises
        assert ("ELBO still rises" in verdict.words()) is rises
    few = judge(guide(0.1 * RANDOM.normal(size=SHAPE[1]), **settling(np.zeros(7))))
    assert "7 records of the ELBO" in few.words()
