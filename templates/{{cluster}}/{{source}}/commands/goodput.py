"""`goodput`: where the hours of a run went, attempt by attempt. No JAX."""

from rich.table import Table

from ..cluster import ledger
from ..config import PRESETS
from ..errors import Exit, UserError
from ..records import store
from ..records.mirror import Mirror
from ..records.progress import Terminal, label
from ..records.progress import show as words

SHOWN = 50  # attempts, the last ones


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
    show(found)
    path = mirror.local / "plots" / "goodput.png"
    figure = ledger.draw(found)
    store.write(path, lambda file: figure.savefig(file, format="png", dpi=120), sync=False)
    mirror.send()
    print(f"plot: {path}")
    return Exit.DONE


def show(found: list[ledger.Attempt]) -> None:
    """Print a line an attempt, then one a kind."""
    table = Table("", "began (UTC)", "steps", "lost", "time", "goodput", "longest else", "ended")
    for number, each in list(enumerate(found, start=1))[-SHOWN:]:
        rest = sorted((s, n) for n, s in each.parts.items() if n != "step")[:-3:-1]
        longest = ", ".join(f"{label(name)} {words('_s', seconds)}" for seconds, name in rest)
        steps = f"{each.first_step}-{each.step}"
        table.add_row(
            *(str(number), each.begin, steps, str(each.lost), words("_s", each.wall_s)),
            *(f"{each.goodput:.1%}", longest, each.end),
        )
    spent, console = ledger.totals(found), Terminal()
    whole_s = sum(spent.values())
    kinds = Table("where the time went", "time", "share", "")
    for kind, seconds in spent.items():
        meaning = ledger.KINDS.get(kind, ledger.OTHER)[1]
        kinds.add_row(label(kind), words("_s", seconds), f"{seconds / whole_s:.1%}", meaning)
    console.print(table, kinds)
    share = spent.get("step", 0.0) / whole_s if whole_s else 0.0
    lost = sum(each.lost for each in found)
    print(
        f"goodput {share:.1%} of {words('_s', whole_s)} in {len(found)} attempts, {lost} steps lost"
    )
