"""`prepare`: text to token shards, ahead of time."""

from ..errors import Exit
from . import Settings


def prepare(*, config: Settings) -> int:
    """Turn text into token shards; `train` does it too where they are missing."""
    from ..data import full_windows
    from ..text.compressors import compress_heldout
    from ..text.prepare import describe, prepare
    from ..text.shards import open_split

    print(describe(prepare(config.data)))
    heldout = open_split(config.data.prepared_dir, "heldout")
    compress_heldout(heldout, full_windows(heldout, config.data.seq_len)[1])
    return Exit.DONE
