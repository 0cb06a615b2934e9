"""Faults that `simulate` injects: what, in which host, when. Strikes through signals and limits."""

import os
import re
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import UserError

FORM = re.compile(r"(\d+)@(?:(\d+(?:\.\d+)?)s|step(\d+))")
FULL_BYTES = 4_000  # no file may grow beyond: the arrays of a checkpoint need more
SLOWDOWN = 5  # a slow host works for one look out of so many


@dataclass
class Fault:
    """One fault, and what came of it."""

    kind: str
    host: int
    at_s: float | None
    """Seconds since the first start; None where a step is waited for."""
    step: int | None
    struck_s: float | None = field(default=None, init=False)
    struck_step: int = field(default=0, init=False)
    struck_in: object = field(default=None, init=False)
    """The process that it met."""
    ended_s: float | None = field(default=None, init=False)
    """From the fault until all processes of the attempt had ended."""
    next_s: float | None = field(default=None, init=False)
    """From the fault until the next attempt told of a step."""

    @property
    def words(self) -> str:
        when = f"step{self.step}" if self.at_s is None else f"{self.at_s:g}s"
        return f"{self.kind} {self.host}@{when}"

    def is_due(self, now_s: float, step: int) -> bool:
        """Whether it is to strike now."""
        if self.struck_s is not None:
            return False
        return step >= (self.step or 0) if self.at_s is None else now_s >= self.at_s


def parse(kind: str, texts: tuple[str, ...], hosts: int) -> list[Fault]:
    """`2@30s`, `0@step12` -> faults."""
    found = []
    for text in texts:
        match = FORM.fullmatch(text)
        if match is None or int(match[1]) >= hosts:
            raise UserError(
                got=f"--{kind} {text}",
                expected=f"HOST@SECONDSs or HOST@stepSTEP, with a host from 0 to {hosts - 1}",
                do=f"such as --{kind} {hosts - 1}@30s or --{kind} 0@step12",
            )
        at_s = None if match[2] is None else float(match[2])
        found.append(Fault(kind, int(match[1]), at_s, None if match[3] is None else int(match[3])))
    return found


def disk_full(pid: int) -> None:
    """From now on no file of a process may grow beyond FULL_BYTES."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_BYTES, hard))


# Kind -> what it does to a process, by its number, which is that of its group too. `slow` is done
# over and over, by whoever looks; SIGTERM is sent by whoever waits for its grace. `gone` differs
# from `kill` in what the cluster is told of the pod, and when.
STRIKES: dict[str, Callable[[int], object]] = {
    "kill": lambda pid: os.killpg(pid, signal.SIGKILL),
    "gone": lambda pid: os.killpg(pid, signal.SIGKILL),
    "term": lambda pid: None,
    "hang": lambda pid: os.killpg(pid, signal.SIGSTOP),
    "slow": lambda pid: None,
    "raise": lambda pid: os.killpg(pid, signal.SIGUSR2),
    "full": disk_full,
}
