"""The smallest language model, and its step as the loop compiles it: made once for all tests."""

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..config import Config, DataConfig, ModelConfig
from ..contract import Workload
from ..guards import guarded_step
from ..loop import abstract_state, initialise
from ..model import Transformer
from ..optim_config import OptimConfig
from ..sharding import named, spec
from ..step import Learner, init_state, make_learner, state_specs, train_step

VOCAB, BOS = 257, 256  # of the byte tokenizer; padded to 384
MODEL = ModelConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=64)
CONFIG = Config(
    model=MODEL,
    optim=OptimConfig(learning_rate=1e-2, horizon_steps=100, warmup_steps=2, micro_batches=2),
    data=DataConfig(seq_len=32, batch_size=16),
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


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    """Rows that begin with BOS."""
    tokens = np.random.default_rng(seed).integers(0, BOS, shape).astype(np.int32)
    tokens[..., 0] = BOS
    return tokens


def mesh_of(data: int, fsdp: int, tensor: int) -> Mesh:
    """On the first devices that there are."""
    devices = jax.devices()[: data * fsdp * tensor]
    names = ("data", "fsdp", "tensor")
    return jax.make_mesh((data, fsdp, tensor), names, (AxisType.Auto,) * 3, devices=devices)


@functools.cache
def compiled(optimizer: str = "adamw", sizes: tuple[int, int, int] = (1, 1, 1)) -> tuple[Any, ...]:
    """Mesh, first state and the step (state, tokens) -> (state, metrics), which donates nothing."""
    config = replace(CONFIG, optim=replace(CONFIG.optim, optimizer=optimizer))
    of, mesh = make_learner(config, VOCAB, BOS), mesh_of(*sizes)
    workload = Workload(
        init=functools.partial(init_state, of),
        step=functools.partial(train_step, of),
        batch=lambda cursor: {},
        specs=functools.partial(state_specs, of),
    )
    rows = NamedSharding(mesh, spec(None, "batch", None))
    batch = {"tokens": jax.ShapeDtypeStruct(SHAPE, np.int32, sharding=rows)}
    with jax.set_mesh(mesh):
        abstract, shardings = abstract_state(workload, 0, mesh)
        replicated = named(PartitionSpec(), mesh)
        fn = jax.jit(guarded_step(workload), out_shardings=(shardings, replicated, replicated))
        executable = fn.lower(abstract, batch).compile()
        state = initialise(workload, 0, shardings)

    def step(state: Any, tokens: np.ndarray) -> tuple[Any, Any]:
        return executable(state, {"tokens": jax.device_put(tokens, rows)})[:2]

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
