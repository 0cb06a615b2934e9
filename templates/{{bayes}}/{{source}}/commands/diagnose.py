"""`diagnose`: whether the draws of a run may be trusted."""

from ..errors import Exit


def diagnose(*, run_dir: str = "runs/demo") -> Exit:
    """Judge the draws of a run, finished or not; exit code 3 if they are refused.

    Args:
        run_dir: the folder of the run
    """
    from ..diagnosed import report_verdict

    return report_verdict(run_dir)
