"""Fits ranked by the density that they give to rows they have not seen. Writes folds alone."""

from typing import Any

import jax
import numpy as np

from .errors import Exit, UserError
from .fitted import check_same_rows, open_fit
from .posterior.loo import bad_rows, leave_one_out, ranked, with_exact
from .refitted import refit

COLUMNS = {"elpd": ".2f", "se": ".2f", "elpd_diff": ".2f", "dse": ".2f", "weight": ".3f"}
COLUMNS |= {"p": ".1f", "bad k-hat": "g"}


def compare_runs(run_dirs: tuple[str, ...], folds: int) -> Exit:
    """Print the ranking; not DONE where draws, k-hats or refits are not to be trusted."""
    if len({*run_dirs}) < max(2, len(run_dirs)):
        raise UserError(
            got=f"{len({*run_dirs})} different runs",
            expected="two or more",
            do="give the folders of finished fits: compare RUN_DIR RUN_DIR",
        )
    fits = {name: open_fit(name) for name in run_dirs}
    check_same_rows([*fits.values()])
    if words := [fit.refused() for fit in fits.values() if fit.refused()]:
        print("\n".join(words))
        return Exit.REFUSED
    scores = {name: leave_one_out(fit.tree) for name, fit in fits.items()}
    # In every model, so that like is compared with like.
    bad = sorted({int(row) for score in scores.values() for row in bad_rows(score)})
    problems: list[str] = []
    if bad and folds:
        order = np.random.default_rng(0).permutation(bad)
        parts = np.array_split(order, min(folds, len(bad)))
        for name, fit in fits.items():
            exact, wrong = refit(fit, parts)
            scores[name], problems = with_exact(scores[name], exact), problems + wrong
        bad = []
    elif bad:
        named = ", ".join(str(fits[run_dirs[0]].prepared.coords["row"][row]) for row in bad[:9])
        problems.append(
            f"THE RANKING IS REFUSED: the k-hat of {len(bad)} rows is too high: {named}\n"
            "  to do: add --folds 10, which leaves these rows out in ten fits of each model"
        )
    if jax.process_index() == 0:
        print("\n".join([_table(ranked(scores)), *problems]))
    return Exit.REFUSED if problems else Exit.DONE


def _table(rows: dict[str, dict[str, Any]]) -> str:
    """Of aligned columns."""
    cells = [["run", *COLUMNS]]
    cells += [
        [name, *(format(row[key], f) for key, f in COLUMNS.items())] for name, row in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    )
