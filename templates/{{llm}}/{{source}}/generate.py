"""Writes text from a checkpoint, token by token, with a cache of keys and values. Trains nothing.

A context that is full slides: its last half is read again and writing goes on after it.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from .errors import UserError
from .model import rope_table
from .step import Learner
from .trained import open_run
from .training.attention import masked_attention
from .training.precision import compute_dtype

type Cache = tuple[Float[Array, "L B S K H"], Float[Array, "L B S K H"]]
"""Keys and values of every layer at each of the S places of a context."""


def sample(
    run_dir: str, *, prompt: str, chars: int, temperature: float, top_p: float, seed: int
) -> None:
    """Print the prompt and what follows: `chars` characters, fewer where the document ends."""
    if not (chars >= 0 and temperature >= 0 and 0 < top_p <= 1):
        raise UserError(
            got=f"--chars {chars} --temperature {temperature} --top-p {top_p}",
            expected="chars >= 0, temperature >= 0, 0 < top-p <= 1",
            do="temperature 0 always takes the likeliest token; top-p 1 allows every token",
        )
    run = open_run(run_dir)
    start = [run.learner.bos_id, *map(int, run.tokenizer.encode_batch([prompt])[0])]
    tokens = generate(run.learner, run.params, start, temperature, top_p, seed)
    print(prompt, end="", flush=True)
    written: list[int] = []
    shown = ""
    for token in itertools.islice(tokens, 4 * chars):  # a character has four bytes at most
        if token == run.learner.bos_id or len(shown) == chars:
            break
        written.append(token)
        # All of it each time: a character may take several tokens, and is U+FFFD until the last.
        text = run.tokenizer.decode(written).rstrip("\N{REPLACEMENT CHARACTER}")[:chars]
        print(text[len(shown) :], end="", flush=True)
        shown = text
    print()


def generate(
    learner: Learner,
    params: Any,
    prompt: Sequence[int],
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[int]:
    """Tokens after `prompt`, without end. Two compilations: a whole context, and one token."""

    @partial(jax.jit, donate_argnames="cache")
    def write(
        params: Any, tokens: Array, start: Array, last: Array, cache: Cache, key: Array
    ) -> tuple[Array, Cache]:
        hidden, cache = read(learner, params, tokens, start, cache)
        hidden = jax.lax.dynamic_slice_in_dim(hidden, last, 1, axis=1)
        logits = nnx.merge(learner.graph, nnx.State(params)).logits(hidden)[0, 0]
        return choose(logits, key, temperature, top_p), cache

    seq_len, key = learner.config.data.seq_len, jax.random.key(seed)
    context = list(prompt)
    place = 0  # how many tokens of the context the cache holds
    for count in itertools.count():
        if len(context) > seq_len:
            context, place = context[-max(1, seq_len // 2) :], 0
            if learner.packing == "documents":
                context[0] = learner.bos_id  # as every row began in training
        new, last = context[place:], len(context) - 1 - place
        if place == 0:
            cache, new = empty_cache(learner), new + [0] * (seq_len - len(new))
        now = jax.random.fold_in(key, count)
        token, cache = write(params, np.array([new], np.int32), place, last, cache, now)
        place = len(context)
        context.append(int(token))
        yield context[-1]


def empty_cache(learner: Learner, rows: int = 1) -> Cache:
    """A cache that holds nothing yet."""
    c = learner.config.model
    shape = (c.layers, rows, learner.config.data.seq_len, c.kv_heads, c.head_dim)
    return jnp.zeros(shape, compute_dtype(c.compute_dtype)), jnp.zeros(
        shape, compute_dtype(c.compute_dtype)
    )


def read(
    learner: Learner, params: Any, tokens: Int[Array, "B T"], start: Int[Array, ""], cache: Cache
) -> tuple[Float[Array, "B T D"], Cache]:
    """Final hidden states of tokens that stand at `start` of the context, and the cache with them.

    What a cache holds beyond them is never seen: each place is written before it is attended to.
    """

    def attention(q: Array, k: Array, v: Array, kept: Any) -> tuple[Array, Any]:
        insert = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        keys, values = insert(kept[0], k), insert(kept[1], v)
        places = start + jnp.arange(q.shape[1])
        mask = jnp.arange(keys.shape[1]) <= places[:, None]
        return masked_attention(q, keys, values, mask[None]), (keys, values)

    config = learner.config
    table = jnp.asarray(rope_table(config.model, config.data.seq_len))
    table = jax.lax.dynamic_slice_in_dim(table, start, tokens.shape[1], axis=1)
    model = nnx.merge(learner.graph, nnx.State(params))
    return model(tokens, attention, table=table, kept=cache)


def choose(
    logits: Float[Array, " V"], key: jax.Array, temperature: float, top_p: float
) -> Int[Array, ""]:
    """One token: the likeliest at temperature 0, else drawn from the fewest that make up top_p."""
    if temperature == 0:
        return jnp.argmax(logits)
    probabilities = jax.nn.softmax(logits / temperature)
    sorted_ = jnp.sort(probabilities, descending=True)
    taken = jnp.cumsum(sorted_) - sorted_ < top_p
    least = jnp.where(taken, sorted_, 1.0).min()
    return jax.random.categorical(
        key, jnp.where(probabilities >= least, logits / temperature, -jnp.inf)
    )
