"""Writes text token by token, with a cache of keys and values. Trains nothing.

When the context is full, its last half becomes the new context.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from .contract import Artifact, Beat, State
from .model import rope_table
from .step import Learner
from .text.tokenizer import Tokenizer
from .training.attention import masked_attention
from .training.layers import rms_norm
from .training.precision import compute_dtype

type Cache = tuple[Float[Array, "L B S K H"], Float[Array, "L B S K H"]]
"""Keys and values of every layer at each of the S positions of a context."""
type Scalar = float | Float[Array, ""]
type Draw = tuple[Array, Array, Array, Array]
"""Base of the randomness, number of the token, temperature, top_p."""


def make_artifacts(
    learner: Learner, mesh: Mesh, tokenizer: Tokenizer, chars: int = 200
) -> Callable[[State, Beat], dict[str, Artifact]]:
    """State -> {"sample": the beginning of a document as the model writes it now}."""
    generate = make_generate(learner, mesh)

    def artifacts(state: State, beat: Beat) -> dict[str, Artifact]:
        parts = []
        tokens = generate(state["params"], [learner.bos_id], 0, 0.8, 0.95)
        for text in decode_stream(tokens, tokenizer, chars):
            parts.append(text)
            beat()
        return {"sample": "".join(parts)}

    return artifacts


def decode_stream(tokens: Iterator[int], tokenizer: Tokenizer, chars: int) -> Iterator[str]:
    """Text of `chars` characters piece by piece, up to the end of the document."""
    seen: list[int] = []
    shown = ""
    for token in itertools.islice(tokens, 4 * chars):  # a character has four bytes at most
        if token == tokenizer.bos_id or len(shown) == chars:
            return
        seen.append(token)
        # Decode all of it: a character may take several tokens, and is U+FFFD until the last one.
        text = tokenizer.decode(seen).rstrip("\N{REPLACEMENT CHARACTER}")[:chars]
        yield text[len(shown) :]
        shown = text


def make_generate(
    learner: Learner, mesh: Mesh
) -> Callable[[Any, Sequence[int], int, float, float], Iterator[int]]:
    """(parameters, prompt, seed, temperature, top_p) -> tokens that follow, without end.

    The same in all processes. Two compilations, however often it is called and with whatever
    settings: a whole context, and one token.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    seq_len = learner.config.data.seq_len

    def choose_after(params: Any, hidden: Array, draw: Draw) -> Array:
        logits = nnx.merge(learner.graph, nnx.State(params)).logits(hidden)[0, 0]
        key_data, count, temperature, top_p = draw
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), count)
        return choose(logits, key, temperature, top_p)

    # Inputs are NumPy's and outputs replicated: that is sound on several hosts.
    @partial(jax.jit, out_shardings=replicated)
    def first_token(params: Any, tokens: Array, length: Array, draw: Draw) -> tuple[Array, Cache]:
        start = jnp.zeros((), jnp.int32)
        hidden, cache = forward_cached(learner, params, tokens, start, empty_cache(learner))
        hidden = jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)
        return choose_after(params, hidden, draw), cache

    @partial(jax.jit, donate_argnames="cache", out_shardings=replicated)
    def next_token(
        params: Any, token: Array, position: Array, cache: Cache, draw: Draw
    ) -> tuple[Array, Cache]:
        hidden, cache = forward_cached(learner, params, token, position, cache)
        return choose_after(params, hidden, draw), cache

    def generate(
        params: Any, prompt: Sequence[int], seed: int, temperature: float, top_p: float
    ) -> Iterator[int]:
        key_data = np.asarray(jax.random.key_data(jax.random.key(seed)))
        context, cache = list(prompt), None
        for count in itertools.count():
            draw = (key_data, np.int32(count), np.float32(temperature), np.float32(top_p))
            if len(context) > seq_len:
                context, cache = context[-max(1, seq_len // 2) :], None
                if learner.packing == "documents":
                    context[0] = learner.bos_id  # as every row began in training
            if cache is None:
                row = np.array([context + [0] * (seq_len - len(context))], np.int32)
                token, cache = first_token(params, row, np.int32(len(context)), draw)
            else:
                last, position = np.array([context[-1:]], np.int32), np.int32(len(context) - 1)
                token, cache = next_token(params, last, position, cache, draw)
            context.append(int(token))
            yield context[-1]

    return generate


def empty_cache(learner: Learner, rows: int = 1) -> Cache:
    """A cache that holds nothing yet."""
    c = learner.config.model
    shape = (c.layers, rows, learner.config.data.seq_len, c.kv_heads, c.head_dim)
    return (jnp.zeros(shape, compute_dtype(c.compute_dtype)),) * 2


def forward_cached(
    learner: Learner, params: Any, tokens: Int[Array, "B T"], start: Int[Array, ""], cache: Cache
) -> tuple[Float[Array, "B T D"], Cache]:
    """Final hidden states of tokens from position `start` of the context on, and the new cache.

    What a cache holds beyond them is never seen: each position is set before it is attended to.
    """
    model = nnx.merge(learner.graph, nnx.State(params))
    table = jnp.asarray(rope_table(learner.config.model, learner.config.data.seq_len))
    table = jax.lax.dynamic_slice_in_dim(table, start, tokens.shape[1], axis=1)
    positions = start + jnp.arange(tokens.shape[1])
    mask = jnp.arange(learner.config.data.seq_len) <= positions[:, None]
    insert = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
    graph, layers = nnx.split(model.blocks)

    def layer(x: Array, inputs: tuple[Any, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        parameters, keys, values = inputs
        block = nnx.merge(graph, parameters)
        q, k, v = block.query_key_value(x, table)
        keys, values = insert(keys, k), insert(values, v)
        return block.residual(x, masked_attention(q, keys, values, mask[None])), (keys, values)

    x, cache = jax.lax.scan(layer, model.embed(tokens), (layers, *cache))
    return rms_norm(x, model.final_norm[...]), cache


def choose(
    logits: Float[Array, " V"], key: jax.Array, temperature: Scalar, top_p: Scalar
) -> Int[Array, ""]:
    """One token: the likeliest at temperature 0, else drawn from the fewest that make up top_p."""
    scaled = logits / jnp.where(temperature == 0, 1.0, temperature)
    probabilities = jax.nn.softmax(scaled)
    sorted_ = jnp.sort(probabilities, descending=True)
    taken = jnp.cumsum(sorted_) - sorted_ < top_p
    least = jnp.where(taken, sorted_, 1.0).min()
    drawn = jax.random.categorical(key, jnp.where(probabilities >= least, scaled, -jnp.inf))
    return jnp.where(temperature == 0, jnp.argmax(logits), drawn)
