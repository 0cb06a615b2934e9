"""The Transformer sees no later byte, knows positions, and is one on any mesh and under remat."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..model import VOCAB, Transformer, rotate
from ..workload import byte_losses, flops_per_byte
from .small import CONFIG

TEXT = jax.random.randint(jax.random.key(1), (2, 24), 0, VOCAB)


def test_a_byte_changes_only_what_follows() -> None:
    model = Transformer(CONFIG.model, jax.random.key(0))
    score = jax.jit(lambda text: model(text))
    changed = TEXT.at[:, 10].set(TEXT[:, 10] ^ 1)
    moved = np.abs(np.asarray(score(TEXT) - score(changed))).max((0, 2))
    assert (moved[:10] == 0).all()
    assert (moved[10:] > 0).all()


def test_scores_depend_on_distance_alone() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 2, 1, 8))
    at = lambda start: rotate(jnp.pad(x, ((0, 0), (start, 0), (0, 0), (0, 0))))[0, start:, 0]  # noqa: E731
    near, far = (jnp.dot(*at(start)) for start in (0, 9))
    np.testing.assert_allclose(near, far, rtol=1e-5)
    assert abs(near - jnp.dot(*x[0, :, 0])) > 1e-3, "positions do not matter"


def test_losses_are_of_the_next_byte() -> None:
    model = Transformer(CONFIG.model, jax.random.key(0))
    rows = TEXT.astype(jnp.uint8)
    chances = jax.nn.log_softmax(model(TEXT[:, :-1]))
    expected = -jnp.take_along_axis(chances, TEXT[:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(byte_losses(model, rows), expected, rtol=1e-4)
    assert abs(float(expected.mean()) - np.log(VOCAB)) < 1


def test_remat_changes_memory_and_no_number() -> None:
    rows = TEXT.astype(jnp.uint8)

    def gradient(remat: str) -> jax.Array:
        model = Transformer(replace(CONFIG.model, remat=remat), jax.random.key(0))
        return jax.grad(lambda m: byte_losses(m, rows).sum())(model)

    for policy in ("dots", "full"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            nnx.to_pure_dict(nnx.state(gradient(policy))),
            nnx.to_pure_dict(nnx.state(gradient("none"))),
        )


def test_flops_count_every_parameter_but_gains() -> None:
    model = nnx.eval_shape(lambda: Transformer(CONFIG.model, jax.random.key(0)))
    sizes = [
        (x.shape, x.label) for x in jax.tree.leaves(model, is_leaf=lambda x: hasattr(x, "label"))
    ]
    multiplied = sum(np.prod(shape) for shape, label in sizes if label in ("matrix", "embedding"))
    causal = CONFIG.model.layers * CONFIG.model.width * CONFIG.data.seq_len
    assert flops_per_byte(CONFIG) == 6 * (multiplied + causal)
