"""The step: ten golden losses, equal on any mesh and for packed rows, exact sharding and FLOPs."""

import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ..errors import UserError
from ..run_config import MeshConfig
from ..runtime.sharding import make_mesh
from ..step import Learner, flops_per_token, init_state, objective, token_losses, train_step
from ..text.tokenizer import ByteTokenizer
from ..training.axes import spec
from ..training.layers import annotation
from ..workload import make_dry_workload, make_workload
from . import tiny
from .tiny import BOS, CONFIG, SHAPE, VOCAB

GOLDEN = Path(__file__).resolve().parent / "golden"
BATCHES = [tiny.random_tokens(*SHAPE, seed=seed) for seed in range(3)]
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (4, 1, 2), "mixed": (2, 2, 2)}


@functools.cache
def score() -> Callable[[np.ndarray], list[np.ndarray]]:
    """Tokens (4, 33) -> losses, which count, logsumexp."""
    fn = jax.jit(functools.partial(token_losses, tiny.learner()))
    return lambda tokens: [np.asarray(x) for x in fn(tiny.parameters(), tokens)]


def test_packed_equals_unpacked() -> None:
    rows = np.full((4, 33), -1, np.int32)
    rows[:1] = tiny.random_tokens(1, 33)
    rows[0, [7, 20]] = BOS
    for row, (start, end) in enumerate([(0, 7), (7, 20), (20, 33)], 1):
        rows[row, : end - start] = rows[0, start:end]
    losses, counted, _ = score()(rows)
    np.testing.assert_array_equal(counted.sum(1), [32, 6, 12, 12])
    text = rows[0, 1:] != BOS
    np.testing.assert_allclose(losses[0, text], losses[1:][counted[1:]], rtol=2e-5)


def test_objective_is_cross_entropy_plus_z_loss() -> None:
    tokens, learner = tiny.random_tokens(4, 33), tiny.learner(z_loss=0.01)
    tokens[1, 5:] = -1
    total, sums = jax.jit(functools.partial(objective, learner))(tiny.parameters(), tokens)
    losses, counted, normaliser = score()(tokens)
    assert sums["weight"] == counted.sum() == 3 * 32 + 4
    np.testing.assert_allclose(sums["loss"], losses[counted].sum(), rtol=1e-5)
    np.testing.assert_allclose(total - sums["loss"], 0.01 * (normaliser[counted] ** 2).sum(), 1e-3)


def test_golden_losses() -> None:
    text = (GOLDEN / "text.txt").read_text()
    stream = [np.append(BOS, ids) for ids in ByteTokenizer().encode_batch(text.split("\n\n"))]
    rows = np.resize(np.concatenate(stream), (4, *SHAPE)).astype(np.int32)
    _, losses = tiny.train([rows[step % 4] for step in range(10)])
    path = GOLDEN / "losses.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps([round(loss, 5) for loss in losses], indent=2) + "\n")
    # Other chips and versions of XLA add up in another order: that stays under 1e-4 in ten steps.
    np.testing.assert_allclose(
        losses,
        json.loads(path.read_text()),
        rtol=1e-3,
        err_msg="The step no longer trains as it did. If that is meant, write the losses anew:\n"
        "    UPDATE_GOLDEN=1 uv run pytest -k golden\n"
        "and commit them with the change that moved them.",
    )


def test_overfits_one_batch() -> None:
    state, losses = tiny.train([np.tile(tiny.random_tokens(1, 33), (2, 8, 1))] * 30)
    assert abs(losses[0] - np.log(VOCAB)) < 1
    assert losses[-1] < 0.03
    assert state["step"] == 30
    assert state["skipped"] == 0
    # Randomness is fold_in(key, step): a step that moved the base key would not resume alike.
    start = tiny.compiled()[1]["key"]
    np.testing.assert_array_equal(jax.random.key_data(state["key"]), jax.random.key_data(start))


def test_flops_per_token() -> None:
    causal = 2 * 4 * 8 * 32  # scores and mixing, 2 products over half of 32 tokens, for 2 layers
    for tied in (True, False):
        learner = tiny.learner(tied_embeddings=tied)

        def forward(params: Any, learner: Learner = learner) -> jax.Array:
            model = nnx.merge(learner.graph, nnx.State(params))
            mixed = lambda q, k, v: q.reshape(*q.shape[:2], -1)  # noqa: E731
            return model.logits(model(jnp.zeros((1, 32), jnp.int32), mixed))

        traced = jax.make_jaxpr(forward)(tiny.parameters(tied_embeddings=tied))
        multiplied = 0
        for product, times in tiny.products(traced.jaxpr):
            ((summed, _), _), left = product.params["dimension_numbers"], product.invars[0].aval
            length = math.prod(left.shape[axis] for axis in summed)
            multiplied += times * length * product.outvars[0].aval.size
        # A product and its two gradients are 2 FLOPs for each pair of numbers.
        expected = 6 * (multiplied / 32 + causal)
        assert flops_per_token(learner) == expected, (
            "flops_per_token in step.py counts other products than the model has: see its labels"
        )


@pytest.mark.parametrize("axis", MESHES)
def test_mesh_equals_one_device(axis: str) -> None:
    optimizer = "muon" if axis == "mixed" else "adamw"
    one, losses = tiny.train(BATCHES, optimizer)
    many, sharded = tiny.train(BATCHES, optimizer, MESHES[axis])
    np.testing.assert_allclose(sharded, losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-4),
        many["params"],
        one["params"],
    )


def test_shardings_are_what_the_table_says() -> None:
    optimizer, sizes = "muon", MESHES["mixed"]
    mesh = tiny.compiled(optimizer, sizes)[0]
    state, _ = tiny.train(BATCHES[:1], optimizer, sizes)
    declared = jax.tree_util.tree_leaves_with_path(
        annotation(tiny.learner().declared, "axes"), is_leaf=lambda x: isinstance(x, tuple)
    )
    wrong, seen = {}, Counter[Any]()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        # A parameter, or what the optimizer keeps of it under the same path.
        of = [(p, axes) for p, axes in declared if path[-len(p) :] == p and leaf.ndim]
        seen.update(p for p, _ in of)
        stacked = ["layers"] * (bool(of) and leaf.ndim > len(of[0][1]))
        expected = NamedSharding(mesh, spec(*stacked, *of[0][1]) if of else P())
        if not leaf.sharding.is_equivalent_to(expected, leaf.ndim):
            wrong[jax.tree_util.keystr(path)] = leaf.sharding
    assert not wrong
    labels = jax.tree_util.tree_leaves_with_path(annotation(tiny.learner().declared, "label"))
    # Parameters, Muon's momentum of the matrices, both of Adam's moments of the others.
    assert seen == {path: 2 if label == "matrix" else 3 for path, label in labels}


@pytest.mark.parametrize("axis", ["fsdp", "mixed"])
def test_collectives_move_parameters_not_logits(axis: str) -> None:
    hlo = tiny.compiled("muon" if axis == "mixed" else "adamw", MESHES[axis])[3].as_text()
    gathered = [
        int(np.prod([int(n) for n in dims.split(",")]))
        for dims in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", hlo)
    ]
    assert gathered, "no parameter is gathered: nothing is sharded"
    assert re.search(r" (all-reduce|reduce-scatter)\(", hlo)
    logits_of_a_device = SHAPE[1] // (MESHES[axis][0] * MESHES[axis][1]) * 32 * 384
    largest = max(x.size for x in jax.tree.leaves(tiny.parameters()))
    assert max(gathered) <= largest <= logits_of_a_device, "more than a parameter"


@pytest.mark.parametrize(("rows", "mesh"), [(12, {"fsdp": 8}), (6, {"tensor": 2})])
def test_batch_that_the_mesh_does_not_divide(rows: int, mesh: dict[str, int]) -> None:
    config = replace(
        CONFIG,
        mesh=replace(CONFIG.mesh, **mesh),
        data=replace(CONFIG.data, batch_size=rows),
    )
    with pytest.raises(UserError, match=rf"(?s)--data.batch-size {rows}.*a multiple of .*change"):
        make_workload(config, make_mesh(config.mesh))


def test_more_devices_take_fewer_micro_batches_of_the_same_batch() -> None:
    config = replace(CONFIG, optim=replace(CONFIG.optim, micro_batches=4))
    shapes = {
        count: make_dry_workload(config, make_mesh(MeshConfig(), jax.devices()[:count])).batch(0)
        for count in (4, 8)
    }
    assert shapes[4]["tokens"].shape == (4, 4, 33)
    assert shapes[8]["tokens"].shape == (2, 8, 33)


def test_the_step_is_a_function_of_plain_arrays() -> None:
    learner = tiny.learner()
    state = init_state(learner, jax.random.key(0))
    after, metrics, outputs = jax.jit(functools.partial(train_step, learner))(
        state, {"tokens": BATCHES[0]}
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert set(state) == {"params", "opt_state", "step", "key", "skipped"}  # as at 0.1.0
    assert set(metrics) >= {"loss", "grad_norm", "learning_rate", "skipped"}
    assert (after["step"], after["skipped"], outputs) == (1, 0, {})
    np.testing.assert_allclose(metrics["loss"], tiny.train(BATCHES[:1])[1][0], rtol=1e-5)
    # A parameter that is not finite makes a loss that is not.
    state["params"]["final_norm"] = state["params"]["final_norm"].at[0].set(np.nan)
    after, metrics, _ = jax.jit(functools.partial(train_step, learner))(
        state, {"tokens": BATCHES[0]}
    )
    assert (after["step"], after["skipped"]) == (1, 1)
    np.testing.assert_array_equal(after["params"]["embedding"], state["params"]["embedding"])
