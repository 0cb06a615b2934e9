"""What `plan` shows: a column a topology and number of slices, and below what to change.

Plans nothing.
"""

import itertools
from collections.abc import Iterator

from rich.table import Table

from ..records.progress import Terminal, show
from .plan import COPY_BYTES_PER_S, Row

GIB = 2**30
LABEL, COLUMN = "| expected goodput |", 20  # widths
ESTIMATE = "Estimates are by the state alone; --compile asks the compiler what a device needs."
NOTE = f"""\
No step is faster than its FLOPs at peak, its state read and written once, or what its links
carry; real ones are slower. Saves are as far apart as costs the least (Daly), where one holds up
the steps by the copy to its host, {show("copy_bytes", COPY_BYTES_PER_S)}/s if not --blocking-s."""


def show_rows(rows: list[Row], refused: dict[str, str]) -> None:
    """Print the rows, as many beside each other as the terminal is wide, and what to change."""
    console = Terminal()
    beside = max(1, (console.width - len(LABEL)) // COLUMN)
    for part in itertools.batched(rows, beside):
        lines = [dict(_cells(row)) for row in part]
        table = Table("", *(_name(row.topology, row.slices) for row in part))
        for label in lines[0]:
            table.add_row(label, *(line[label] for line in lines))
        console.print(table)
    if any(row.source == "estimate" for row in rows):
        print(ESTIMATE)
    if rows:
        print(NOTE)
    for row in rows:
        if row.fits is False:
            needed = "" if row.needed_bytes is None else f" {row.needed_bytes / GIB:.2f} GiB"
            print(
                f"\n{_name(row.topology, row.slices)} does not fit: a device needs{needed} of "
                f"{row.limit_bytes / GIB:.2f} GiB\n{row.message}".rstrip()
            )
            print("\n".join(f"  {change}" for change in row.changes))
    for name, why in refused.items():
        print(f"\n{name} is refused\n  {why.replace('\n', '\n  ')}")


def _name(topology: str, slices: int) -> str:
    return topology if slices == 1 else f"{slices} x {topology}"


def _cells(row: Row) -> Iterator[tuple[str, str]]:
    """Label and text of each line of a column; the same labels for every row."""
    needed = "-" if row.needed_bytes is None else f"{row.needed_bytes / GIB:.2f}"
    at_least = "" if row.source == "compiled" else ">= "
    yield "chips, hosts", f"{row.chips:,}, {row.hosts:,}"
    yield "mesh", " ".join(f"{axis} {size}" for axis, size in row.mesh.items() if size > 1)
    yield "asked", row.source
    yield "GiB a device", f"{at_least}{needed} of {row.limit_bytes / GIB:.2f}"
    unknown = row.fits is None or row.needed_bytes is None
    headroom = "-" if unknown else f"{1 - (row.needed_bytes or 0) / row.limit_bytes:.0%}"
    yield "fits", {True: f"yes, {headroom} free", False: "no", None: "not ruled out"}[row.fits]
    yield "DCN from a host", at_least + show("sent_bytes", row.dcn_bytes_per_host)
    for name in ("FLOPs", "HBM", "ICI", "DCN"):
        known = name in row.bounds_s
        yield f"{name} of a step", _seconds(row.bounds_s[name]) if known else "-"
    most, least = ("", "") if row.bound_by == "measured" else ("<= ", ">= ")
    yield "steps a second", f"{most}{1 / row.step_s:,.3g}"
    yield "bound by", row.bound_by
    yield "checkpoint", show("size_bytes", row.checkpoint_bytes)
    yield "of it, one host", show("size_bytes", row.checkpoint_bytes_per_host)
    yield "a save holds up", show("blocking_s", row.blocking_s)
    yield (
        "save every",
        f"{row.save_every_steps:,} steps"
        if row.save_every_steps < row.steps
        else ("once, at its end"),
    )
    yield "that is", show("every_s", row.save_every_s)
    yield "expected goodput", f"{row.goodput:.1%}"
    yield "hours", "never ends" if row.hours is None else f"{least}{row.hours:,.1f}"
    yield "cost", "-" if row.cost is None else f"{least}{row.cost:,.2f}"


def _seconds(value: float) -> str:
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:,.1f} s"
