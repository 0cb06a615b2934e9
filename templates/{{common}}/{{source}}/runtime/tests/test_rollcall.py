"""Who is missing is named, what disagrees is refused everywhere, and nothing else counts."""

import socket
import threading
import time
from typing import Any

import pytest

from .. import rollcall
from .callers import Start, free_port, wait_for


def test_all_hear_who_is_missing_until_all_have_come(come: Start) -> None:
    second = come(1)
    wait_for(lambda: "process 0, which does not answer at 127.0.0.1:" in second.words)
    first = come(0)
    for caller in (first, second):
        wait_for(lambda caller=caller: caller.words == "process 2, which has not come")
    third = come(2)
    for caller in (first, second, third):
        caller.join(10)
        assert not caller.is_alive()
        assert not caller.error
    with socket.create_server(("127.0.0.1", int(first.place.coordinator.split(":")[1]))):
        pass  # the port is JAX's now


def test_one_that_goes_away_is_missing_again_and_may_come_back(come: Start) -> None:
    first, second = come(0), come(1)
    wait_for(lambda: first.words == second.words == "process 2, which has not come")
    second.leave()
    wait_for(lambda: f"process 1 on {socket.gethostname()}, silent for " in first.words)
    again, third = come(1), come(2)
    for caller in (first, again, third):
        caller.join(10)
        assert not caller.is_alive()
        assert not caller.error


def test_a_busy_process_hears_late_that_all_have_come(
    come: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, asked = threading.Event(), rollcall._Link.ask

    def ask(link: Any) -> Any:
        if link._own["process"] == 1 and slow.is_set():
            time.sleep(1.5)  # longer than a process is here without a word
        return asked(link)

    monkeypatch.setattr(rollcall._Link, "ask", ask)
    callers = [come(0), come(1)]
    wait_for(lambda: all(caller.words for caller in callers))
    slow.set()
    callers.append(come(2))
    for caller in callers:
        caller.join(10)
        assert not caller.is_alive()
        assert not caller.error


def test_many_that_are_missing_are_counted(come: Start) -> None:
    first = come(0, 100)
    wait_for(lambda: first.words.endswith("; process 8, which has not come; and 91 more"))


def test_other_counts_are_refused_in_all_processes(come: Start) -> None:
    callers = [come(0), come(1), come(2, 4)]
    for caller in callers:
        caller.join(10)
        assert "got:      process 2 on " in caller.error
        assert ", one of 4 and not of 3\n" in caller.error
        assert "JAX_NUM_PROCESSES" in caller.error


def test_an_earlier_attempt_with_another_count_ends_no_job(come: Start) -> None:
    first, second, earlier = come(0), come(1), come(2, 4)
    wait_for(
        lambda: "process 2 on " in first.words and first.words.endswith(", one of 4 and not of 3")
    )
    earlier.leave()
    callers = [first, second, come(2)]
    for caller in callers:
        caller.join(10)
        assert not caller.is_alive()
        assert not caller.error


def test_one_that_comes_late_hears_what_is_wrong(come: Start) -> None:
    callers = [come(0), come(2, 4)]
    time.sleep(1.5)
    callers.append(come(1))
    for caller in callers:
        caller.join(10)
        assert ", one of 4 and not of 3\n" in caller.error


def test_all_that_are_there_do_not_hide_two_of_one_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollcall, "ASK_S", 0.0)
    roll = rollcall._Roll(3)

    def ask(index: int, start: str, count: int = 3) -> Any:
        return roll.hear({"process": index, "count": count, "host": "h", "id": start})[1]

    for index, start in ((0, "a"), (1, "a"), (1, "b")):
        ask(index, start)
    assert ask(2, "a") == {"missing": "process 1, of which 2 starts ask"}
    roll.callers[1]["a"].last_s -= rollcall.HEARD_S  # the first one was replaced
    assert ask(2, "a") == {"go": True}
    assert ask(2, "b", 4)["wrong"]["got"] == "process 2 on h, one of 4 and not of 3"
    assert ask(1, "b") == {"go": True}  # that one alone is refused


def test_two_of_one_index_are_refused_in_all_processes(come: Start) -> None:
    callers = [come(0), come(1), come(1)]
    for caller in callers:
        caller.join(10)
        assert f"got:      process 1 on {socket.gethostname()} and on " in caller.error


def test_a_second_coordinator_of_a_port_says_so(
    come: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollcall, "PORT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        # JAX's server would share the port with another one of JAX, and mix two jobs.
        monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", address)
        first = come(0, at=address)
        first.join(10)
        assert f"got:      {address}, where process 0 cannot listen: " in first.error


def test_an_earlier_attempt_leaves_the_port(come: Start) -> None:
    with socket.create_server(("", free_port())) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        callers = [come(0, 2, address), come(1, 2, address)]
        time.sleep(0.2)
    for caller in callers:
        caller.join(10)
        assert not caller.is_alive()
        assert not caller.error


def test_what_is_no_process_of_the_job_does_not_count(come: Start) -> None:
    first = come(0)
    wait_for(lambda: first.words)
    port = int(first.place.coordinator.split(":")[1])
    rows = (b'{"process": 1}\n', b'{"process": 9, "count": 3, "host": "h", "id": "i"}\n')
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[]\n", *rows, b"x" * 10_000):
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(noise)
    time.sleep(0.2)
    assert first.words == "process 1, which has not come; process 2, which has not come"


def test_a_process_that_finds_something_else_says_so(come: Start) -> None:
    def answer(server: socket.socket) -> None:
        while True:
            link, _ = server.accept()
            with link:
                link.recv(1000)
                link.sendall(b"\x00\x00\x12\x04\x00\n")  # as the server of a job that runs

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        second = come(1, at=f"127.0.0.1:{server.getsockname()[1]}")
        wait_for(lambda: "such as an attempt that has joined" in second.words)
        second.join(10)  # it does not go away: JAX decides
        assert not second.is_alive()
        assert not second.error


def test_its_own_question_is_no_answer(come: Start) -> None:
    def echo(server: socket.socket) -> None:
        link, _ = server.accept()
        with link:
            link.sendall(link.recv(1000))  # as a connection of a port to itself

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        second = come(1, at=f"127.0.0.1:{server.getsockname()[1]}")
        wait_for(lambda: "which does not answer" in second.words)
