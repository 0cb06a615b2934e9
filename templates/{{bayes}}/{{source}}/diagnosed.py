"""The verdict on a run folder, for the commands that end with it. Changes nothing."""

import jax

from .errors import Exit, UserError
from .posterior.diagnosis import judge
from .posterior.draws import MARK, read_draws
from .records import store
from .records.mirror import Mirror
from .runtime.agree import from_first
from .runtime.distributed import unique


def report_verdict(run_dir: str) -> Exit:
    """Print what the draws of a run are worth; the same code in every process."""
    run = Mirror(run_dir, reader=True)

    def verdict() -> list:
        run.fetch("outputs/")
        folder = run.local / "outputs"
        if not store.exists(folder / MARK):
            return [None, ""]
        tree = read_draws(folder)
        found = judge(tree, tree.attrs.get("judged", ()))
        return [found.is_good, found.words()]

    is_good, words = from_first(unique("verdict"), verdict)
    if is_good is None:
        raise UserError(
            got=f"--run-dir {run_dir}, which has no draws",
            expected="the folder of a fit that has begun",
            do="give the --run-dir of a fit",
        )
    if jax.process_index() == 0:
        print(words)
    return Exit.DONE if is_good else Exit.REFUSED
