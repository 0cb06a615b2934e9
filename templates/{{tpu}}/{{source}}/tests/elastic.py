"""A table of jobs that go on with other hosts, devices or slices than those that began them.

    uv run python -m PACKAGE.tests.elastic [WORDS]    # those rows, or all: some minutes

A row is right when every batch is the batch of a run that one device does alone, bit for bit, and
the losses are its losses: the same ones where nothing moved, else but for sums in another order.
"""

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .test_job import CLOSE, batch_of, forget_batches, losses, noting_batches, train

STEPS, ROWS = 4, 24  # of each part; of a batch, which all numbers of devices divide


class Layout(NamedTuple):
    """Where a part of a job runs."""

    hosts: int
    devices: int
    """Of a host."""
    fsdp: int = 1
    slices: int = 1

    def __str__(self) -> str:
        words = f"{self.hosts} x {self.devices}"
        words += f", fsdp {self.fsdp}" if self.fsdp > 1 else ""
        return words + (f", {self.slices} slices" if self.slices > 1 else "")

    @property
    def options(self) -> str:
        return f"--mesh.fsdp {self.fsdp} --mesh.slices {self.slices}"


MOVES = [
    (Layout(4, 1), Layout(4, 1)),
    (Layout(4, 2, fsdp=4), Layout(4, 2, fsdp=4)),
    (Layout(4, 1), Layout(2, 1)),
    (Layout(4, 1), Layout(8, 1)),
    (Layout(4, 2, fsdp=4), Layout(2, 4, fsdp=4)),
    (Layout(3, 1), Layout(2, 1), Layout(1, 1)),
    (Layout(1, 2), Layout(1, 4), Layout(1, 1)),
    (Layout(2, 2, fsdp=2), Layout(2, 4, fsdp=4), Layout(2, 1, fsdp=2)),
    (Layout(1, 1), Layout(3, 2, fsdp=2)),
    (Layout(4, 2, fsdp=4), Layout(4, 2, fsdp=4, slices=2)),
    (Layout(4, 1, slices=2), Layout(2, 2, slices=2), Layout(1, 1)),
]


type Found = tuple[list[list[np.ndarray]], dict[int, float]]
"""Batches and losses, by step."""


def trained(folder: Path, *parts: tuple[Layout, int]) -> Found:
    """A job whose parts run one after the other, each up to a step."""
    folder.mkdir()
    until = 0
    for part, until_now in parts:
        forget_batches(folder, until * ROWS)
        until = until_now
        options = f"--steps {until} --data.batch-size {ROWS} {part.options}"
        run = partial(noting_batches, str(folder))
        train(folder, "run", options, hosts=part.hosts, devices=part.devices, run=run)
    batches = [batch_of(folder, step * ROWS) for step in range(until)]
    return batches, losses(folder / "run")


def wrongs(folder: Path, move: tuple[Layout, ...], alone: Found) -> Iterator[str]:
    """Goes through a row; what was wrong, in words."""
    parts = [(layout, number * STEPS) for number, layout in enumerate(move, 1)]
    batches, found = trained(folder / "moved", *parts)
    expected = {step: loss for step, loss in alone[1].items() if step <= len(batches)}
    for step, (ours, theirs) in enumerate(zip(batches, alone[0], strict=False), 1):
        if not all(map(np.array_equal, ours, theirs)):
            yield f"another batch in step {step}"
    if list(found) != list(expected):
        yield f"records of steps {list(found)}"
    elif not np.allclose(list(found.values()), list(expected.values()), rtol=CLOSE, atol=0):
        yield f"losses {list(found.values())}, not {list(expected.values())}"
    if len({*move}) == 1 and trained(folder / "whole", parts[-1])[1] != found:
        yield "without the stop the losses are others"


def main(only: str = "") -> int:
    """Try every row whose name has `only` in it, and print the table; 1 if one was wrong."""
    wrong, table = 0, ["| hosts x devices | right | what was wrong |", "|---|---|---|"]
    named = {" -> ".join(map(str, move)): move for move in MOVES}
    if not any(only in name for name in named):
        print(f"no row has {only!r} in its name:", *named, sep="\n", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        alone = trained(Path(scratch) / "alone", (Layout(1, 1), STEPS * max(map(len, MOVES))))
        for number, name in enumerate(each for each in named if only in each):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            try:
                found = list(wrongs(folder, named[name], alone))
            except AssertionError as error:  # of a part that did not end well, with its logs
                found = [f"{error}".strip().replace("\n", " ")]
            wrong += bool(found)
            table.append(f"| {name} | {'no' if found else 'yes'} | {'; '.join(found)} |")
            print(table[-1], file=sys.stderr, flush=True)
    print("", *table, sep="\n")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
