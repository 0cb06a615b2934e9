"""`train`: from the settings to the loop."""

from ..config import validate
from . import Settings


def train(*, config: Settings) -> int:
    """Train, or go on with the run that stands in --run-dir."""
    from ..runtime.distributed import start_processes
    from ..runtime.host_memory import keep_freed_memory
    from ..runtime.loop import run
    from ..runtime.sharding import make_mesh
    from ..workload import make_workload

    config = validate(config)
    keep_freed_memory()
    start_processes()
    mesh = make_mesh(config.mesh)
    return run(make_workload(config, mesh), config, mesh)
