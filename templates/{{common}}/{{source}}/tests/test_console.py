"""Output that is closed, full, unread or not UTF-8, and words that cannot be taken: exit codes."""

import inspect
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .. import cli
from ..console import Forgiving, flush_output, open_console
from ..errors import Exit

COMMANDS = cli.find_commands()
TRAIN = next(name for name, fn in COMMANDS.items() if "config" in inspect.signature(fn).parameters)


def unread() -> io.TextIOWrapper:
    """A stream whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="utf-8")


def full() -> io.TextIOWrapper:
    """A stream to a full disk."""
    return open("/dev/full", "w", encoding="utf-8")


def streams(monkeypatch: pytest.MonkeyPatch, stdout: Any = None) -> io.StringIO:
    """Give the process this standard output, and a standard error, which is returned.

    A fixture cannot: pytest sets both streams anew when the test begins.
    """
    ours, errors = logging.getLogger(cli.__package__), io.StringIO()
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "propagate", True)
    monkeypatch.setattr(logging.lastResort, "level", logging.WARNING)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(sys, "stdout", stdout or io.StringIO())
    return errors


def end_of(command: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the console script with a command of this body."""
    monkeypatch.setitem(COMMANDS, "talk", command)
    monkeypatch.delitem(sys.modules, "jax", raising=False)  # or a failure would end this process
    with pytest.raises(SystemExit) as end:
        cli.main(["talk"])
    assert sys.stdout.flush() is None, "Python would end with 120"
    return int(end.value.code or 0)


@pytest.mark.parametrize("size", [1, 100_000])  # what a buffer holds, and more
@pytest.mark.parametrize(
    ("stream", "expected", "said"),
    [
        (unread, Exit.DONE, ""),  # as `| head` has it
        (full, Exit.USER, "No space left"),
    ],
)
def test_output_that_is_lost(
    stream: Callable[[], io.TextIOWrapper],
    expected: int,
    said: str,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = streams(monkeypatch, stream())
    assert end_of(lambda: print("x" * size) or Exit.DONE, monkeypatch) == expected
    assert said in errors.getvalue()
    assert "Traceback" not in errors.getvalue()


@pytest.mark.parametrize("stream", [unread, full])
def test_lost_output_hides_no_other_exit_code(
    stream: Callable[[], io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams(monkeypatch, stream())
    assert end_of(lambda: print("little") or Exit.PREEMPTED, monkeypatch) == Exit.PREEMPTED


def test_a_pipe_of_our_own_that_breaks_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = streams(monkeypatch)

    def fail() -> int:
        raise BrokenPipeError("of a tracker")

    assert end_of(fail, monkeypatch) == Exit.BUG
    assert "of a tracker" in errors.getvalue()


def test_closed_streams_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    open_console()
    print("a")
    print("b", file=sys.stderr)
    assert sys.stdout.isatty() is False
    assert flush_output() is None


def test_an_error_message_that_nobody_reads_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", unread())
    open_console()
    assert isinstance(sys.stderr, Forgiving)
    print("stopping after this step", file=sys.stderr, flush=True)
    sys.stderr.flush()


def test_characters_that_a_terminal_does_not_know_are_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    open_console()
    print("é☃", flush=True)
    assert written.getvalue() == b"\\xe9\\u2603\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([TRAIN, "--run-dir", "runs/\udcff"], "'runs/\\udcff'"),
        (["report", "--run-dir", "\udc80"], "UTF-8"),
        ([TRAIN, "--run-dir", ""], "a folder of a mounted file system"),
        ([TRAIN, "--config", "."], "Is a directory"),
        (["bench", "--timed-steps", "0"], "--timed-steps 0\nexpected: at least 1"),
        (["bench", "--timed-steps", "-3"], "--timed-steps -3\nexpected: at least 1"),
    ],
)
def test_words_that_are_refused(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(argv)[0] == Exit.USER
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "abc", "-1", ""])
def test_a_count_of_devices_that_jax_cannot_take(
    count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", count)
    assert cli.run(["bench"])[0] == Exit.USER
    assert f"JAX_NUM_CPU_DEVICES={count}\nexpected: a whole number" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ..records import store

    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/x")):
        monkeypatch.setitem(COMMANDS, "talk", lambda folder=folder: store.make_folder(folder))
        assert cli.run(["talk"])[0] == Exit.USER
    store.make_folder(tmp_path / "a b 'é☃\" # %?" / "run")
