"""What the job computes: the file to replace by your own.

Everything else in this project asks for two functions. `make_workload` returns the first state, the
step, the batches and what else `contract.py` lists; `make_dry_workload` the same with shapes for
batches, since `preflight` and `plan` have no data. The default is a causal Transformer over bytes.
"""

import gzip
import lzma
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, UInt8

from .config import Config
from .contract import Beat, Metrics, Outputs, Section, State, Workload
from .model import Transformer
from .training.axes import spec
from .training.batches import fit_micro_batches, make_batches
from .training.layers import annotation, state_specs
from .training.optim import make_optimizer
from .training.optim_config import fit_schedule, smaller_steps
from .training.precision import compute_dtype
from .training.update import Sums, init_update, mean_gradient, update
from .windows import Text, find_files, split

BATCH_SPEC = spec(None, "batch", None)  # micro-batch, row, byte


def make_dry_workload(config: Config, mesh: Mesh) -> Workload:
    """First state, step and shapes: all that does not need the data."""
    platform, data = mesh.devices.flat[0].platform, config.data
    optim = fit_micro_batches(config.optim, data.batch_size, mesh)
    optim = fit_schedule(optim, config.run.steps)
    model = abstract_model(config, platform)
    graph, declared = nnx.split(model)
    labels = annotation(declared, "label")
    optimizer = make_optimizer(optim, labels, annotation(declared, "decay"))

    def init(key: jax.Array) -> State:
        first = Transformer(model.config, key)
        return init_update(optimizer, nnx.to_pure_dict(nnx.state(first)), key)

    def loss(params: Any, rows: Array) -> tuple[Array, Sums]:
        nats = byte_losses(nnx.merge(graph, nnx.State(params)), rows)
        return nats.sum(), {"loss": nats.sum(), "weight": jnp.float32(nats.size)}

    def step(state: State, batch: Array) -> tuple[State, Metrics, Outputs]:
        means, gradient = mean_gradient(loss, state["params"], batch)
        state, metrics = update(optim, optimizer, state, gradient, means)
        return state, metrics, {}

    shape = (optim.micro_batches, data.batch_size // optim.micro_batches, data.seq_len + 1)
    sharding, bytes_per_step = NamedSharding(mesh, BATCH_SPEC), data.batch_size * data.seq_len
    return Workload(
        init=init,
        step=step,
        batch=lambda cursor: jax.ShapeDtypeStruct(shape, "uint8", sharding=sharding),
        specs=lambda state: state_specs(declared, state),
        stride=data.batch_size,
        rate=("bytes", bytes_per_step),
        flops_per_step=flops_per_byte(config) * bytes_per_step,
        flops_formula="6 x parameters that multiply + causal attention, halved",
        nonfinite="skip",
        smaller_steps=smaller_steps(optim),
        # As worked out from --steps where they follow it.
        tunable={f"optim.{n}": getattr(optim, n) for n in ("horizon_steps", "warmup_steps")},
    )


def make_workload(config: Config, mesh: Mesh) -> Workload:
    """The whole job: the above, with batches, held-out figures and what the summary says."""
    dry, data = make_dry_workload(config, mesh), config.data
    text = Text(find_files(data.paths))
    train, heldout = split(data, text)
    shape = dry.batch(0).shape
    batch = make_batches(
        train,
        seed=config.run.seed,
        batch_size=data.batch_size,
        micro_batches=shape[0],
        sharding=NamedSharding(mesh, BATCH_SPEC),
    )
    graph, _ = nnx.split(abstract_model(config, mesh.devices.flat[0].platform))
    scored = np.stack([heldout[row] for row in range(min(data.eval_rows, len(heldout)))])

    @jax.jit
    def nats(params: Any, rows: Array, counts: Array) -> Array:
        return (byte_losses(nnx.merge(graph, nnx.State(params)), rows).sum(1) * counts).sum()

    def place(rows: np.ndarray) -> Array:
        sharding = NamedSharding(mesh, spec("batch"))
        return jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)

    def evaluate(state: State, beat: Beat) -> dict[str, float]:
        total = 0.0
        for first in range(0, len(scored), shape[1]):
            taken = np.arange(first, first + shape[1])
            counts = (taken < len(scored)).astype(np.float32)
            rows = scored.take(taken, axis=0, mode="clip")
            total += float(nats(state["params"], place(rows), place(counts)))
            beat()
        return {"heldout_bits_per_byte": total / math.log(2) / (len(scored) * data.seq_len)}

    def finish(state: State, beat: Beat) -> tuple[dict[str, Any], dict[str, Section]]:
        seen = scored[:, 1:].tobytes()
        packed = {"gzip": gzip.compress(seen), "xz": lzma.compress(seen)}
        others = {f"{n}_bits_per_byte": 8 * len(x) / len(seen) for n, x in packed.items()}
        epochs = config.run.steps * data.batch_size / len(train)
        return {"baselines": others, "epochs": epochs}, {}

    sha256 = {"data.sha256": text.sha256()}
    return replace(dry, batch=batch, evaluate=evaluate, finish=finish, identity=sha256)


def abstract_model(config: Config, platform: str) -> Transformer:
    """Shapes of the model, with the dtype that "auto" stands for on a platform of JAX."""
    dtype: Any = str(compute_dtype(config.model.compute_dtype, platform))
    model = replace(config.model, compute_dtype=dtype)
    return nnx.eval_shape(lambda: Transformer(model, jax.random.key(0)))


def byte_losses(model: Transformer, rows: UInt8[Array, "B S"]) -> Float[Array, "B S-1"]:
    """Cross-entropy in nats of every byte of a row but its first."""
    text = rows.astype("int32")
    return optax.softmax_cross_entropy_with_integer_labels(model(text[:, :-1]), text[:, 1:])


def flops_per_byte(config: Config) -> float:
    """Training FLOPs: 6 for each parameter that multiplies, and causal attention, halved."""
    m = config.model
    matrices = m.layers * 12 * m.width**2 + 256 * m.width
    return 6.0 * (matrices + m.layers * m.width * config.data.seq_len)
