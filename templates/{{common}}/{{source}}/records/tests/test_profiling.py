"""Traces on request: each is taken once, by the hosts that it names, and never ends a run."""

import os
import signal
from pathlib import Path

import pytest

from ...run_config import RunConfig
from .. import profiling
from ..profiling import REQUEST, Profiler


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to traces, in order."""
    happened: list[str] = []
    monkeypatch.setattr(profiling.jax.profiler, "start_trace", happened.append)
    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", lambda: happened.append("end"))
    before = signal.getsignal(signal.SIGUSR1)
    yield happened
    signal.signal(signal.SIGUSR1, before)


def profiler_of(folder: Path, process: int = 0, **run: int) -> Profiler:
    made = Profiler(folder, RunConfig(run_dir=str(folder), **run), process)
    made.listen()
    return made


def test_a_request_is_taken_once_by_the_hosts_it_names(tmp_path: Path, traced: list[str]) -> None:
    (tmp_path / REQUEST).write_text('{"steps": 1}')  # of an earlier attempt
    hosts = [profiler_of(tmp_path, process) for process in range(3)]
    hosts[0].look()
    hosts[0].step(1)
    assert traced == []
    (tmp_path / REQUEST).write_text('{"hosts": [0, 2], "steps": 2}')
    for step in range(2, 7):
        for host in hosts:
            host.look()
            host.step(step)
        assert ("end" in traced) == (step >= 4)
    folders = [str(tmp_path / "profile"), str(tmp_path / "profile" / "host-2")]
    assert traced == [*folders, "end", "end"]
    (tmp_path / REQUEST).write_text("{}")
    hosts[0].look()
    hosts[0].step(9)
    hosts[0].close()  # the run ends meanwhile
    assert traced[4:] == [folders[0], "end"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff", b"[]", b"null", b'{"host": [0]}', b'{"hosts": 0}'),
        *(b'{"hosts": ["0"]}', b'{"steps": 0}', b'{"steps": true}', b'{"steps": 1e9}'),
        *(b"[" * 9000, b"1" * 99_999),
    ],
)
def test_a_bad_request_is_a_warning(
    tmp_path: Path, traced: list[str], caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    host = profiler_of(tmp_path)
    (tmp_path / REQUEST).write_bytes(content)
    for step in range(3):
        host.look()
        host.step(step)
    assert traced == []
    (said,) = caplog.messages
    assert REQUEST in said
    assert '{"hosts": [0], "steps": 3}' in said


def test_a_signal_asks_too_and_a_trace_that_fails_ends_nothing(
    tmp_path: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = profiler_of(tmp_path, profile_steps=1, profile_at_step=2)
    for step in range(8):
        if step == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        host.step(step)
    assert traced == [str(tmp_path / "profile"), "end"] * 2

    def busy(_: str) -> None:
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(profiling.jax.profiler, "start_trace", busy)
    os.kill(os.getpid(), signal.SIGUSR1)
    host.step(9)
    host.close()
    assert len(traced) == 4
