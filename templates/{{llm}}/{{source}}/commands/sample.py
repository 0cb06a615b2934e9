"""`sample`: text from a checkpoint."""

from ..errors import Exit


def sample(
    *,
    run_dir: str = "runs/demo",
    prompt: str = "",
    chars: int = 300,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
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
