"""`fit`: from the settings to the loop, and from the draws to a verdict."""

from ..errors import Exit
from . import Settings


def fit(*, config: Settings) -> int:
    """Draw from the posterior, or go on with the run in --run-dir; exit code 3 if it is refused."""
    from ..diagnosed import report_verdict
    from ..runtime.loop import run
    from ..runtime.sharding import make_mesh
    from ..runtime.start import start
    from ..workload import make_workload

    start()
    mesh = make_mesh(config.mesh)
    code = run(make_workload(config, mesh), config, mesh)
    return code if code != Exit.DONE else report_verdict(config.run.run_dir)
