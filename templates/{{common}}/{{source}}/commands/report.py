"""`report`: plots and page of any run folder, finished, stopped or still running. No JAX."""

from pathlib import Path

from ..config import PRESETS
from ..errors import Exit, UserError
from ..records import store


def report(*, run_dir: str = "") -> int:
    """Draw the plots of a run and write its report, finished or not; changes nothing else.

    Args:
        run_dir: the folder of the run; none = that of the first preset
    """
    from ..records.report import write_report  # matplotlib takes a second to import

    folder = Path(run_dir or next(iter(PRESETS.values()))().run.run_dir)
    if not any(store.exists(folder / name) for name in ("config.json", "metrics.jsonl")):
        raise UserError(
            got=f"--run-dir {folder}, which has no config.json and no metrics.jsonl",
            expected="the folder of a run",
            do="give the --run-dir of a run that has begun",
        )
    print(f"report: {write_report(folder)}")
    return Exit.DONE
