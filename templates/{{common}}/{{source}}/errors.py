"""Exit codes, and the error for a mistake of the user. Handles nothing."""

import enum


class Exit(enum.IntEnum):
    """Exit codes of every command; schedulers tell a bug from a preemption by them."""

    DONE = 0
    BUG = 1
    USER = 2  # configuration or input
    REFUSED = 3  # a result that its own checks do not trust
    PREEMPTED = 42  # saved after SIGTERM: run the same command again
    HUNG = 43  # nothing was done within `hang_timeout_s`
    PEER_LOST = 44  # another process of the job is gone: run the same command again
    INTERRUPTED = 130  # Ctrl-C, after a save


class UserError(Exception):
    """A mistake in configuration or input: shown as one screen without a traceback, exit code 2."""

    def __init__(self, *, got: object, expected: object, do: str) -> None:
        super().__init__(f"got:      {got}\nexpected: {expected}\nto do:    {do}")
        self.got, self.expected = got, expected
