"""`sample`: text from a checkpoint."""

from ..errors import Exit, UserError


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
    if not (chars >= 0 and temperature >= 0 and 0 < top_p <= 1):
        raise UserError(
            got=f"--chars {chars} --temperature {temperature} --top-p {top_p}",
            expected="chars >= 0, temperature >= 0, 0 < top-p <= 1",
            do="temperature 0 always takes the likeliest token; top-p 1 allows every token",
        )
    from ..generate import decode_stream, make_generate
    from ..runtime.start import start
    from ..trained import open_run

    start()
    run = open_run(run_dir)
    generate = make_generate(run.learner, run.mesh, temperature, top_p)
    ids = [run.learner.bos_id, *map(int, run.tokenizer.encode_batch([prompt])[0])]
    print(prompt, end="", flush=True)
    for text in decode_stream(generate(run.params, ids, seed), run.tokenizer, chars):
        print(text, end="", flush=True)
    print()
    return Exit.DONE
