"""`train`: from the settings to the loop."""

from . import Settings


def train(*, config: Settings) -> int:
    """Train, or go on with the run in --run-dir."""
    from ..runtime.loop import run
    from ..runtime.sharding import make_mesh
    from ..runtime.start import start
    from ..workload import make_workload

    start()
    mesh = make_mesh(config.mesh)
    return run(make_workload(config, mesh), config, mesh)
