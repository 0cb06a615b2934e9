"""The emitted training step as a worker: runs in the grown project's environment.

Builds what `train` builds (jitted, donated step) on one fixed random batch.
"""

import time
from dataclasses import replace

import jax
import numpy as np
from acorn.config import PRESETS, Config, ModelConfig
from acorn.runtime.compiled import abstract_state, initialise, jit_step
from acorn.runtime.host_memory import keep_freed_memory
from acorn.runtime.sharding import make_mesh
from acorn.step import make_learner, token_losses
from acorn.text.settings import DataConfig
from acorn.training.optim_config import OptimConfig
from acorn.workload import BATCH_SPEC, make_dry_workload
from flax import nnx
from grown import serve
from jax.sharding import NamedSharding

now = {}  # learner, mesh, step, state, batch: what the calls below share


def build(vocab, preset="", model=None, data=None, optim=None, seed=0):
    """Compile the step; says what was built, so that the other side can build the same."""
    if preset:
        config = PRESETS[preset]()
        config = replace(config, data=replace(config.data, packing="documents"))
    else:
        config = Config(model=ModelConfig(**model), data=DataConfig(packing="documents"))
    # Constant rate, so that the peer needs no schedule to take the same steps.
    constant = {"schedule": "wsd", "warmup_steps": 0, "horizon_steps": 10**6}
    config = replace(
        config,
        model=replace(config.model, **(model or {})),
        data=replace(config.data, **(data or {}), tokenizer="bpe", vocab_size=vocab),
        optim=OptimConfig(learning_rate=1e-3, **constant, **(optim or {})),
    )
    mesh = make_mesh(config.mesh)
    learner = make_learner(config, vocab, 0)
    workload = make_dry_workload(config, mesh)
    _, shardings = abstract_state(workload, seed, mesh)
    state = initialise(workload, seed, shardings)
    shape = workload.batch(0)["tokens"].shape
    tokens = np.random.default_rng(seed).integers(1, vocab, shape, np.int32)
    batch = {"tokens": jax.device_put(tokens, NamedSharding(mesh, BATCH_SPEC))}
    began_s = time.perf_counter()
    step = jit_step(workload, shardings, mesh).lower(state, batch).compile()
    compile_s = time.perf_counter() - began_s
    now.update(learner=learner, step=step, state=state, batch=batch, tokens=tokens)
    facts = {
        name: getattr(learner.config.model, name) for name in config.model.__dataclass_fields__
    }
    return facts | {
        "vocab": vocab,
        "seq_len": config.data.seq_len,
        "batch_size": config.data.batch_size,
        "parameters": sum(x.size for x in jax.tree.leaves(state["params"])),
        "compile_s": compile_s,
        "versions": f"jax {jax.__version__}",
    }


def dump(path):
    """Save parameters, tokens, logits and loss of the fresh model for the parity check."""
    learner, params, tokens = now["learner"], now["state"]["params"], now["tokens"]
    tokens = tokens.reshape(-1, tokens.shape[-1])[:4]
    losses = token_losses(learner, params, tokens)[0]
    model = nnx.merge(learner.graph, nnx.State(params))
    from acorn.attention import attend

    attention = lambda q, k, v: attend(q, k, v, None, learner.attention)  # noqa: E731
    logits = model.logits(model(tokens[:, :-1], attention))
    flat = jax.tree_util.tree_leaves_with_path(params)
    arrays = {".".join(str(part.key) for part in path): np.asarray(x) for path, x in flat}
    np.savez(path, tokens=tokens, batch=now["tokens"], logits=logits, losses=losses, **arrays)
    return True


def run(steps, clock="perf_counter"):
    """Seconds a step over `steps` steps, after one that is not counted."""
    clock_s = getattr(time, clock)
    for count in (1, steps):
        began_s = clock_s()
        for _ in range(count):
            now["state"], metrics, _ = now["step"](now["state"], now["batch"])
        now["loss"] = float(metrics["loss"])
    return (clock_s() - began_s) / steps


def loss():
    """Training loss of the last step."""
    return now["loss"]


if __name__ == "__main__":
    keep_freed_memory()  # as the console script does
    serve(build, dump, run, loss)
