"""`export`: weights and a sampler for other tools."""

from ..config import AS_THE_RUN, Draw
from ..errors import Exit


def export(*, to: str, draw: Draw = AS_THE_RUN, run_dir: str = "runs/demo") -> int:
    """Write weights as safetensors, and a sampler as StableHLO that needs no code but JAX.

    Args:
        to: the folder to write
        run_dir: the folder of the run
    """
    from ..exported import export_run

    export_run(run_dir, to, draw)
    return Exit.DONE
