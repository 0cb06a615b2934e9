"""Whether the draws of a fit may be trusted, and if not, why and what to do. Draws no plot.

Rank-normalised split R-hat, bulk and tail ESS: Vehtari et al. (2021), Rank-normalization, folding,
and localization. E-BFMI: Betancourt (2016), Diagnosing suboptimal cotangent disintegrations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import arviz_stats
import numpy as np
import xarray

MOST_RHAT, LEAST_ESS, LEAST_BFMI = 1.01, 400.0, 0.3
SHOWN = 3  # parameters that a problem names
MORE_DRAWS = "draw more: the same command with more --steps goes on"
REMEDY = {
    "divergences": "sample the groups as standard normals and scale them after (non-centred, as "
    "LocScaleReparam does), or try --nuts.target-accept 0.95 in a new --run-dir",
    "tree depth": "try --nuts.metric dense or a larger --nuts.max-tree-depth in a new --run-dir",
    "E-BFMI": "the energy is explored too slowly: heavy tails or a funnel; reparameterise the "
    "model, or give its scales lighter-tailed priors",
    "R-hat": f"chains disagree: {MORE_DRAWS}, and if that does not help, look for several modes "
    "or parameters that the data do not tell apart",
    "ESS": MORE_DRAWS,
}


@dataclass(frozen=True)
class Verdict:
    """What is wrong with the draws, if anything, and the figures of each parameter."""

    problems: tuple[str, ...]
    figures: dict[str, float]
    rows: dict[str, dict[str, float]]
    """Parameter -> its figures, the worst ones first."""

    @property
    def is_good(self) -> bool:
        """Whether the posterior may be reported."""
        return not self.problems

    def words(self) -> str:
        """For the terminal."""
        if self.is_good:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
            return f"the draws may be used: {figures}"
        return "\n".join(["THE DRAWS ARE REFUSED, do not report them:", *self.problems])


def judge(tree: Any, judged: Sequence[str] = ()) -> Verdict:
    """The verdict on draws as `read_draws` gives them; `judged` names quantities, none = all."""
    posterior = tree["posterior"].to_dataset()
    if posterior.sizes.get("draw", 0) < 4:
        missing = (
            "no draws: the run has not left warm-up; the same command with more --steps goes on"
        )
        return Verdict((missing,), {}, {})
    rows = agreement(posterior[[*judged]] if judged else posterior)
    stats = tree["sample_stats"]
    energy = stats["energy"].values
    bfmi = (np.diff(energy, axis=1) ** 2).mean(axis=1) / energy.var(axis=1)
    figures = {
        "rhat_max": max(row["rhat"] for row in rows.values()),
        "ess_bulk_min": min(row["ess_bulk"] for row in rows.values()),
        "ess_tail_min": min(row["ess_tail"] for row in rows.values()),
        "divergences": int(stats["diverging"].sum()),
        "tree_depth_reached": int(stats["reached_max_treedepth"].sum()),
        "bfmi_min": float(bfmi.min()),
        "draws": energy.size,
    }
    return Verdict(tuple(_problems(figures, rows, bfmi)), figures, rows)


def agreement(draws: xarray.Dataset) -> dict[str, dict[str, float]]:
    """Parameter -> R-hat, bulk and tail ESS, mean and deviation; those that agree least first.

    What is constant in all chains has no such figures, and is left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # of what is constant
        found = {
            "rhat": arviz_stats.rhat(draws, method="rank"),
            "folded": arviz_stats.rhat(draws, method="folded"),
            "ess_bulk": arviz_stats.ess(draws, method="bulk"),
            "ess_tail": arviz_stats.ess(draws, method="tail"),
            "mean": draws.mean(("chain", "draw")),
            "sd": draws.std(("chain", "draw")),
        }
    rows = {}
    for name, array in draws.data_vars.items():
        constant = (array == array[0, 0]).all(("chain", "draw")).values
        for place in np.ndindex(constant.shape):
            if constant[place]:
                continue
            row = {key: float(np.asarray(each[name])[place]) for key, each in found.items()}
            # NaN where a chain does not move: no agreement at all.
            both = row.pop("folded"), row["rhat"]
            row["rhat"] = max(np.inf if np.isnan(value) else value for value in both)
            row |= {key: float(np.nan_to_num(row[key])) for key in ("ess_bulk", "ess_tail")}
            rows[label(array, place)] = row
    return dict(sorted(rows.items(), key=lambda row: -row[1]["rhat"]))


def label(array: xarray.DataArray, place: tuple[int, ...]) -> str:
    """The name of a number among draws of an array, such as theta[A]."""
    labels = [
        str(array[dim].values[i]) if dim in array.coords else str(i)
        for dim, i in zip(array.dims[2:], place, strict=True)
    ]
    return f"{array.name}[{', '.join(labels)}]" if labels else str(array.name)


def _problems(figures: dict[str, float], rows: Any, bfmi: np.ndarray) -> list[str]:
    found = {}
    if count := figures["divergences"]:
        found["divergences"] = f"{count} of {figures['draws']} draws diverge"
    if count := figures["tree_depth_reached"]:
        found["tree depth"] = f"{count} of {figures['draws']} draws reach the largest tree depth"
    if bad := [f"{i} ({value:.2f})" for i, value in enumerate(bfmi) if not value >= LEAST_BFMI]:
        found["E-BFMI"] = f"E-BFMI below {LEAST_BFMI} in chain {', '.join(bad)}"
    worst = _worst(rows, "rhat", 1)
    if not figures["rhat_max"] <= MOST_RHAT:
        found["R-hat"] = f"R-hat above {MOST_RHAT}; the worst: {worst}"
    for name in ("ess_bulk", "ess_tail"):
        if not figures[f"{name}_min"] >= LEAST_ESS:
            words = f"{name.removeprefix('ess_')} ESS below {LEAST_ESS:g}; the worst: "
            words += _worst(rows, name, -1)
            found["ESS"] = f"{found['ESS']}; {words}" if "ESS" in found else words
    return [f"- {words}\n  to do: {REMEDY[name]}" for name, words in found.items()]


def _worst(rows: dict[str, dict[str, float]], key: str, sign: int) -> str:
    names = sorted(rows, key=lambda name: -sign * rows[name][key])[:SHOWN]
    return ", ".join(f"{name} {rows[name][key]:.4g}" for name in names)
