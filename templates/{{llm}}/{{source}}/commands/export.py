"""`export`: weights for other tools."""

from ..errors import Exit


def export(*, to: str, run_dir: str = "runs/demo") -> int:
    """Write the newest checkpoint for other tools: a Qwen3 or Llama folder of the Hub.

    Args:
        to: the folder to write
        run_dir: the folder of the run
    """
    from ..hub import export

    export(run_dir, to)
    return Exit.DONE
