"""`report`: plots and page of any run folder, finished, stopped or still running. No JAX."""

from ..config import PRESETS
from ..errors import Exit, UserError
from ..records import store
from ..records.mirror import Mirror


def report(*, run_dir: str = "") -> int:
    """Draw the plots of a run and write its report, finished or not; changes nothing else.

    Args:
        run_dir: the folder of the run; none = that of the first preset
    """
    from ..records.report import write_report  # matplotlib takes a second to import

    mirror = Mirror(run_dir or next(iter(PRESETS.values()))().run.run_dir, reader=True)
    mirror.fetch()
    folder = mirror.folder
    if not any(store.exists(mirror.local / name) for name in ("config.json", "metrics.jsonl")):
        raise UserError(
            got=f"--run-dir {folder}, which has no config.json and no metrics.jsonl",
            expected="the folder of a run",
            do="give the --run-dir of a run that has begun",
        )
    page = write_report(mirror.local)
    mirror.send()
    print(f"report: {page}")
    return Exit.DONE
