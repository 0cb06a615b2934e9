"""`prepare`: text to token shards, ahead of time."""

from ..errors import Exit
from . import Settings


def prepare(*, config: Settings) -> int:
    """Turn text into token shards; `train` does it too where they are missing."""
    from ..text.prepare import describe, prepare

    print(describe(prepare(config.data)))
    return Exit.DONE
