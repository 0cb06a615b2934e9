"""The Transformer is causal, follows its closed forms and is the same however it is compiled."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from .. import attention
from ..attention import attend
from ..config import ModelConfig
from ..model import rope_table, rotate
from ..step import init_state, objective, token_losses, train_step
from ..training.layers import annotation, rms_norm
from . import tiny
from .tiny import BOS, VOCAB

TOKENS = jnp.asarray(tiny.random_tokens(2, 17))


@functools.cache
def loss_and_gradient(**model: Any) -> tuple[Any, Any]:
    fn = functools.partial(objective, tiny.learner(**model))
    (loss, _), gradient = jax.jit(jax.value_and_grad(fn, has_aux=True))(tiny.parameters(), TOKENS)
    return loss, gradient


def assert_close(left: Any, right: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right)


def logits(hidden: jax.Array, **model: Any) -> np.ndarray:
    learner = tiny.learner(**model)
    transformer = nnx.merge(learner.graph, nnx.State(tiny.parameters(**model)))
    return np.asarray(transformer.logits(hidden))


def test_a_target_sees_its_own_document_up_to_itself() -> None:
    # With untied embeddings, a row of the matrix acts only where its token is an input.
    untied = {"tied_embeddings": False}
    learner, parameters = tiny.learner(**untied), tiny.parameters(**untied)
    tokens = jnp.array([[BOS, 1, 2, 3, BOS, 5, 6, 7, 8]])

    def losses(embedding: jax.Array) -> jax.Array:
        return token_losses(learner, parameters | {"embedding": embedding}, tokens)[0][0]

    jacobian = np.abs(jax.jit(jax.jacrev(losses))(parameters["embedding"])).sum(-1)  # (8, V)
    sees = np.tril(np.ones((8, 8), bool))
    sees[4:, :4] = False
    text = [1, 2, 3, 5, 6, 7]  # positions of inputs that stand once in the row
    np.testing.assert_array_equal(jacobian[:, tokens[0, text]] > 0, sees[:, text])


def test_scan_equals_a_loop_over_the_layers() -> None:
    learner, parameters = tiny.learner(), tiny.parameters()

    @jax.jit
    def looped(parameters: Any) -> jax.Array:
        model = nnx.merge(learner.graph, nnx.State(parameters))
        mix = lambda q, k, v: attend(q, k, v, None, "xla")  # noqa: E731
        x, table = model.embedding[...][TOKENS], jnp.asarray(rope_table(tiny.MODEL, 17))
        graph, layers = nnx.split(model.blocks)
        for layer in range(tiny.MODEL.layers):
            x = nnx.merge(graph, jax.tree.map(lambda w: w[layer], layers))(x, table, mix)  # noqa: B023
        return rms_norm(x, model.final_norm[...])

    @functools.partial(jax.jit, static_argnums=1)
    def scanned(parameters: Any, unroll: int) -> jax.Array:
        model = nnx.merge(tiny.learner(scan_unroll=unroll).graph, nnx.State(parameters))
        return model(TOKENS, lambda q, k, v: attend(q, k, v, None, "xla"))

    for unroll in (1, 2):
        assert_close(scanned(parameters, unroll), looped(parameters), atol=1e-5)
    loops = ["while" in scanned.lower(parameters, unroll).as_text() for unroll in (1, 2)]
    assert loops == [True, False]


def test_every_parameter_of_every_layer_acts() -> None:
    _, gradient = loss_and_gradient()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        moved = jnp.abs(leaf.reshape(leaf.shape[0], -1)).max(1) > 0
        assert moved[: tiny.VOCAB].all(), jax.tree_util.keystr(path)


def test_remat_keeps_less_and_computes_the_same() -> None:
    kept_bytes = {}
    for remat in ("none", "dots", "full"):
        assert_close(loss_and_gradient(remat=remat), loss_and_gradient(), rtol=1e-5, atol=1e-5)
        fn = functools.partial(objective, tiny.learner(remat=remat), tokens=TOKENS)
        kept = jax.eval_shape(lambda p, fn=fn: jax.vjp(fn, p, has_aux=True)[1], tiny.parameters())
        kept_bytes[remat] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
    assert kept_bytes["full"] < kept_bytes["dots"] < kept_bytes["none"]


@pytest.mark.parametrize(("length", "kv_heads"), [(5, 4), (16, 2), (37, 1)])
def test_attention_equals_its_definition(
    length: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, length, n, 8)).astype(np.float32) for n in (4, *[kv_heads] * 2))
    segments = np.sort(rng.integers(0, 3, (2, length)))
    expected = np.zeros((2, length, 4, 8))
    for row, t, head in np.ndindex(2, length, 4):
        pair = head // (4 // kv_heads)
        seen = [s for s in range(t + 1) if segments[row, s] == segments[row, t]]
        powers = np.exp(k[row, seen, pair] @ q[row, t, head] / np.sqrt(8))
        expected[row, t, head] = powers / powers.sum() @ v[row, seen, pair]
    mixed = jax.jit(lambda *qkv: attend(*qkv, jnp.asarray(segments), "xla"))(q, k, v)
    assert_close(mixed, expected.reshape(2, length, -1), atol=1e-5)
    ours = jax.jit(lambda *qkv: attend(*qkv, None, "xla"))(q, k, v)
    theirs = jax.nn.dot_product_attention(*map(jnp.asarray, (q, k, v)), is_causal=True)
    assert_close(ours, theirs.reshape(2, length, -1), atol=1e-5)


def test_a_longer_row_makes_the_program_longer_by_its_tokens_not_by_their_square() -> None:
    def text_bytes(length: int) -> int:
        tokens = jax.ShapeDtypeStruct((1, length + 1), "int32")
        lowered = jax.jit(functools.partial(objective, tiny.learner())).lower(
            tiny.parameters(), tokens
        )
        return len(lowered.as_text())

    short, long = text_bytes(1024), text_bytes(4096)
    # RoPE's table: cosine and sine, four pairs, eight hexadecimal digits for each.
    assert long - short < 3072 * 2 * 4 * 8 + 150_000


def test_rope_makes_scores_depend_on_distance_alone() -> None:
    table = jnp.asarray(rope_table(tiny.MODEL, 24))
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    q, k = (rotate(jnp.tile(x, (1, 24, 1, 1)), table)[0, :, 0] for x in (q, k))
    scores = np.asarray(q @ k.T)
    for distance in (0, 1, 7, 23):
        diagonal = np.diagonal(scores, -distance)
        assert_close(diagonal, np.full_like(diagonal, diagonal[0]), atol=1e-5)
    assert np.ptp(scores[:, 0]) > 0.1


def test_rope_stretches_low_frequencies_as_llama_does() -> None:
    config = ModelConfig(head_dim=128, rope_theta=5e5, rope_factor=8.0, rope_context=8192)
    cos, sin = rope_table(config, 2)[:, 1]
    for pair, stretched in enumerate(np.arctan2(sin, cos)):
        plain = 5e5 ** (-pair / 64)
        wavelength = 2 * np.pi / plain
        smooth = (8192 / wavelength - 1) / 3
        between = (1 - smooth) * plain / 8 + smooth * plain
        expected = plain if wavelength < 2048 else plain / 8 if wavelength > 8192 else between
        np.testing.assert_allclose(stretched, expected, rtol=1e-5)


def test_norm_is_computed_in_float32() -> None:
    x, gain = 1e4 * jax.random.normal(jax.random.key(0), (3, 64)), jnp.linspace(0.5, 2, 64)
    wide = np.asarray(x.astype(jnp.bfloat16), np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True)) * np.asarray(gain)
    assert_close(rms_norm(x, gain), rms_norm(100 * x, gain), rtol=1e-5)
    narrow = rms_norm(x.astype(jnp.bfloat16), gain)
    assert narrow.dtype == jnp.bfloat16
    assert_close(narrow.astype(jnp.float32), expected, rtol=2**-8)  # the last rounding alone


@pytest.mark.parametrize("tied", [True, False])
def test_logits(tied: bool) -> None:
    hidden = jax.random.normal(jax.random.key(0), (1, 5, 32))
    parameters = tiny.parameters(tied_embeddings=tied)
    assert ("head" in parameters) is not tied
    raw = hidden @ parameters["embedding" if tied else "head"][:VOCAB].T
    plain = logits(hidden, tied_embeddings=tied)
    assert_close(plain[..., :VOCAB], raw, atol=1e-5)
    assert (np.asarray(jax.nn.softmax(plain))[..., VOCAB:] == 0).all()
    capped = logits(hidden, tied_embeddings=tied, logit_cap=2.0)
    assert_close(capped[..., :VOCAB], 2 * np.tanh(raw / 2), atol=1e-5)


def test_bfloat16_multiplies_and_float32_remembers() -> None:
    learner = tiny.learner(compute_dtype="bfloat16", qk_norm=False)
    parameters = tiny.parameters(qk_norm=False)
    fn = jax.value_and_grad(lambda params: token_losses(learner, params, TOKENS)[0].sum())
    with jax.numpy_dtype_promotion("strict"):  # nothing is widened by accident
        traced = jax.make_jaxpr(fn)(parameters)
    found = [product for product, _ in tiny.products(traced.jaxpr)]
    # Of each matrix one product forward and two backward, and those of attention and the head.
    matrices = jax.tree.leaves(annotation(learner.declared, "label")).count("matrix")
    assert len(found) >= 3 * (matrices + 2 + 1)
    assert {x.aval.dtype for product in found for x in product.invars} == {jnp.dtype("bfloat16")}
    # Logits are float32 at once, as are scores and mixed values.
    assert sum(product.outvars[0].aval.dtype == "float32" for product in found) >= 3
    head = nnx.merge(learner.graph, nnx.State(parameters)).logits
    traced = jax.make_jaxpr(head)(jnp.ones((1, 5, 32), jnp.bfloat16))
    ((product, _),) = tiny.products(traced.jaxpr)
    assert product.outvars[0].aval.dtype == "float32"
    state = jax.eval_shape(functools.partial(init_state, learner), jax.random.key(0))
    batch = {"tokens": jax.ShapeDtypeStruct(tiny.SHAPE, "int32")}
    after = jax.eval_shape(functools.partial(train_step, learner), state, batch)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(after)}
    assert dtypes == {"float32", "int32", "key<fry>"}  # masters, counters, base of randomness
    (narrow, _), (wide, _) = loss_and_gradient(compute_dtype="bfloat16"), loss_and_gradient()
    assert 0 < abs(narrow / wide - 1) < 0.01
