"""A table of faults in a job of two hosts, which its JobSet restarts or fails as its rules say.

    uv run python -m PACKAGE.cluster.tests.faults [WORDS]    # those rows, or all: a few minutes

A row is survived when the hosts end with the right codes in time, the manifest does what is right
about it, the next attempt goes on from where it should, and the outputs and records at the end are
those of a calm run. `runtime/tests/faults.py` has the moments within a step and a save; here hosts
are struck from outside, and restarts are the manifest's.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from ... import cli
from ...errors import Exit
from ...records import recorder, store
from ...run_config import RunConfig
from ...runtime import loop
from ...runtime.sharding import make_mesh
from ...runtime.sink import read_outputs
from ...runtime.start import start_processes
from ...runtime.tests.children import Child, steps_of
from ...runtime.tests.faults import flip_byte
from ...runtime.tests.workloads import SamplerConfig, sampler
from .. import simulated
from ..faults import Fault, parse
from ..jobset import jobset
from ..ledger import attempts
from ..pods import Pod, environment, rehosted
from ..simulated import Outcome, Process, Simulation
from .jobs import job_of

STEPS, EVERY, STEP_S = 80, 10, 0.05
STRUCK = 25  # between two saves
HANG_S, GRACE_S = 6.0, 30.0
KILLED = 137


class Row(NamedTuple):
    """A fault and what is right about it."""

    name: str
    kind: str
    """Of `simulate`; or `sleep`: a host that computes nothing, and says nothing of it."""
    host: int
    codes: tuple[tuple[int, ...], ...]
    """With which each host may end."""
    then: str
    """What the manifest does."""
    lost: int
    """Steps at most that are done again."""
    within_s: float
    """From the fault until all have ended."""
    between: Callable[[Path], object] | None = None
    """Done once all have ended, before the restart."""


def damage_newest(run_dir: Path) -> None:
    newest = max((run_dir / "checkpoints").glob("[0-9]" * 8)) / "state"
    flip_byte(max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))


FREE, COUNTED, FAILED = "preempted", "restart", "fail"
LOST = (Exit.PEER_LOST, Exit.HUNG)
ROWS = [
    Row("SIGTERM to one", "term", 1, ((42,), (42,)), FREE, 0, 15),
    Row("SIGTERM to the coordinator", "term", 0, ((42,), (42,)), FREE, 0, 15),
    Row("SIGKILL one", "kill", 1, (LOST, (KILLED,)), COUNTED, 2 * EVERY, 45),
    Row("coordinator killed", "kill", 0, ((KILLED,), LOST), COUNTED, 2 * EVERY, 45),
    Row("machine vanishes", "gone", 1, (LOST, (KILLED,)), COUNTED, 2 * EVERY, 45),
    Row("SIGSTOP one", "hang", 1, (LOST, (KILLED,)), COUNTED, 2 * EVERY, 65),
    Row("sleep in one", "sleep", 1, (LOST, LOST), COUNTED, 2 * EVERY, 45),
    Row("exception in one", "raise", 1, ((1,), (1,)), FAILED, 2 * EVERY, 15),
    Row("disk full on one", "full", 1, ((2,), (2,)), FAILED, STEPS, 30),  # it warns, and goes on
    Row(
        *("torn newest checkpoint", "kill", 1, (LOST, (KILLED,)), COUNTED, 3 * EVERY, 45),
        damage_newest,
    ),
]


def train(run_dir: str, sleeps: bool, environ: dict[str, str]) -> None:
    """A pod: the sampler through the console script, with the environment of its manifest."""
    os.setsid()
    os.environ.update(environ)
    signal.signal(signal.SIGUSR2, _raise)
    recorder.LEDGER_S = 0.5  # type: ignore[misc]
    options: dict[str, Any] = {"save_every_steps": EVERY, "log_every_steps": 1, "trackers": ()}
    options |= {"hang_timeout_s": HANG_S, "save_timeout_s": HANG_S}
    config = SamplerConfig(run=RunConfig(run_dir=run_dir, steps=STEPS, **options))

    def batch(cursor: int) -> dict[str, jax.Array]:
        time.sleep(600 if sleeps and cursor == STRUCK else STEP_S)
        return {}

    def run() -> int:
        start_processes()
        workload = dataclasses.replace(sampler(config), batch=batch)
        return loop.run(workload, config, make_mesh(config.mesh))

    cli.find_commands()["train"] = run
    cli.main(["train"])


def _raise(*_: object) -> None:
    raise RuntimeError("raised from outside")


class Forked(subprocess.Popen[bytes]):
    """A forked child as `simulated` knows processes."""

    def __init__(self, child: Child) -> None:
        self._child_created = False  # for the end of the object
        self.child, self.pid = child, cast(int, child.process.pid)

    def poll(self) -> int | None:
        return self.child.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.child.process.join(timeout)
        return cast(int, self.poll())


def simulate(folder: Path, faults: list[Fault], sleeper: int | None = None) -> Outcome:
    """A job of two hosts with two devices each, forked; `sleeper` sleeps in the first attempt."""

    def start_pod(pod: Pod, port: int, count: int, logs: Path) -> Process:
        sleeps = pod.number == sleeper and logs.name == "attempt-1"
        environ = environment(pod, port, count)
        environ = {n: v for n, v in environ.items() if os.environ.get(n) != v}
        log = logs / f"host-{pod.number}.log"
        child = Child(train, str(folder), sleeps, environ, log=log, devices=pod.devices)
        return Process(pod, log, Forked(child))

    simulated.start_pod = start_pod
    folder.mkdir(parents=True, exist_ok=True)
    manifest = rehosted(jobset(job_of(folder.parent)), 2)
    return Simulation(manifest, folder, faults, devices=2, grace=GRACE_S).run()


def wrongs(row: Row, calm: np.ndarray, folder: Path) -> Iterator[str]:
    """Goes through a row; what was wrong, in words."""
    run_dir = folder / "run"
    faults = [] if row.kind == "sleep" else parse(row.kind, (f"{row.host}@step{STRUCK}",), 2)
    begin = Simulation._attempt

    def attempt(self: Simulation, number: int, counted: int) -> Any:
        if number == 2 and row.between:
            row.between(run_dir)
        return begin(self, number, counted)

    Simulation._attempt = attempt  # type: ignore[method-assign]
    began_s = time.monotonic()
    try:
        outcome = simulate(run_dir, faults, row.host if row.kind == "sleep" else None)
    finally:
        Simulation._attempt = begin  # type: ignore[method-assign]
    first = outcome.attempts[0]
    for host, (code, allowed) in enumerate(zip(first["codes"], row.codes, strict=True)):
        if code not in allowed:
            yield f"host {host} ended with {code}, not {' or '.join(map(str, allowed))}"
    if row.then not in f"{first['then']}: {first['why']}":
        yield f"the manifest did: {first['then']}: {first['why']}"
    took_s = faults[0].ended_s if faults else time.monotonic() - began_s
    if took_s is None or took_s > row.within_s + (0 if faults else 30):
        yield f"all had ended after {took_s} s"
    if row.then == FAILED:
        if outcome.code not in (Exit.BUG, Exit.USER):
            yield f"the job ended with {outcome.code}"
        outcome = simulate(run_dir, [])  # somebody has mended it
    if (outcome.code, outcome.attempts[-1]["codes"]) != (0, [0, 0]):
        yield f"the job ended with {outcome.code}: {outcome.attempts[-1]['codes']}"
        return
    tried = attempts(store.read_lines(run_dir / "attempts.jsonl"))
    if len(tried) != 2 or (lost := tried[0].lost) > row.lost:
        yield f"{len(tried)} attempts, {lost} steps lost"
    if row.lost and (not lost or tried[1].first_step % EVERY):
        yield f"it went on from step {tried[1].first_step} with {lost} steps lost: not from a save"
    draws = read_outputs(run_dir / "outputs")["draws"]
    if not np.array_equal(draws, calm):
        yield f"outputs of {len(draws)} steps differ from those of a calm run"
    if (steps := steps_of(run_dir)) != list(range(1, STEPS + 1)):
        yield f"records of steps {steps}"


def calm_run(folder: Path) -> np.ndarray:
    """The outputs of a run without a fault."""
    outcome = simulate(folder, [])
    assert outcome.code == 0, outcome
    return read_outputs(folder / "outputs")["draws"]


def main(only: str = "") -> int:
    """Try every row whose name has `only` in it, and print the table; 1 if one was lost."""
    lost, table = 0, ["| fault | survived | what was wrong |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        calm = calm_run(Path(name) / "calm")
        for number, row in enumerate(each for each in ROWS if only in each.name):
            found = list(wrongs(row, calm, Path(name) / str(number)))
            lost += bool(found)
            table.append(f"| {row.name} | {'no' if found else 'yes'} | {'; '.join(found)} |")
    print("", *table, sep="\n")
    return min(lost, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
