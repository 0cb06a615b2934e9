"""What `simulate` shows: a line for each thing that happens, and below them a live table of hosts.

Only lines where the output is no terminal. Knows nothing of processes.
"""

import time
from collections.abc import Iterable

from rich.live import Live
from rich.table import Table

from ..records.progress import Terminal

EVERY_S = 0.5

type Row = tuple[int, str, str, object, str]
"""Number and name of a host, what it does, its step, its last line."""


class Screen:
    """The terminal while a simulation goes on, as a `with`."""

    def __init__(self) -> None:
        self._console = Terminal()
        # Not in a thread of its own: processes are started meanwhile.
        self._live = Live(console=self._console, auto_refresh=False)
        self._next_s = 0.0

    def __enter__(self) -> "Screen":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, words: str) -> None:
        """Print a line that stays."""
        self._console.print(words, markup=False, highlight=False, soft_wrap=True)

    def show(self, rows: Iterable[Row], title: str) -> None:
        """Show the table anew, now and then."""
        if not self._console.is_terminal or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + EVERY_S
        table = Table("", "host", "does", "step", "last line", title=title, expand=True)
        table.columns[-1].no_wrap, table.columns[-1].ratio = True, 1
        for number, name, doing, step, line in rows:
            table.add_row(str(number), name, doing, str(step), line)
        self._live.update(table, refresh=True)
