"""`prepare`: text to token shards, ahead of time."""

from ..errors import Exit
from ..text.settings import TextConfig


def prepare(*, data: TextConfig) -> int:
    """Turn text into token shards; `train` does it too where they are missing."""
    from ..text.prepare import describe, prepare

    print(describe(prepare(data)))
    return Exit.DONE
