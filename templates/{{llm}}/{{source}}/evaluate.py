"""Held-out loss, exact bits per byte, and those of gzip and xz on the same bytes."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from .contract import Beat, State
from .data import Read, full_windows, heldout_rows, heldout_windows
from .step import Learner, token_losses
from .text.compressors import compress_heldout
from .text.shards import Split
from .training.axes import spec


def make_evaluate(
    learner: Learner, split: Split, mesh: Mesh
) -> Callable[[State, Beat], dict[str, float]]:
    """State -> mean held-out loss, nats a token, of `eval_rows` windows spread over the split."""
    data = learner.config.data
    windows = heldout_windows(split.document_starts, data.seq_len, data.seq_len)
    count = min(data.eval_rows, len(windows))
    chosen = windows[np.linspace(0, len(windows) - 1, count).round().astype(int)]
    score = make_score(learner, mesh)

    def evaluate(state: State, beat: Beat) -> dict[str, float]:
        nats, tokens = score(state["params"], split.read, chosen, beat)
        return {"heldout_loss": nats / tokens}

    return evaluate


def bits_per_byte(
    learner: Learner, params: Any, split: Split, mesh: Mesh, beat: Beat = lambda: None
) -> dict[str, Any]:
    """Every byte of the held-out documents, each token with at least half a row of context.

    Left out where decoding does not return every byte: the figure would be too low.
    """
    windows, documents = full_windows(split, learner.config.data.seq_len)
    nats, _ = make_score(learner, mesh)(params, split.read, windows, beat)
    size_bytes = sum(map(len, itertools.islice(split.texts(), documents)))
    figures: dict[str, Any] = {}
    if split.lossless:
        figures["heldout_bits_per_byte"] = nats / math.log(2) / size_bytes
    return figures | {"scored_documents": documents, "scored_text_bytes": size_bytes}


def baselines(split: Split, seq_len: int, beat: Beat = lambda: None) -> dict[str, dict[str, float]]:
    """Bits per byte of gzip -9 and xz -9 on the documents that `bits_per_byte` scores.

    Process 0 has them, as it alone writes the summary; the others have nothing.
    """
    if jax.process_index() != 0:
        return {}
    return {"baselines": compress_heldout(split, full_windows(split, seq_len)[1], beat)}


def make_score(
    learner: Learner, mesh: Mesh, at_once: float | None = None
) -> Callable[[Any, Read, np.ndarray, Beat], tuple[float, int]]:
    """(parameters, read, windows) -> summed nats of the scored targets, and how many they are.

    at_once: windows in a batch, rounded up to what the mesh divides; None = a micro-batch.
    """
    data, replicas = learner.config.data, mesh.shape["data"] * mesh.shape["fsdp"]
    at_once = at_once or data.batch_size / learner.config.optim.micro_batches
    size = math.ceil(at_once / replicas) * replicas
    sharding = NamedSharding(mesh, spec("batch", None))

    @jax.jit
    def nats(params: Any, tokens: jax.Array, scored: jax.Array) -> jax.Array:
        losses, _, _ = token_losses(learner, params, tokens)
        return jnp.where(scored, losses, 0).sum()

    def score(params: Any, read: Read, windows: np.ndarray, beat: Beat) -> tuple[float, int]:
        total, count = 0.0, 0
        for part in itertools.batched(windows, size):
            chosen = np.array(part)
            found = heldout_rows(read, learner.bos_id, chosen, data.seq_len, learner.packing)
            rows = [np.pad(x, ((0, size - len(part)), (0, 0))) for x in found]
            placed = (jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for x in rows)
            total += float(nats(params, *placed))
            count += int(rows[1].sum())
            beat()
        return total, count

    return score
