"""`goodput`: where the hours of a run went, attempt by attempt. No JAX."""

from ..cluster import ledger
from ..config import PRESETS
from ..errors import Exit, UserError
from ..records import store
from ..records.mirror import Mirror


def goodput(*, run_dir: str = "") -> int:
    """Print and plot what the time of a run went into, over all its restarts.

    Args:
        run_dir: the folder of the run; none = that of the first preset
    """
    mirror = Mirror(run_dir or next(iter(PRESETS.values()))().run.run_dir, reader=True)
    mirror.fetch()
    found = ledger.attempts(store.read_lines(mirror.local / "attempts.jsonl"))
    if not found:
        raise UserError(
            got=f"--run-dir {mirror.folder}, which has no attempts.jsonl of a run",
            expected="the folder of a run that has begun",
            do="give the --run-dir of a run; its first line is written before the first step",
        )
    ledger.show(found)
    path = mirror.local / "plots" / "goodput.png"
    figure = ledger.draw(found)
    store.write(path, lambda file: figure.savefig(file, format="png", dpi=120), sync=False)
    mirror.send()
    print(f"plot: {path}")
    return Exit.DONE
