"""A table of faults: what goes wrong, at which moment, in one process or in one of two.

    uv run python -m PACKAGE.runtime.tests.faults [WORDS]    # those cells, or all: some minutes

Each cell goes on with a run that has saved three times. It is survived when every process ends with
the right code in time, no committed checkpoint is lost or changed, and the same command afterwards
ends with the outputs and records of a run without a fault.
"""

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ... import cli
from ...records import report, store
from ...run_config import RunConfig
from .. import checkpoint, loop
from ..sharding import make_mesh
from ..sink import read_outputs
from ..start import start_processes
from .children import Child, start_two, steps_of
from .workloads import SamplerConfig, sampler

SAVED, STEPS = 6, 16  # steps done before the fault, and in all; a save at every second one
EVALUATED = 9  # and at its multiples: a step without a save
HANG_S = 6.0
WITHIN_S = 90.0  # a cell's processes end, on a busy machine
FULL_BYTES = 4_000  # the arrays of a checkpoint need more, its lists of names less
FAILURES = 2  # of each function of a store that is away for a moment
MOMENTS = ("start", "compile", "step", "evaluation", "save", "report")
KILLED = -signal.SIGKILL


class Fault(NamedTuple):
    """What happens in `victim` at a moment, and the codes with which its process may end."""

    name: str
    act: Callable[[Path], None]
    codes: tuple[int, ...]
    peer: tuple[int, ...] = ()  # of the other process; () = the same
    victim: int = 0
    moments: tuple[str, ...] = MOMENTS
    processes: tuple[int, ...] = (1, 2)


def kill(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)  # Python handles it between two instructions


def fill_disk(_: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))


def fail(names: tuple[str, ...], run_dir: Path) -> None:
    """The next calls of these functions of the store raise what a broken disk does."""
    left = dict.fromkeys(names, FAILURES)

    def broken(name: str, real: Callable[..., Any], path: Path, *args: Any, **options: Any) -> Any:
        if left[name] and Path(path).is_relative_to(run_dir):
            left[name] -= 1
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *args, **options)

    for name in names:
        setattr(store, name, partial(broken, name, getattr(store, name)))


def turn_back_clock(_: Path) -> None:
    real = time.time
    time.time = lambda: real() - 1e8


def stall(_: Path) -> None:
    time.sleep(600)


def start_again(run_dir: Path) -> None:
    """Wait until the test has seen a second start refused."""
    (run_dir.parent / "reached").touch()
    while not (run_dir.parent / "refused").exists():
        time.sleep(0.05)


def damage(how: Callable[[Path], object], run_dir: Path) -> None:
    newest = run_dir / "checkpoints" / f"{SAVED:08d}" / "state"
    how(max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DONE, USER, STOPPED, HUNG, LOST = 0, 2, 42, 43, 44  # of errors.Exit
LATER = MOMENTS[1:]  # a restore has no limit
FAULTS = [
    Fault("kill", kill, (KILLED,), processes=(1,)),
    Fault("lost coordinator", kill, (KILLED,), (LOST,), processes=(2,)),
    Fault("lost peer", kill, (KILLED,), (LOST,), victim=1, processes=(2,)),
    Fault("SIGTERM", terminate, (STOPPED, DONE)),
    Fault("disk full", fill_disk, (USER, DONE)),
    Fault("disk full for one", fill_disk, (USER, DONE), victim=1, processes=(2,)),
    Fault("read error", partial(fail, ("read", "sha256")), (DONE, USER)),
    Fault("store down", partial(fail, ("read", "write", "append", "sha256")), (DONE, USER)),
    Fault("flipped byte", partial(damage, flip_byte), (DONE,), moments=("start",)),
    Fault("missing file", partial(damage, Path.unlink), (DONE,), moments=("start",)),
    Fault("stalled", stall, (HUNG,), moments=LATER, processes=(1,)),
    Fault("stalled host", stall, (HUNG,), victim=1, moments=LATER, processes=(2,)),
    Fault("second start", start_again, (DONE,)),
    Fault("folder not shared", lambda _: None, (USER,), moments=("start",), processes=(2,)),
    Fault("clock set back", turn_back_clock, (DONE,)),
]


class Cell(NamedTuple):
    """One fault at one moment."""

    fault: Fault
    moment: str
    processes: int

    def __str__(self) -> str:
        return f"{self.fault.name}, {self.moment}, {self.processes}"


def cells() -> list[Cell]:
    """Every cell of the table."""
    return [
        Cell(fault, moment, processes)
        for fault in FAULTS
        for processes in fault.processes
        for moment in fault.moments
    ]


def train(run_dir: Path, steps: int, moment: str = "", fault: str = "") -> None:
    """The sampler through the console script; at its moment the fault happens, once."""
    options: dict[str, Any] = {"save_every_steps": 2, "log_every_steps": 1, "trackers": ()}
    options |= {"eval_every_steps": EVALUATED, "keep_checkpoints": 0}
    options |= {"hang_timeout_s": HANG_S, "save_timeout_s": HANG_S}
    config = SamplerConfig(run=RunConfig(run_dir=str(run_dir), steps=steps, **options))
    waiting = [each for each in FAULTS if each.name == fault]

    def reach(now: str) -> None:
        if now == moment and waiting:
            waiting.pop().act(run_dir)

    def reaching(now: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            reach(now)
            return real(*args, **named)

        return call

    def write_json(path: Path, *args: Any, **named: Any) -> None:
        if path.parent.name == f"{SAVED + 4:08d}":  # manifest.json or files-N.json of that save
            reach("save")
        real_write_json(path, *args, **named)

    def batch(cursor: int) -> dict[str, Any]:
        if cursor == SAVED + 2:
            reach("step")
        return {}

    def run() -> int:
        start_processes()
        workload = sampler(config)
        workload = dataclasses.replace(
            workload,
            step=reaching("compile", workload.step),
            batch=batch,
            evaluate=lambda state, beat: reach("evaluation") or {"heldout": 1.0},
            finish=lambda state, beat: reach("report") or ({}, {}),
        )
        return loop.run(workload, config, make_mesh(config.mesh))

    real_write_json, store.write_json = store.write_json, write_json
    checkpoint.Checkpoints.newest = reaching("start", checkpoint.Checkpoints.newest)  # type: ignore
    report.write_report = lambda run_dir, **_: run_dir / "report.html"  # drawing takes seconds
    cli.find_commands()["train"] = run
    cli.main(["train"])


def start(cell: Cell, run_dir: Path) -> list[Child]:
    """The processes of a cell, of which one meets the fault."""
    folder, meets = run_dir.parent, (cell.moment, cell.fault.name)
    if cell.processes == 1:
        return [Child(train, run_dir, STEPS, *meets, log=folder / "log0")]
    args: list[tuple[Any, ...]] = [(run_dir, STEPS), (run_dir, STEPS)]
    args[cell.fault.victim] += meets
    if cell.fault.name == "folder not shared":
        args[1] = (folder / "elsewhere" / "run", STEPS)
    return start_two(train, *args, folder=folder)


def committed(run_dir: Path) -> dict[str, dict[str, str]]:
    """Checkpoint -> the hashes of its files as they are, of each one that is committed."""
    folder = run_dir / "checkpoints"
    return {
        path.name: {str(f): store.sha256(path / f) for f in store.files(path)}
        for path in folder.iterdir()
        if path.name.isdigit() and (path / "files-0.json").exists()
    }


def wrongs(cell: Cell, base: Path, calm: np.ndarray, folder: Path) -> Iterator[str]:
    """Goes through a cell; what was wrong, in words."""
    run_dir = folder / "run"
    shutil.copytree(base, run_dir)
    before = committed(run_dir)
    children = start(cell, run_dir)
    if cell.fault.act is start_again:
        children[0].wait_for((folder / "reached").exists, WITHIN_S)
        second = Child(train, run_dir, STEPS, log=folder / "second")
        if (code := second.code(WITHIN_S)) != USER:
            yield f"the second start ended with {code}"
        (folder / "refused").touch()
    end_s = time.monotonic() + WITHIN_S
    codes = [child.code(max(0.1, end_s - time.monotonic())) for child in children]
    for index, code in enumerate(codes):
        is_victim = index == (cell.fault.victim if cell.processes == 2 else 0)
        allowed = cell.fault.codes if is_victim else cell.fault.peer or cell.fault.codes
        if code not in allowed:
            yield f"process {index} ended with {code}, not {' or '.join(map(str, allowed))}"
    after = committed(run_dir)
    for name, files in before.items():
        damaged = cell.fault.moments == ("start",) and name == f"{SAVED:08d}"
        if after.get(name) != files and not damaged:
            yield f"checkpoint {name} is gone or changed"
    again = Child(train, run_dir, STEPS, log=folder / "again")
    if (code := again.code(WITHIN_S)) != DONE:
        yield f"the same command afterwards ended with {code}"
        return
    draws = read_outputs(run_dir / "outputs")["draws"]
    if not np.array_equal(draws, calm):
        yield f"outputs of {len(draws)} steps differ from those of a calm run"
    if (steps := steps_of(run_dir)) != list(range(1, STEPS + 1)):
        yield f"records of steps {steps}"
    summary = json.loads((run_dir / "summary.json").read_text())
    if summary["steps"] != STEPS:
        yield f"a summary of step {summary['steps']}"


def prepare(folder: Path) -> tuple[Path, np.ndarray]:
    """A run that each cell goes on with, and the outputs of one without a fault."""
    for name, steps in (("calm", STEPS), ("base", SAVED)):
        child = Child(train, folder / name, steps, log=folder / f"{name}.log")
        assert child.code() == DONE, child.log.read_text()
    # As of a run that was stopped, not of one that has ended.
    for name in ("summary.json", "report.html"):
        (folder / "base" / name).unlink(missing_ok=True)
    return folder / "base", read_outputs(folder / "calm" / "outputs")["draws"]


def main(only: str = "") -> int:
    """Try every cell whose name has `only` in it, and print the table; 1 if one was lost."""
    began_s = time.monotonic()
    found: dict[Cell, list[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        base, calm = prepare(Path(name))
        for number, cell in enumerate(c for c in cells() if only in str(c)):
            folder = Path(name) / str(number)
            folder.mkdir()
            found[cell] = list(wrongs(cell, base, calm, folder))
            print(f"{cell}: {'; '.join(found[cell]) or 'survived'}", file=sys.stderr, flush=True)
    for processes in (1, 2):
        print(f"\n| {processes} process{'es' * (processes > 1)} | {' | '.join(MOMENTS)} |")
        print("|---|" + "---|" * len(MOMENTS))
        for fault in FAULTS:
            if processes in fault.processes:
                marks = [found.get(Cell(fault, moment, processes)) for moment in MOMENTS]
                words = ["" if m is None else "lost" if m else "survived" for m in marks]
                print(f"| {fault.name} | {' | '.join(words)} |")
    lost = sum(map(bool, found.values()))
    minutes = (time.monotonic() - began_s) / 60
    print(f"\n{len(found)} tried, {len(found) - lost} survived, {lost} lost, {minutes:.0f} minutes")
    return min(lost, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
