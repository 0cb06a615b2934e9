"""Where the hours of a run went: goodput, and badput by kind, attempt by attempt.

Reads the lines of DIR/attempts.jsonl, which the first process of each attempt writes; the kinds are
those of Google's ml-goodput-measurement in this project's words. Measures nothing.
"""

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from ..errors import Exit
from ..records.progress import Terminal, label
from ..records.progress import show as words
from ..records.telemetry import Record, split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Kind -> colour (Okabe and Ito's, and greys) and what it is, from what helps to what does not.
KINDS = {
    "step": ("#009e73", "steps that count"),
    "startup": ("#56b4e9", "imports, joining the job, agreeing"),
    "restore": ("#0072b2", "reading the checkpoint, or the first values"),
    "compile": ("#e69f00", "the first step"),
    "data_wait": ("#f0e442", "waiting for batches"),
    "evaluate": ("#cc79a7", "held-out metrics and the last report"),
    "artifacts": ("#ddb3d0", "images and texts"),
    "checkpoint": ("#7f5f00", "saves, while steps wait"),
    "preemption": ("#8c96a3", "from the decision to stop until the end"),
    "redone": ("#d55e00", "steps that were lost, and done again"),
    "hang": ("#24292f", "waiting for what never came"),
    "restart": ("#d0d5db", "from the end of an attempt until the next process began"),
}
SHOWN = 50  # attempts, the last ones
OTHER = ("#ffffff", "")
ENDS = {
    Exit.DONE: "done",
    Exit.BUG: "bug",
    Exit.USER: "configuration",
    Exit.PREEMPTED: "preempted, saved",
    Exit.HUNG: "hung",
    Exit.PEER_LOST: "peer lost",
    Exit.INTERRUPTED: "interrupted, saved",
}


class Attempt(NamedTuple):
    """One start of the command, and what came of it."""

    began: float | None
    """UTC seconds; None in a ledger of 0.5 or before."""
    first_step: int
    step: int
    lost: int
    """Steps that a later attempt did again."""
    parts: dict[str, float]
    """Kind -> seconds; `restart` is what passed before the next attempt."""
    end: str
    """How it ended, in words."""

    @property
    def wall_s(self) -> float:
        return sum(self.parts.values())

    @property
    def goodput(self) -> float:
        """The share of its time that steps took which count."""
        return self.parts.get("step", 0.0) / self.wall_s if self.wall_s else 0.0

    @property
    def begin(self) -> str:
        if self.began is None:
            return "?"
        return datetime.fromtimestamp(self.began, UTC).strftime("%Y-%m-%d %H:%M:%S")


def attempts(rows: list[Record]) -> list[Attempt]:
    """Lines of attempts.jsonl -> attempts; lines of another make are left out."""
    rows = [row for row in rows if _is_line(row)]
    found: list[Attempt] = []
    resumed_at = math.inf
    for place, (row, parts) in enumerate(zip(rows[::-1], split(rows)[::-1], strict=True)):
        code = row.get("code")
        end = "killed" if place else "killed, or goes on"
        if code is not None:
            end = ENDS.get(code, "") + f" ({code})"
        lost = max(0, row["step"] - max(row["first_step"], resumed_at)) if found else 0
        found.append(
            Attempt(row.get("began"), row["first_step"], row["step"], int(lost), parts, end.strip())
        )
        resumed_at = min(resumed_at, row["first_step"])
    return found[::-1]


def totals(found: list[Attempt]) -> dict[str, float]:
    """Kind -> seconds over all attempts, in the order of KINDS."""
    names = [*KINDS, *sorted({n for each in found for n in each.parts} - KINDS.keys())]
    spent = {name: sum(each.parts.get(name, 0.0) for each in found) for name in names}
    return {name: seconds for name, seconds in spent.items() if seconds}


def show(found: list[Attempt]) -> None:
    """Print a line an attempt, one a kind, and the sum."""
    table = Table("", "began (UTC)", "steps", "lost", "time", "goodput", "longest else", "ended")
    for number, each in list(enumerate(found, start=1))[-SHOWN:]:
        rest = sorted((s, n) for n, s in each.parts.items() if n != "step")[:-3:-1]
        longest = ", ".join(f"{label(name)} {words('_s', seconds)}" for seconds, name in rest)
        steps = f"{each.first_step}-{each.step}"
        table.add_row(
            *(str(number), each.begin, steps, str(each.lost), words("_s", each.wall_s)),
            *(f"{each.goodput:.1%}", longest, each.end),
        )
    spent, console = totals(found), Terminal()
    whole_s = sum(spent.values())
    kinds = Table("where the time went", "time", "share", "")
    for kind, seconds in spent.items():
        meaning = KINDS.get(kind, OTHER)[1]
        kinds.add_row(label(kind), words("_s", seconds), f"{seconds / whole_s:.1%}", meaning)
    console.print(table, kinds)
    share = spent.get("step", 0.0) / whole_s if whole_s else 0.0
    lost = sum(each.lost for each in found)
    print(
        f"goodput {share:.1%} of {words('_s', whole_s)} in {len(found)} attempts, {lost} steps lost"
    )


def draw(found: list[Attempt]) -> "Figure":
    """Steps over time, which fall back where some were lost, and below them each attempt as a
    column as wide as it was long, coloured by the share of each kind: areas are hours."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    whole_s = sum(each.wall_s for each in found)
    unit, scale = next(
        (u, s)
        for u, s in (("days", 86400), ("hours", 3600), ("minutes", 60), ("s", 1))
        if whole_s >= 2 * s or s == 1
    )
    at = 0.0
    for each in found:
        gap = each.parts.get("restart", 0.0)
        width = each.wall_s - gap
        above.plot(
            [at / scale, (at + width) / scale], [each.first_step, each.step], color="#0072b2"
        )
        bottom = 0.0
        for kind in (k for k in totals(found) if k != "restart"):
            height = each.parts.get(kind, 0.0) / width if width else 0.0
            colour = KINDS.get(kind, OTHER)[0]
            below.bar(at / scale, height, width / scale, bottom, align="edge", color=colour)
            bottom += height
        below.bar((at + width) / scale, 1, gap / scale, align="edge", color=KINDS["restart"][0])
        at += each.wall_s
    spent = totals(found)
    for kind, seconds in spent.items():
        words = f"{kind.replace('_', ' ')} {seconds / whole_s:.1%}"
        below.bar(0, 0, 0, color=KINDS.get(kind, OTHER)[0], label=words)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    share = spent.get("step", 0.0) / whole_s if whole_s else 0.0
    above.set(ylabel="step", title=f"goodput {share:.1%}, {sum(a.lost for a in found)} steps lost")
    below.set(xlabel=f"{unit} since the first start", ylabel="share of the attempt", ylim=(0, 1))
    below.margins(x=0)
    return figure


def _is_line(row: dict[str, Any]) -> bool:
    parts, numbers = row.get("parts_s"), (row.get("first_step"), row.get("step"))
    return (
        isinstance(parts, dict)
        and all(isinstance(n, int) for n in numbers)
        and all(_is_time(seconds) for seconds in parts.values())
        and ("began" not in row or _is_time(row["began"]))
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
