"""Held-out loss, exact bits per byte, and those of gzip and xz on the same bytes."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from .contract import Beat, State
from .data import full_windows, heldout_rows, heldout_windows
from .runtime.distributed import barrier
from .step import Learner, token_losses
from .text.compressors import compress_heldout
from .text.shards import Split
from .training.axes import spec


def make_evaluate(
    learner: Learner, split: Split, mesh: Mesh
) -> Callable[[State, Beat], dict[str, float]]:
    """State -> mean held-out loss, nats a token, of `eval_rows` windows spread over the split."""
    windows = heldout_windows(split, learner.config.data.seq_len, learner.config.data.seq_len)
    count = min(learner.config.data.eval_rows, len(windows))
    chosen = windows[np.linspace(0, len(windows) - 1, count).round().astype(int)]
    score = make_score(learner, split, mesh)

    def evaluate(state: State, beat: Beat) -> dict[str, float]:
        nats, tokens = score(state["params"], chosen, beat)
        return {"heldout_loss": nats / tokens}

    return evaluate


def bits_per_byte(
    learner: Learner, params: Any, split: Split, mesh: Mesh, beat: Beat = lambda: None
) -> dict[str, float]:
    """Every byte of the held-out documents, each token with at least half a row of context.

    Left out where decoding does not return every byte: the figure would be too low.
    """
    windows, documents = full_windows(split, learner.config.data.seq_len)
    nats, _ = make_score(learner, split, mesh)(params, windows, beat)
    size_bytes = sum(map(len, itertools.islice(split.texts(), documents)))
    figures: dict[str, float] = {}
    if split.lossless:
        figures["heldout_bits_per_byte"] = nats / math.log(2) / size_bytes
    return figures | {"heldout_documents": documents, "heldout_bytes": size_bytes}


def baselines(split: Split, seq_len: int) -> dict[str, dict[str, float]]:
    """Bits per byte of gzip -9 and xz -9 on the documents that `bits_per_byte` scores.

    Process 0 has them; the others wait, so that none is alone in a collective or at its end.
    """
    found = {}
    if jax.process_index() == 0:
        found = {"baselines": compress_heldout(split, full_windows(split, seq_len)[1])}
    barrier("baselines")
    return found


def make_score(
    learner: Learner, split: Split, mesh: Mesh
) -> Callable[[Any, np.ndarray, Beat], tuple[float, int]]:
    """(parameters, windows) -> summed nats of the scored targets, and how many they are."""
    config = learner.config
    size, replicas = config.data.batch_size, mesh.shape["data"] * mesh.shape["fsdp"]
    # A micro-batch, rounded up where the devices are not those of the training.
    size = math.ceil(size / config.optim.micro_batches / replicas) * replicas
    sharding = NamedSharding(mesh, spec("batch", None))

    @jax.jit
    def nats(params: Any, tokens: jax.Array, scored: jax.Array) -> jax.Array:
        losses, _, _ = token_losses(learner, params, tokens)
        return jnp.where(scored, losses, 0).sum()

    def batches(windows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part in itertools.batched(windows, size):
            rows = heldout_rows(split, np.array(part), config.data.seq_len, learner.packing)
            tokens, scored = (np.pad(x, ((0, size - len(part)), (0, 0))) for x in rows)
            yield tokens, scored

    def score(params: Any, windows: np.ndarray, beat: Beat) -> tuple[float, int]:
        total, count = 0.0, 0
        for rows in batches(windows):
            placed = (jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for x in rows)
            total += float(nats(params, *placed))
            count += int(rows[1].sum())
            beat()
        return total, count

    return score
