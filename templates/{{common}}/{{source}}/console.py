"""Standard output and error of the console script: closed, full, without a reader, not UTF-8.

What goes wrong with them never stops a training and never hides its exit code. Prints nothing.
"""

import contextlib
import io
import os
import sys


class Forgiving(io.TextIOWrapper):
    """Standard error that drops what nobody can read: `train 2>&1 | tee log` and Ctrl-C end `tee`
    first, and a thread or signal handler that fails to say something must do its work."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def open_console() -> None:
    """Make both streams usable; call before anything is printed or another file is opened."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`: the next file would take its number
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know all characters
    if isinstance(sys.stderr, io.TextIOWrapper) and not isinstance(sys.stderr, Forgiving):
        # A second stream on the same file: others may hold the first one.
        raw = open(sys.stderr.fileno(), "wb", closefd=False)  # noqa: SIM115
        sys.stderr = Forgiving(raw, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def flush_output(last: str = "") -> OSError | None:
    """Write out what was printed, then `last`; the error, after which the stream leads nowhere."""
    try:
        sys.stdout.write(last)
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer fails again at exit, and Python would then end with 120.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return error
    return None
