"""The smallest language model, and its step as the loop compiles it: made once for all tests."""

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from ..config import Config, ModelConfig
from ..model import Transformer
from ..run_config import MeshConfig, RunConfig
from ..runtime.loop import abstract_state, initialise
from ..runtime.sharding import make_mesh, named
from ..step import Learner, make_learner
from ..text.settings import DataConfig
from ..training.optim_config import OptimConfig
from ..workload import make_dry_workload

VOCAB, BOS = 257, 256  # of the byte tokenizer; padded to 384
MODEL = ModelConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=64)
CONFIG = Config(
    model=MODEL,
    optim=OptimConfig(learning_rate=1e-2, horizon_steps=100, warmup_steps=2, micro_batches=2),
    data=DataConfig(tokenizer="byte", seq_len=32, batch_size=16),
)
SHAPE = (2, 8, 33)  # micro-batches, rows, inputs and targets


@functools.cache
def learner(**model: Any) -> Learner:
    """With these fields of the model changed."""
    return make_learner(replace(CONFIG, model=replace(MODEL, **model)), VOCAB, BOS)


@functools.cache
def parameters(**model: Any) -> Any:
    """Initial ones, for a model of these fields."""
    transformer = Transformer(learner(**model).config.model, VOCAB, jax.random.key(0))
    return nnx.to_pure_dict(nnx.state(transformer))


def products(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Every matrix product of a traced function, and how often it runs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation, times
        rounds = times * equation.params.get("length", 1)  # of a scan
        for inner in jax.tree.leaves(equation.params):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from products(inner, rounds)


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    """Rows that begin with BOS."""
    tokens = np.random.default_rng(seed).integers(0, BOS, shape).astype(np.int32)
    tokens[..., 0] = BOS
    return tokens


def with_text(folder: Path, **run: Any) -> Config:
    """On a corpus that is written to the folder; `run` are fields of its RunConfig."""
    for i in range(40):
        (folder / f"{i}.txt").write_text("".join(f"line {n} of {i}\n" for n in range(i + 8)))
    data = replace(
        CONFIG.data,
        paths=(str(folder / "*.txt"),),
        prepared_dir=str(folder / "data"),
        tokenizer="byte",
        heldout_fraction=0.2,
        eval_rows=8,
    )
    settings = RunConfig(run_dir=str(folder / "run"), trackers=(), **run)
    return replace(CONFIG, run=settings, data=data)


@functools.cache
def compiled(optimizer: str = "adamw", sizes: tuple[int, int, int] = (1, 1, 1)) -> tuple[Any, ...]:
    """Mesh, first state and the step (state, tokens) -> (state, metrics), which donates nothing."""
    config = replace(CONFIG, optim=replace(CONFIG.optim, optimizer=optimizer))
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    workload = make_dry_workload(config, mesh)
    batch = workload.batch(0)
    with jax.set_mesh(mesh):
        abstract, shardings = abstract_state(workload, 0, mesh)
        replicated = named(PartitionSpec(), mesh)
        fn = jax.jit(workload.step, out_shardings=(shardings, replicated, replicated))
        executable = fn.lower(abstract, batch).compile()
        state = initialise(workload, 0, shardings)

    def step(state: Any, tokens: np.ndarray) -> tuple[Any, Any]:
        return executable(state, {"tokens": jax.device_put(tokens, batch["tokens"].sharding)})[:2]

    return mesh, state, step, executable


def train(
    batches: list[np.ndarray], optimizer: str = "adamw", sizes: tuple[int, int, int] = (1, 1, 1)
) -> tuple[Any, list[float]]:
    """Last state and the losses of one step on each batch."""
    _, state, step, _ = compiled(optimizer, sizes)
    losses = []
    for tokens in batches:
        state, metrics = step(state, tokens)
        losses.append(float(metrics["loss"]))
    return state, losses
