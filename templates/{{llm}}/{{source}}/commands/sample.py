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
    from ..generate import sample

    sample(run_dir, prompt=prompt, chars=chars, temperature=temperature, top_p=top_p, seed=seed)
    return Exit.DONE
