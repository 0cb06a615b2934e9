"""A rendered JobSet on this machine: its pods as processes, its restart rules, and faults.

Each pod runs the project's own command on the CPU, with the variables that the manifest hands to
its container; only the address of the coordinator leads to this machine, at a new port for each
attempt. What follows from the ends of the pods is told by `restarts.verdict`. Schedules nothing,
and ends no process but its own, none of which outlives it: see `simulated_host.py`.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..records import store
from .faults import SLOWDOWN, STRIKES, Fault
from .pods import Pod, environment, grace_s, pods
from .restarts import EVICTED, LOOK_S, Ended, Manifest, Verdict, verdict
from .screen import Row, Screen

POLL_S = 0.1
PAUSE_S = 0.5  # in the place of a cluster's time to make pods again


@dataclass
class Process:
    """A pod that runs or has run."""

    pod: Pod
    log: Path
    started: subprocess.Popen[bytes]
    state: str = "runs"
    ended: Ended | None = None
    evicted: bool = False
    vanished: bool = False
    """With its machine: its end is known minutes later in a cluster, and here after its peers'."""
    kill_at_s: float | None = None
    """When its grace is over; None = it was not told to end."""

    def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL once its grace is over; call it again until it has ended."""
        if self.kill_at_s is None:
            self.kill_at_s = time.monotonic() + grace_s
            self.state = "is told to end"
            self.send(signal.SIGTERM)
        elif time.monotonic() > self.kill_at_s:
            self.send(signal.SIGKILL)

    def is_judged(self) -> bool:
        """Whether a controller has looked at its end before it looks at one of now."""
        return self.ended is not None and time.monotonic() > self.ended.at_s + LOOK_S

    def send(self, number: int) -> None:
        """Send a signal to it and to what it has started."""
        if self.started.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.started.pid, number)


@dataclass
class Outcome:
    """How a job ended."""

    code: int
    why: str
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """Of each: its exit codes by host, what followed and why."""


class Simulation:
    """A job from its first start to its verdict."""

    def __init__(
        self,
        manifest: Manifest,
        run_dir: Path,
        faults: list[Fault],
        *,
        devices: int | None = None,
        grace: float | None = None,
    ) -> None:
        """`devices` of each host and `grace`, seconds, in the place of what the manifest says."""
        self._manifest, self._dir, self._faults = manifest, run_dir, faults
        self._pods = pods(manifest, run_dir, devices)
        self._grace_s = grace_s(manifest) if grace is None else grace
        self._began_s = time.monotonic()
        self._seen: tuple[tuple[int, int], int] = ((0, 0), 0)  # of metrics.jsonl: what, and step
        self._rows = 0  # of attempts.jsonl before this attempt
        self._screen = Screen()

    def run(self) -> Outcome:
        """Start it again and again until its manifest ends it."""
        outcome, counted = Outcome(0, ""), 0
        store.remove(self._dir / "simulated")  # of an earlier simulation
        with self._screen:
            while True:
                processes, found = self._attempt(len(outcome.attempts) + 1, counted)
                codes = [each.ended.code if each.ended else -1 for each in processes]
                outcome.attempts.append({"codes": codes, "then": found.action, "why": found.why})
                self._say(f"{found.action}: {found.why}")
                if found.action != "restart":
                    first = min(processes, key=lambda p: (p.ended.code == 0, p.ended.at_s))  # type: ignore[union-attr]
                    outcome.code, outcome.why = codes[first.pod.number], found.why
                    return outcome
                counted += found.counted
                time.sleep(PAUSE_S)

    def _attempt(self, number: int, counted: int) -> tuple[list[Process], Verdict]:
        """Start all pods, and wait until all have ended."""
        self._rows = len(store.read_lines(self._dir / "attempts.jsonl"))
        found, began = Verdict("wait"), time.time()
        with self._processes(number) as processes:
            while any(each.ended is None for each in processes):
                for each in processes:
                    self._look(each, processes)
                ended = [each.ended for each in processes if each.ended]
                if found.action == "wait":
                    found = verdict(self._manifest, ended, counted)
                step = self._step()
                for each in processes:
                    is_over = found.action != "wait" or each.pod.job in found.failing
                    if each.ended is None and (is_over or each.kill_at_s):
                        each.stop(self._grace_s)
                for fault in self._faults:
                    self._strike(fault, processes[fault.host], step)
                self._note_next_step(number)
                self._screen.show(self._table(processes, began), f"attempt {number}, step {step}")
                time.sleep(POLL_S)
        for fault in self._faults:
            if fault.struck_s is not None and fault.ended_s is None:
                fault.ended_s = self._now_s() - fault.struck_s
        if found.action == "wait":
            raise UserError(
                got="pods that have all ended, of a job that goes on by its manifest",
                expected="backoffLimit 0 and no rule that ignores: single pods are not replaced",
                do="render the job with `launch gke`",
            )
        return processes, found

    @contextlib.contextmanager
    def _processes(self, number: int) -> Iterator[list[Process]]:
        """The pods as processes of this one; none of them is left behind."""
        folder = self._dir / "simulated" / f"attempt-{number}"
        store.make_folder(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes: list[Process] = []
        try:
            for pod in self._pods:
                processes.append(start_pod(pod, port, len(self._pods), folder))
            self._say(f"attempt {number}: {len(processes)} hosts begin, logs in {folder}")
            yield processes
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM: they save, as in a cluster
            while any(each.started.poll() is None for each in processes):
                for each in processes:
                    each.send(signal.SIGCONT)
                    each.stop(self._grace_s)
                time.sleep(POLL_S)
            raise
        finally:
            for each in processes:
                if each.started.poll() is None:
                    each.send(signal.SIGKILL)
                each.started.wait()

    def _look(self, process: Process, peers: list[Process]) -> None:
        """Note the end of a process, as a container tells it."""
        code = process.started.poll()
        if code is None or process.ended:
            return
        if process.vanished and not all(each.vanished or each.is_judged() for each in peers):
            return
        code = 128 - code if code < 0 else code
        conditions = (EVICTED,) if process.evicted else ()
        pod = process.pod
        process.ended = Ended(pod.job, pod.host, code, time.monotonic(), conditions)
        process.state = f"ended with {code}"
        self._say(f"host {pod.number} ended with {code}")

    def _strike(self, fault: Fault, process: Process, step: int) -> None:
        """Do what a fault does, if its time has come."""
        if process.ended:
            return
        if fault.is_due(self._now_s(), step):
            fault.struck_s, fault.struck_step = self._now_s(), step
            fault.struck_in = process
            self._say(f"fault: {fault.words}, at step {step}")
            process.evicted |= fault.kind in ("term", "gone")
            process.vanished |= fault.kind == "gone"
            if fault.kind == "term":
                process.stop(self._grace_s)
            process.state = fault.kind
            with contextlib.suppress(ProcessLookupError):
                STRIKES[fault.kind](process.started.pid)
        elif fault.kind == "slow" and fault.struck_in is process:
            works = round(self._now_s() / POLL_S) % SLOWDOWN == 0
            process.send(signal.SIGCONT if works else signal.SIGSTOP)

    def _note_next_step(self, number: int) -> None:
        waiting = [f for f in self._faults if f.ended_s is not None and f.next_s is None]
        if not waiting:
            return
        rows = store.read_lines(self._dir / "attempts.jsonl")
        if len(rows) > self._rows and rows[-1].get("step", 0) > rows[-1].get("first_step", 0):
            for fault in waiting:
                fault.next_s = self._now_s() - (fault.struck_s or 0.0)

    def _step(self) -> int:
        """The step of the newest record."""
        path = self._dir / "metrics.jsonl"
        if (now := store.size_and_time(path)) != self._seen[0]:
            steps = [row["step"] for row in store.read_lines(path) if "step" in row]
            self._seen = (now, int(steps[-1]) if steps else 0)
        return self._seen[1]

    def _table(self, processes: list[Process], began: float) -> Iterator[Row]:
        """What each host does, by its own words where it has said any in this attempt."""
        told: dict[int, Mapping[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            rows = store.read_json(self._dir / "hosts.json")
            told = {row["process"]: row for row in rows if row["told"] >= began}
        for each in processes:
            row = told.get(each.pod.number, {})
            doing = f"{each.state}, {row['doing']}" if row and not each.ended else each.state
            yield each.pod.number, each.pod.name, doing, row.get("step", ""), _last_line(each.log)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _say(self, words: str) -> None:
        self._screen.say(f"{self._now_s():7.1f} s  {words}")


def start_pod(pod: Pod, port: int, count: int, folder: Path) -> Process:
    """The process of a pod, in a group of its own."""
    log = folder / f"host-{pod.number}.log"
    module = f"{__package__}.simulated_host"
    words = [sys.executable, "-m", module, str(os.getpid()), *pod.arguments]
    with log.open("wb") as file:
        started = subprocess.Popen(
            words,
            env=environment(pod, port, count),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(pod, log, started)


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        with store.reading(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
            lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""
