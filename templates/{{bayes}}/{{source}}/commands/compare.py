"""`compare`: which of several models of one table predicts best."""

from typing import Annotated

import tyro

from ..errors import Exit
from ..run_config import Bounds


def compare(
    run_dirs: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    folds: Annotated[int, Bounds(least=0)] = 0,
) -> Exit:
    """Rank fits by PSIS-LOO, with stacking weights; exit code 3 if that is not to be trusted.

    Args:
        run_dirs: the folders of two or more fits of one table
        folds: where a k-hat is too high, leave these rows out, in as many fits; 0 = refuse
    """
    from ..compared import compare_runs
    from ..runtime.start import start

    start()
    return compare_runs(run_dirs, folds)
