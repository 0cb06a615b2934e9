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
    top_p: Annotated[float, Bounds(above=0, most=1)] = 0.95,
    seed: Annotated[int, Bounds(least=0, most=2**32 - 1)] = 0,
) -> int:
    """Write text from the newest checkpoint; with no prompt, from the start of a document.

    Args:
        run_dir: the folder of the run
        prompt: the text to go on from
        chars: the most characters to write; the end of a document ends it earlier
        temperature: divides the logits before a token is drawn; 0 = always the likeliest token
        top_p: draw among the likeliest tokens that together have this probability; 1 = all
        seed: the same seed writes the same text
    """
    from ..runtime.start import start
    from ..trained import open_run

    start()
    pieces = open_run(run_dir).stream(prompt, chars, temperature, top_p, seed)
    print(prompt, end="", flush=True)
    for text in pieces:
        print(text, end="", flush=True)
    print()
    return Exit.DONE
