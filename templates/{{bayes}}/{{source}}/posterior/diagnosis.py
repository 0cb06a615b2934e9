"""Whether the draws of a fit may be trusted, and if not, why and what to do. Draws no plot.

Rank-normalised split R-hat, bulk and tail ESS: Vehtari et al. (2021), Rank-normalization, folding,
and localization. E-BFMI: Betancourt (2016), Diagnosing suboptimal cotangent disintegrations. Draws
of a guide, which are independent, are judged by the k-hat of their importance weights: Yao et al.
(2018), Yes, but did it work?
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import arviz_stats
import numpy as np
import xarray
from arviz_stats.base import array_stats
from jaxtyping import Float

MOST_RHAT, LEAST_ESS, LEAST_BFMI = 1.01, 400.0, 0.3
LEAST_RECORDS = 8  # of the ELBO
MOST_KHAT, MOST_GAIN = 0.7, 1.0  # of a guide; the gain of its ELBO is in nats
EQUAL = 1e-3  # log weights that differ by rounding alone
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
    "k-hat": "try --svi.guide multivariate or flow in a new --run-dir, or draw with --method nuts",
    "ELBO": "the same command with more --steps goes on; a larger --svi.learning-rate is faster",
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
    is_guide = "log_weight" in tree["sample_stats"]
    if posterior.sizes.get("draw", 0) < 4 or (is_guide and "elbo_gain" not in tree.attrs):
        missing = (
            "no draws: NUTS has not left warm-up, or SVI not come to its end; the same command "
            "goes on, with more --steps if it has ended"
        )
        return Verdict((missing,), {}, {})
    posterior, stats = posterior[[*judged]] if judged else posterior, tree["sample_stats"]
    if is_guide:
        return judge_guide(posterior, stats["log_weight"].values, tree.attrs)
    rows = agreement(posterior)
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


def judge_guide(
    posterior: xarray.Dataset, log_weights: Float[np.ndarray, "chain draw"], notes: Any
) -> Verdict:
    """The verdict on independent draws of a guide, by log p(x, z) - log q(z) of each.

    `notes`: what `settling` found. A row's `shift` is how far the mean by importance is away.
    """
    smoothed, khat = -np.full(log_weights.size, np.log(log_weights.size)), np.inf
    if np.isfinite(log_weights).all():
        # ArviZ takes log likelihoods, whose reciprocals are the weights of leave-one-out. An exact
        # guide has equal weights, which have no tail.
        is_exact = log_weights.std() < EQUAL
        smoothed, khat = (smoothed, 0) if is_exact else array_stats.psislw(-log_weights.ravel())
    figures = {
        "khat": float(khat),
        "elbo": float(log_weights.mean()),
        "elbo_gain": notes["elbo_gain"],
        "draws": log_weights.size,
    }
    rows = {}
    for label, name, place in _places(posterior):
        draws = posterior[name].values[:, :, *place].ravel()
        row = {"mean": float(draws.mean()), "sd": float(draws.std())}
        shift = float(abs(np.exp(smoothed) @ draws - row["mean"]) / row["sd"])
        rows[label] = row | {"shift": shift}
    found = {}
    most = min(MOST_KHAT, 1 - 1 / np.log10(log_weights.size))
    if not khat <= most:
        found["k-hat"] = f"k-hat {khat:.2f} is above {most:.2g}: the guide misses the posterior; "
        found["k-hat"] += f"the worst, in deviations of their means: {_worst(rows, 'shift', 1)}"
    if notes["elbo_records"] < LEAST_RECORDS:
        found["ELBO"] = (
            f"{notes['elbo_records']:g} records of the ELBO do not tell if it has settled"
        )
    elif figures["elbo_gain"] > max(MOST_GAIN, 3 * notes["elbo_gain_error"]):
        found["ELBO"] = f"the ELBO still rises: by {figures['elbo_gain']:.3g} nats in a quarter"
    problems = tuple(f"- {words}\n  to do: {REMEDY[name]}" for name, words in found.items())
    return Verdict(problems, figures, dict(sorted(rows.items(), key=lambda row: -row[1]["shift"])))


def settling(losses: Float[np.ndarray, " record"]) -> dict[str, float]:
    """By how much the ELBO rises from the third quarter of a run to the last, with its error.

    `losses`: negative ELBOs, evenly spaced over the run.
    """
    quarter, found = len(losses) // 4, {"elbo_records": float(len(losses))}
    if len(losses) < LEAST_RECORDS:
        return found | {"elbo_gain": 0.0, "elbo_gain_error": 0.0}
    before, last = losses[-2 * quarter : -quarter], losses[-quarter:]
    error = np.sqrt((before.var(ddof=1) + last.var(ddof=1)) / quarter)
    gain = float(before.mean() - last.mean())
    return found | {"elbo_gain": gain, "elbo_gain_error": float(error)}


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
    for label, name, place in _places(draws):
        row = {key: float(np.asarray(each[name])[place]) for key, each in found.items()}
        # NaN where a chain does not move: no agreement at all.
        both = row.pop("folded"), row["rhat"]
        row["rhat"] = max(np.inf if np.isnan(value) else value for value in both)
        row |= {key: float(np.nan_to_num(row[key])) for key in ("ess_bulk", "ess_tail")}
        rows[label] = row
    return dict(sorted(rows.items(), key=lambda row: -row[1]["rhat"]))


def _places(draws: xarray.Dataset) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """Label, array and place in it of every parameter that is not constant."""
    for name, array in draws.data_vars.items():
        constant = (array == array[0, 0]).all(("chain", "draw")).values
        for place in np.ndindex(constant.shape):
            if not constant[place]:
                yield label(array, place), name, place


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
