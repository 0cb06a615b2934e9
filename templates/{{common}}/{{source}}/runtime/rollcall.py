"""Who has come, before JAX joins the processes: names those that are missing, and wrong counts.

JAX's own joining waits in silence, aborts at its limit and names nobody. So process 0 keeps the
roll at the coordinator's address until all have come, and then leaves the port to JAX. Every
process asks it, process 0 too: an address that leads elsewhere shows at once. Where JAX encrypts,
so does this, with the same files. Joins nothing, and sets no time limit.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .detect import COUNT, INDEX, Place

ENCRYPTION = ("JAX_MTLS_CERT_FILE", "JAX_MTLS_KEY_FILE", "JAX_MTLS_CA_FILE")
ASK_S = 0.1  # between two questions of a process, at least
ASKED_A_SECOND = 1000  # of all processes together
HEARD_S = 5.0  # one that has not asked for so long is missing again
TOLD_S = 60.0  # for all to hear that all have come
PORT_S = 60.0  # for an earlier attempt to leave the port
LINE = 4096  # bytes of a question, at most

type Answer = dict[str, Any]
"""missing: those that are, in words; or go: true; or wrong: the arguments of a UserError."""


def missing(place: Place) -> Iterator[str]:
    """Say who is missing, in words, again and again until all processes of the job have come.

    UserError: two processes tell different counts or have the same index, or the port is taken.
    """
    context = _encryption(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.ExitStack() as stack:
        if place.index == 0:
            stack.enter_context(_keeping(place))
        own = {"process": place.index, "count": place.count, "host": socket.gethostname()}
        own |= {"id": secrets.token_hex(8)}
        words = ""
        while True:
            try:
                answer = _ask(place.coordinator, own, context)
            except (OSError, ValueError) as error:
                silent = f"process 0, which does not answer at {place.coordinator} ({error})"
                answer = {"missing": f"{silent}; it waited for {words}" if words else silent}
            else:
                words = answer.get("missing", "")
            if "wrong" in answer:
                raise UserError(**answer["wrong"])
            if "go" in answer:
                return
            yield answer["missing"]
            time.sleep(max(ASK_S, place.count / ASKED_A_SECOND))


def _ask(address: str, question: dict[str, Any], context: ssl.SSLContext | None) -> Answer:
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        found = socket.create_connection((host.strip("[]"), int(port)), timeout=HEARD_S)
        link = stack.enter_context(found)
        if context:
            link = stack.enter_context(context.wrap_socket(link))
        link.sendall(json.dumps(question).encode() + b"\n")
        text = stack.enter_context(link.makefile("rb")).readline(LINE)
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):  # JAX's coordinator, of a job that runs
        raise ValueError("its port is taken by something else, such as an attempt that has joined")
    return answer


@dataclass
class _Caller:
    """A process that has asked; the times are those of this host."""

    host: str
    first_s: float
    last_s: float
    told: bool = False

    def is_here(self) -> bool:
        return time.monotonic() - self.last_s < HEARD_S


@dataclass
class _Roll:
    """What process 0 knows of the others."""

    count: int
    callers: dict[int, dict[str, _Caller]] = field(default_factory=dict)
    """By process, then by the identity that a start of it gives itself."""
    wrong: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, row: dict[str, Any]) -> Answer:
        """Note who asks, and answer."""
        with self.lock:
            now_s, index = time.monotonic(), int(row["process"])
            starts = self.callers.setdefault(index, {})
            caller = starts.setdefault(row["id"], _Caller(str(row["host"]), now_s, now_s))
            caller.last_s = now_s
            here = [each for each in starts.values() if each.is_here()]
            if row["count"] != self.count:
                self._refuse(
                    f"process {index} on {caller.host} is one of {row['count']}, process 0 one of "
                    f"{self.count}"
                )
            # An earlier start of a process that came back is heard of for so long, and no longer.
            elif len(here) > 1 and all(now_s - each.first_s > HEARD_S for each in here):
                hosts = " and on ".join(each.host for each in here)
                self._refuse(f"process {index} on {hosts}")
            names = [] if self.wrong or self.complete else self._missing()
            self.complete |= not (names or self.wrong)
            caller.told = self.complete or bool(self.wrong)
            if self.wrong:
                return {"wrong": self.wrong}
            more = [f"and {len(names) - 8} more"] if len(names) > 8 else []
            return {"go": True} if self.complete else {"missing": "; ".join(names[:8] + more)}

    def _refuse(self, got: str) -> None:
        expected = "one number of processes, and each index below it once"
        do = f"correct {COUNT} and {INDEX}, or what started the processes; `doctor` shows what says"
        self.wrong = {"got": got, "expected": expected, "do": f"{do} so"}

    def _missing(self) -> list[str]:
        found = []
        for index in range(self.count):
            starts = sorted(self.callers.get(index, {}).values(), key=lambda each: each.last_s)
            if not starts:
                found.append(f"process {index}, which has not come")
            elif not starts[-1].is_here():
                silent_s = time.monotonic() - starts[-1].last_s
                found.append(f"process {index} on {starts[-1].host}, silent for {silent_s:.0f} s")
        return found

    def is_told(self) -> bool:
        """Whether it has not ended, or all know how: those that are here, if it ended badly."""
        with self.lock:
            starts = [[*found.values()] for found in self.callers.values()]
            if self.wrong:
                return all(each.told for found in starts for each in found if each.is_here())
            return not self.complete or all(found[-1].told for found in starts)


class _Server(socketserver.ThreadingTCPServer):
    """Answers each question in a thread of its own."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, address: str, roll: _Roll) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.roll, self.context = roll, _encryption(ssl.PROTOCOL_TLS_SERVER)
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
        super().setup()

    def handle(self) -> None:
        answer = self.server.roll.hear(json.loads(self.rfile.readline(LINE)))
        self.wfile.write(json.dumps(answer).encode() + b"\n")


@contextlib.contextmanager
def _keeping(place: Place) -> Iterator[None]:
    """Keep the roll until the end, and until all have heard of it."""
    server = _bind(place)
    thread = threading.Thread(target=server.serve_forever, args=(ASK_S,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end_s = time.monotonic() + TOLD_S  # a host may be busy, or lost since it came
        while not server.roll.is_told() and time.monotonic() < end_s:
            time.sleep(ASK_S)
        server.shutdown()
        server.server_close()


def _bind(place: Place) -> _Server:
    """Listen where JAX will; waits for an earlier attempt to leave the port."""
    port = place.coordinator.rpartition(":")[2]
    asked = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
    everywhere = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"
    address = asked or f"{everywhere}:{port}"
    end_s = time.monotonic() + PORT_S
    while True:
        try:
            return _Server(address, _Roll(place.count))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < end_s:
                time.sleep(1.0)
                continue
            raise UserError(
                got=f"{address}, where process 0 cannot listen: {error.strerror}",
                expected="a free port of this host, the coordinator's",
                do="name another one in JAX_COORDINATOR_PORT or JAX_COORDINATOR_ADDRESS, in every "
                "process, or end what has it",
            ) from error


def _encryption(protocol: int) -> ssl.SSLContext | None:
    """Both sides show a certificate of the same authority; None where JAX does not encrypt."""
    cert, key, authority = (os.environ.get(name, "") for name in ENCRYPTION)
    if not cert:
        return None
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # as JAX does it: the authority is the job's own
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise UserError(
            got=f"{cert}, {key} and {authority}: {error}",
            expected="a certificate, its key and that of the authority, as PEM files",
            do=f"correct {', '.join(ENCRYPTION)} in every process",
        ) from error
    return context
