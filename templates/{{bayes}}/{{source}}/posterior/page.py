"""What the report of a fit shows: figures as images, tables as rows. Judges and writes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..contract import Artifact, Section
from .diagnosis import label
from .loo import bad_rows, leave_one_out, pit, pit_curve
from .simulated import check_statistics
from .table import Prepared

ROWS_SHOWN = 40  # of a table, and of the forest plot
TRACED = 4  # parameters
POINTS = 1000  # of a line or a cloud
REPLICATES = 50
BINS = 20  # of ranks
HUGE = 1e30  # beyond any axis
DPI = 110
INK, BLUE, RED, GREY = "#24292f", "#0072b2", "#d55e00", "#8c96a3"  # as in records/plots.py
COLOURS = [BLUE, "#e69f00", "#009e73", "#cc79a7", "#56b4e9", RED]  # chains, again from the first on
type Quantities = dict[str, Float[np.ndarray, "chain draw"]]


def sections(module: Any, prepared: Prepared, tree: Any) -> dict[str, Section]:
    """Question, data, room for a verdict, priors, posterior predictive check and LOO."""
    outcome = module.OUTCOME
    observed = prepared.arrays[outcome]
    replicated = tree["posterior_predictive"][outcome].values
    kind = module.COLUMNS[outcome]
    checks = check_statistics(kind, observed, replicated)
    prior, after = (_quantities(tree[name].to_dataset()) for name in ("prior", "posterior"))
    return {
        "Question": str(module.__doc__).strip(),
        "Data": {"rows": prepared.sizes["row"]} | _columns(module.COLUMNS, prepared),
        "Verdict": "",
        "Priors, and what the data made of them": {
            name: f"{_range(values)} before, {_range(after[name])} after"
            for name, values in [*prior.items()][:ROWS_SHOWN]
        },
        "Posterior predictive check": {
            name: "{data:.4g} in the data, {replicates:.4g} in replicates, p {p:.3f}".format(**row)
            for name, row in checks.items()
        },
        "Leave-one-out": _loo_rows(tree, prepared),
    }


def images(tree: Any, outcome: str, worst: Sequence[str]) -> dict[str, Artifact]:
    """Figures of a fit; `worst` names its quantities, those that agree least first."""
    found = _quantities(tree["posterior"].to_dataset())
    named = {name: found[name] for name in worst}
    stats = tree.get("sample_stats")
    diverging = None if stats is None else stats.get("diverging")
    traced = {name: named[name] for name in worst[:TRACED]}
    # The draws of a guide are independent, on one chain, whose ranks are uniform by themselves.
    has_chains = tree["posterior"].sizes["chain"] > 1
    return {
        "predictive": _predictive(tree, outcome),
        **({"traces_and_ranks": _traces(traced)} if has_chains else {}),
        **({"pair_of_the_worst": _pair(named, worst[:2], diverging)} if len(worst) > 1 else {}),
        "forest": _forest(
            {name: found[name] for name in list(found)[:ROWS_SHOWN] if name in named}
        ),
    }


def _predictive(tree: Any, outcome: str) -> np.ndarray:
    """ECDFs of replicates before and after the fit beside that of the data, and LOO-PIT."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    observed = tree["observed_data"][outcome].values
    for axes, group in ((first, "prior_predictive"), (second, "posterior_predictive")):
        values = tree[group][outcome].values
        flat = values.reshape(-1, values.shape[-1])[:: -(-values[..., 0].size // REPLICATES)]
        # A vague prior on a logarithm draws what is no number.
        flat = np.nan_to_num(flat.astype(float), nan=HUGE, posinf=HUGE, neginf=-HUGE)
        for replicate in flat:
            axes.ecdf(_few(replicate), color=GREY, alpha=0.35, linewidth=0.7)
        axes.ecdf(_few(observed), color=BLUE, linewidth=2, label="data")
        # A wide prior has draws that would make the data a line.
        seen = np.concatenate([flat[np.abs(flat) < HUGE], observed])
        low, high = np.quantile(seen, [0.02, 0.98])
        axes.set_xlim(min(low, observed.min()), max(high, observed.max()))
        axes.set_title(f"{group.replace('_', ' ')}: {outcome}, ECDF")
        axes.legend(frameon=False)
    at, curve, lower, upper = pit_curve(pit(tree))
    third.fill_between(at, lower, upper, color=GREY, alpha=0.3)
    third.step(at, curve, where="post", color=BLUE)
    third.set_title("LOO-PIT less uniform, 95 % band")
    return to_image(figure)


def _traces(chosen: Quantities) -> np.ndarray:
    """A line for each chain, and its ranks among all draws, which are flat where chains agree."""
    figure = Figure(figsize=(10.5, 1.9 * len(chosen)), layout="constrained")
    for (left, right), (name, draws) in zip(
        figure.subplots(len(chosen), 2, squeeze=False), chosen.items(), strict=True
    ):
        ranks = draws.ravel().argsort().argsort().reshape(draws.shape)
        every = -(-draws.shape[1] // POINTS)
        for chain, values in enumerate(draws):
            colour = COLOURS[chain % len(COLOURS)]
            left.plot(values[::every], color=colour, alpha=0.6, linewidth=0.6)
            bins = np.linspace(0, draws.size, BINS + 1)
            right.hist(ranks[chain], bins, histtype="step", color=colour)
        right.axhline(draws.shape[1] / BINS, color=INK, linewidth=0.8, linestyle=":")
        left.set_title(f"{name}: draws")
        right.set_title("ranks by chain")
    return to_image(figure)


def _pair(chosen: Quantities, pair: Sequence[str], diverging: Any) -> np.ndarray:
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    x, y = (chosen[name].ravel() for name in pair)
    axes.plot(_few(x), _few(y), ".", color=BLUE, alpha=0.35, markersize=3)
    if diverging is not None and (bad := diverging.values.ravel()).any():
        axes.plot(x[bad], y[bad], "x", color=RED, label=f"{bad.sum()} divergences")
        axes.legend(frameon=False)
    axes.set_xlabel(pair[0])
    axes.set_ylabel(pair[1])
    return to_image(figure)


def _forest(chosen: Quantities) -> np.ndarray:
    figure = Figure(figsize=(7.2, 1 + 0.24 * len(chosen)), layout="constrained")
    axes: Axes = figure.subplots()
    for place, draws in enumerate(chosen.values()):
        ends = np.quantile(draws, [0.05, 0.25, 0.5, 0.75, 0.95])
        axes.plot(ends[[0, 4]], [place] * 2, color=BLUE, linewidth=1)
        axes.plot(ends[[1, 3]], [place] * 2, color=BLUE, linewidth=3.5)
        axes.plot(ends[2], place, "o", color=INK, markersize=4)
    axes.set_yticks(range(len(chosen)), [*chosen])
    axes.invert_yaxis()
    axes.set_title("median, 50 % and 90 % intervals")
    return to_image(figure)


def _loo_rows(tree: Any, prepared: Prepared) -> dict[str, Any]:
    score = leave_one_out(tree)
    bad = bad_rows(score)
    _, curve, lower, upper = pit_curve(pit(tree))
    inside = bool(((lower <= curve) & (curve <= upper)).all())
    named = ", ".join(str(prepared.coords["row"][row]) for row in bad[:9])
    return {
        "elpd": f"{score.elpd:.2f}, standard error {score.se:.2f}",
        "effective parameters": f"{score.p:.1f}, from {score.n_samples} draws",
        f"rows with a k-hat above {score.good_k:.2f}": f"{bad.size}"
        + f": {named}" * bool(bad.size),
        "LOO-PIT": "uniform as far as can be told" if inside else "not uniform: see the figure",
    }


def _columns(kinds: Mapping[str, str], prepared: Prepared) -> dict[str, str]:
    """Column of the model -> its kind, its range and its first cells."""
    found = {}
    for name, array in prepared.arrays.items():
        words = kinds[name]
        if kinds[name] == "group":
            groups = prepared.coords[name]
            words += f", {len(groups)} of them; first rows: "
            words += ", ".join(groups[code] for code in array[:5])
        elif array.size:
            words += f", {array.min():.4g} to {array.max():.4g}, mean {array.mean():.4g}; "
            words += f"first rows: {', '.join(f'{value:.4g}' for value in array[:5].ravel()[:5])}"
        found[name] = words
    return found


def _quantities(group: xarray.Dataset) -> Quantities:
    return {
        label(array, place): array.values[:, :, *place]
        for array in group.data_vars.values()
        for place in np.ndindex(array.shape[2:])
    }


def _few(values: np.ndarray) -> np.ndarray:
    return values[:: -(-values.size // POINTS)]


def _range(draws: np.ndarray) -> str:
    low, high = np.quantile(draws, [0.05, 0.95])
    return f"{low:.3g} to {high:.3g}"


def to_image(figure: Figure) -> np.ndarray:
    """Its pixels."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
