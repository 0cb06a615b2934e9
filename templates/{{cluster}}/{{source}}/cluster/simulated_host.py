"""A host of `simulate`: the project's command, in a process that does not outlive its starter.

    python -m PACKAGE.cluster.simulated_host STARTER WORDS...    # STARTER: a process id

Also raises an exception in the main thread on SIGUSR2, which is how the fault `raise` does it.
Knows nothing of manifests. No part of a real job.
"""

import contextlib
import ctypes
import os
import runpy
import signal
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1  # prctl(2), Linux alone


def main() -> None:
    """Run the console script with WORDS."""
    starter = int(sys.argv.pop(1))
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != starter:  # it ended before the line above
        os._exit(1)
    signal.signal(signal.SIGUSR2, _raise)
    package = str(__package__).partition(".")[0]
    runpy.run_module(package, run_name="__main__", alter_sys=True)


def _raise(_: int, __: FrameType | None) -> None:
    raise RuntimeError("raised by simulate")


if __name__ == "__main__":
    main()
