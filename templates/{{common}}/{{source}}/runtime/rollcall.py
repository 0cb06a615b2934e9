"""Who has come, before JAX joins the processes: names those that are missing, and wrong counts.

JAX's own joining waits in silence, aborts at its limit and names nobody. So process 0 keeps the
roll at the coordinator's address until all have come, and then leaves the port to JAX. Every
process asks it, process 0 too: an address that leads elsewhere shows at once. Where JAX encrypts,
so does this, with the same files. Joins nothing, and sets no time limit.
"""

import contextlib
import errno
import json
import math
import os
import secrets
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .detect import COUNT, INDEX, Place
from .encryption import check_peer, encryption, wrong_certificates
from .hosts import listed

ASK_S, SLOWEST_S = 0.1, 2.0  # between two questions of a process, at first and later
ASKED_A_SECOND = 1500  # of all processes together, at most
HEARD_S = 15.0  # one that has not asked for so long is missing again
TOLD_S = 60.0  # for all to hear how it ended
PORT_S = 60.0  # for an earlier attempt to leave the port
LINE = 4096  # bytes of a question, at most

type Answer = dict[str, Any]
"""missing: those that are, in words; or go: true; or wrong: the arguments of a UserError."""


class Taken(ValueError):
    """Something else listens: JAX's coordinator, of this job or of an earlier attempt."""


def missing(place: Place) -> Iterator[str]:
    """Say who is missing, in words, again and again until all processes of the job have come.

    UserError: two processes tell different counts or have the same index, or the port is taken.
    """
    link = _Link(place)
    with contextlib.ExitStack() as stack:
        roll = None
        if place.index == 0:
            server = yield from _listen(place)
            roll = stack.enter_context(_serving(server))
        words, pause_s, taken_s = "", ASK_S, 0.0
        while True:
            try:
                answer = link.ask()
            except ssl.SSLCertVerificationError as error:
                raise wrong_certificates(error.verify_message) from error
            except (OSError, ValueError) as error:
                silent = f"process 0, which does not answer at {place.coordinator} ({error})"
                answer = {"missing": f"{silent}; it waited for {words}" if words else silent}
                taken_s += pause_s if isinstance(error, Taken) else -taken_s
                # The roll was closed while this process was away. JAX joins it, or tells why not.
                if taken_s > (0 if words else HEARD_S):
                    return
            else:
                words, taken_s = answer.get("missing", ""), 0.0
            if "missing" not in answer:
                break
            yield answer["missing"]
            time.sleep(pause_s)
            pause_s = max(min(1.2 * pause_s, SLOWEST_S), place.count / ASKED_A_SECOND)
        end_s = time.monotonic() + TOLD_S  # a host may be busy, or lost since it came
        while roll and not roll.is_told() and time.monotonic() < end_s:
            yield "all to hear that all have come, or what is wrong"
            time.sleep(ASK_S)
    if "wrong" in answer:
        raise UserError(**answer["wrong"])


class _Link:
    """How a process asks."""

    def __init__(self, place: Place) -> None:
        host, _, port = place.coordinator.rpartition(":")
        self._at = (host.strip("[]"), int(port))
        self._own = {"process": place.index, "count": place.count, "host": socket.gethostname()}
        self._own |= {"id": secrets.token_hex(8)}
        self._context = encryption(ssl.PROTOCOL_TLS_CLIENT)

    def ask(self) -> Answer:
        """The answer of process 0. OSError: there is none; ValueError: not one of the roll."""
        with contextlib.ExitStack() as stack:
            link = stack.enter_context(socket.create_connection(self._at, timeout=HEARD_S / 3))
            if self._context:
                link = self._context.wrap_socket(link, server_hostname=self._at[0])
                check_peer(stack.enter_context(link))
            link.sendall(json.dumps(self._own).encode() + b"\n")
            text = stack.enter_context(link.makefile("rb")).readline(LINE)
            with contextlib.suppress(ValueError):
                answer = json.loads(text)
                if isinstance(answer, dict) and {*answer} & {"missing", "go", "wrong"}:
                    link.sendall(b"heard\n")
                    return answer
        raise Taken("its port is taken by something else, such as an attempt that has joined")


@dataclass
class _Caller:
    """A start of a process that has asked; the times are those of this host."""

    host: str
    count: int
    first_s: float
    last_s: float
    told: bool = False

    def is_here(self) -> bool:
        return time.monotonic() - self.last_s < HEARD_S

    def is_old(self) -> bool:
        """Whether it is no attempt that ends, nor a start that another one has replaced."""
        return self.is_here() and self.last_s - self.first_s > HEARD_S


@dataclass
class _Roll:
    """What process 0 knows of the others."""

    count: int
    callers: dict[int, dict[str, _Caller]] = field(default_factory=dict)
    """By process, then by the identity that a start of it gives itself."""
    answer: Answer = field(default_factory=dict)
    looked_s: float = -math.inf
    lock: Any = field(default_factory=threading.Lock)

    def hear(self, row: dict[str, Any]) -> tuple[_Caller, Answer]:
        """Note who asks, and answer."""
        index, count, host, start = (row[name] for name in ("process", "count", "host", "id"))
        if not 0 <= index < count:
            raise ValueError(row)
        with self.lock:
            now_s = time.monotonic()
            starts = self.callers.setdefault(index, {})
            caller = starts.setdefault(start, _Caller(str(host), count, now_s, now_s))
            caller.last_s = now_s
            if "go" in self.answer and count != self.count:  # the others have gone: this one alone
                return caller, self._refuse(self._other(index, caller))
            # For a moment the last answer will do: there may be thousands of processes.
            if not {*self.answer} & {"go", "wrong"} and now_s - self.looked_s >= ASK_S:
                self.answer, self.looked_s = self._look(), now_s
            return caller, self.answer

    def _look(self) -> Answer:
        found = []
        for index in sorted({*range(self.count), *self.callers}):
            starts = [*self.callers.get(index, {}).values()]
            here = [each for each in starts if each.is_here()]
            others = [each for each in here if each.count != self.count]
            if any(each.is_old() for each in others):
                return self._refuse(self._other(index, others[0]))
            if len(here) > 1 and all(each.is_old() for each in here):
                return self._refuse(f"process {index} on {' and on '.join(e.host for e in here)}")
            if others:
                found.append(self._other(index, others[0]))
            elif len(here) > 1:
                found.append(f"process {index}, of which {len(here)} starts ask")
            elif not here and index < self.count:
                found.append(f"process {index}{self._last(starts)}")
        return {"missing": listed(found)} if found else {"go": True}

    def _other(self, index: int, caller: _Caller) -> str:
        return f"process {index} on {caller.host}, one of {caller.count} and not of {self.count}"

    def _last(self, starts: list[_Caller]) -> str:
        if not starts:
            return ", which has not come"
        last = max(starts, key=lambda each: each.last_s)
        return f" on {last.host}, silent for {time.monotonic() - last.last_s:.0f} s"

    def _refuse(self, got: str) -> Answer:
        expected = "one number of processes, and each index below it once"
        do = f"correct {COUNT} and {INDEX}, or what started the processes; `doctor` shows what says"
        return {"wrong": {"got": got, "expected": expected, "do": f"{do} so"}}

    def is_told(self) -> bool:
        """Whether the newest start of each process has heard how it ended."""
        with self.lock:
            newest = [[*starts.values()][-1] for starts in self.callers.values()]
        return len(newest) >= self.count and all(each.told for each in newest)


class _Server(socketserver.ThreadingTCPServer):
    """Answers each question in a thread of its own."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, address: str, roll: _Roll) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.roll, self.context = roll, encryption(ssl.PROTOCOL_TLS_SERVER)
        super().__init__((host, int(port)), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, *_: object) -> None:
        """Whoever asked badly, or went away, is no matter of this process."""


class _Handler(socketserver.StreamRequestHandler):
    timeout = HEARD_S
    server: _Server

    def setup(self) -> None:
        if self.server.context:
            self.request.settimeout(self.timeout)
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
            check_peer(self.request)
        super().setup()

    def handle(self) -> None:
        caller, answer = self.server.roll.hear(json.loads(self.rfile.readline(LINE)))
        self.wfile.write(json.dumps(answer).encode() + b"\n")
        if self.rfile.readline(LINE):
            caller.told |= "missing" not in answer


@contextlib.contextmanager
def _serving(server: _Server) -> Iterator[_Roll]:
    threading.Thread(target=server.serve_forever, args=(ASK_S,), daemon=True).start()
    try:
        yield server.roll
    finally:
        server.shutdown()
        server.server_close()


def _listen(place: Place) -> Generator[str, None, _Server]:
    """Listen where JAX will, once an earlier attempt has left the port; returns the server."""
    everywhere = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"
    here = f"{everywhere}:{place.coordinator.rpartition(':')[2]}"
    address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or here
    end_s = time.monotonic() + PORT_S
    while True:
        try:
            return _Server(address, _Roll(place.count))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > end_s:
                raise UserError(
                    got=f"{address}, where process 0 cannot listen: {error.strerror}",
                    expected="a free port of this host, the coordinator's, and one process 0",
                    do="name another one in JAX_COORDINATOR_PORT or JAX_COORDINATOR_ADDRESS, in "
                    "every process, or end what has it",
                ) from error
        yield f"what listens at {address} to leave the port"
        time.sleep(1.0)
