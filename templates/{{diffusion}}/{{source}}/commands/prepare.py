"""`prepare`: images to shards, ahead of time."""

from ..errors import Exit
from ..images.settings import ImageConfig


def prepare(*, data: ImageConfig) -> int:
    """Turn images into shards; `train` does it too where they are missing."""
    from ..images.prepare import prepare
    from ..images.shards import describe

    print(describe(prepare(data)))
    return Exit.DONE
