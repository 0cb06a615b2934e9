"""`sample`: text from a checkpoint."""

from typing import Annotated

from ..errors import Exit
from ..run_config import Bounds


def sample(
    *,
    run_dir: str = "runs/demo",
    prompt: str = "",
    chars: Annotated[int, Bounds(least=0)] = 300,
    temperature: Annotated[float, Bounds(least=0)] = 0.8,
    top_p: Annotated[float, Bounds(most=1)] = 0.95,
    seed: Annotated[int, Bounds(least=0, most=2**32 - 1)] = 0,
) -> int:
    """Write text from the newest checkpoint; with no prompt, from the start of a document."""
    from ..runtime.start import start
    from ..trained import open_run

    start()
    pieces = open_run(run_dir).stream(prompt, chars, temperature, top_p, seed)
    print(prompt, end="", flush=True)
    for text in pieces:
        print(text, end="", flush=True)
    print()
    return Exit.DONE
