"""Draws that are wrong in one way are refused for that, and draws that are right are not."""

import numpy as np
import pytest
import xarray

from ..diagnosis import judge

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
