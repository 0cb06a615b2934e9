"""Processes that wait for one another at a roll call, as threads of one process."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ...errors import UserError
from .. import rollcall
from ..detect import Place


class Caller(threading.Thread):
    """A process that waits for the others, as a thread."""

    def __init__(self, place: Place) -> None:
        super().__init__(daemon=True)
        self.place, self.words, self.error, self.leaves = place, "", "", threading.Event()
        self.start()

    def run(self) -> None:
        try:
            for words in rollcall.missing(self.place):
                self.words = words
                if self.leaves.is_set():
                    return
        except UserError as error:
            self.error = str(error)

    def leave(self) -> None:
        self.leaves.set()
        self.join(10)


type Start = Callable[..., Caller]


@pytest.fixture
def come(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts process `index` of `count`; all of them at one address."""
    for name, seconds in {"ASK_S": 0.02, "SLOWEST_S": 0.05, "HEARD_S": 0.5, "TOLD_S": 3.0}.items():
        monkeypatch.setattr(rollcall, name, seconds)
    address, callers = f"127.0.0.1:{free_port()}", []

    def start(index: int, count: int = 3, at: str = "") -> Caller:
        callers.append(Caller(Place("test", count, index, at or address)))
        return callers[-1]

    yield start
    for caller in callers:
        caller.leave()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)
