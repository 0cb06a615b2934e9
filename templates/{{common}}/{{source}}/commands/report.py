"""`report`: plots and page of any run folder, finished, stopped or still running. No JAX."""

from pathlib import Path

from ..errors import Exit, UserError
from ..records import store


def report(*, run_dir: Path) -> int:
    """Draw the plots of a run and write its report, finished or not; changes nothing else.

    Args:
        run_dir: the folder of the run
    """
    from ..records.report import write_report  # matplotlib takes a second to import

    if not any(store.exists(run_dir / name) for name in ("config.json", "metrics.jsonl")):
        raise UserError(
            got=f"--run-dir {run_dir}, which has no config.json and no metrics.jsonl",
            expected="the folder of a run",
            do="give the --run-dir of a run that has begun",
        )
    print(f"report: {write_report(run_dir)}")
    return Exit.DONE
