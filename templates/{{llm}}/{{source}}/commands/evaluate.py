"""`evaluate`: the exact held-out figure of a checkpoint."""

from ..errors import Exit


def evaluate(*, run_dir: str = "runs/demo") -> int:
    """Exact held-out bits per byte of the newest checkpoint, beside gzip and xz.

    Args:
        run_dir: the folder of the run
    """
    import jax

    from ..evaluate import baselines, bits_per_byte
    from ..records.report import format_summary
    from ..runtime.start import start
    from ..text.shards import read_manifest
    from ..trained import open_run

    start()
    run = open_run(run_dir)
    heldout = run.heldout()
    text = read_manifest(heldout.folder)
    compared = baselines(heldout, run.learner.config.data.seq_len)
    with jax.set_mesh(run.mesh):
        found = bits_per_byte(run.learner, run.params, heldout, run.mesh)
    origin = {"corpus_sha256": text.corpus_sha256, "corpus_python": text.python}
    print(format_summary({"step": run.step} | found | compared | origin))
    return Exit.DONE
