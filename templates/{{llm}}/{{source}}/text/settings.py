"""Settings of the corpus, its tokens and the batches. Imports no JAX."""

from dataclasses import dataclass
from typing import Literal

from ..run_config import identity, setting

type Packing = Literal["segments", "documents"]
"""`segments`: row i is tokens [i T, i T + T] of the stream: the model must not attend across BOS.
`documents`: BOS and a piece of one document, for attention kernels without segments."""


@dataclass(frozen=True)
class TextConfig:
    """Which text, and how it becomes tokens: all that `prepare` needs."""

    paths: tuple[str, ...] = ()  # .txt .jsonl(.gz) .parquet, folders, globs; none = Python's own
    text_field: str = "text"  # of JSON lines and parquet rows
    prepared_dir: str = "data/stdlib"  # token shards and their manifest
    tokenizer: str = "bpe"  # byte, bpe (trained on the corpus) or the path of a tokenizer.json
    vocab_size: int = setting(4096)  # of the BPE that is trained
    heldout_fraction: float = setting(0.06, below=1)  # of the documents' groups, by hash
    # Of the documents; `prepare` refuses more, empty ones aside.
    max_unusable_fraction: float = setting(0.05, least=0, most=1)


@dataclass(frozen=True)
class DataConfig(TextConfig):
    """The text, and how its tokens become batches."""

    seq_len: int = identity(256)  # tokens a row
    batch_size: int = identity(32)  # rows a step, over all devices
    packing: Literal["auto", "segments", "documents"] = "auto"  # by the kernel
    eval_rows: int = setting(256)  # held-out rows of an evaluation during training
