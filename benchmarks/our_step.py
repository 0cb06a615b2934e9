"""The emitted training step as a worker: runs in the grown project's environment.

Builds what `train` builds (jitted, donated step) on one fixed random batch.
"""

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import jax
import numpy as np
from acorn.config import PRESETS, Config, ModelConfig
from acorn.run_config import RunConfig
from acorn.runtime.checkpoint import Checkpoints
from acorn.runtime.compiled import abstract_state, initialise, jit_step
from acorn.runtime.cost import memory_parts
from acorn.runtime.host_memory import keep_freed_memory
from acorn.runtime.sharding import make_mesh
from acorn.runtime.shelf import Shelf
from acorn.step import make_learner, token_losses
from acorn.text.settings import DataConfig
from acorn.training.optim_config import OptimConfig
from acorn.workload import BATCH_SPEC, make_dry_workload
from flax import nnx
from grown import serve
from jax.sharding import NamedSharding
from traced import top_operations

now = {}  # learner, mesh, step, state, batch: what the calls below share


def configure(vocab, preset="", model=None, data=None, optim=None):
    """The configuration of a comparison: single documents, at a constant rate."""
    if preset:
        config = PRESETS[preset]()
        config = replace(config, data=replace(config.data, packing="documents"))
    else:
        config = Config(model=ModelConfig(**model), data=DataConfig(packing="documents"))
    # Constant rate, so that the peer needs no schedule to take the same steps.
    constant = {"schedule": "wsd", "warmup_steps": 0, "horizon_steps": 10**6}
    return replace(
        config,
        model=replace(config.model, **(model or {})),
        data=replace(config.data, **(data or {}), tokenizer="bpe", vocab_size=vocab),
        optim=OptimConfig(learning_rate=1e-3, **constant, **(optim or {})),
    )


def describe(vocab, **settings):
    """What `build` builds, so that the other side can build the same; compiles nothing."""
    config = configure(vocab, **settings)
    mesh = make_mesh(config.mesh)
    learner, workload = make_learner(config, vocab, 0), make_dry_workload(config, mesh)
    abstract, _ = abstract_state(workload, 0, mesh)
    model = learner.config.model
    return {name: getattr(model, name) for name in config.model.__dataclass_fields__} | {
        "vocab": vocab,
        "seq_len": config.data.seq_len,
        "batch_size": config.data.batch_size,
        "micro_batches": workload.batch(0)["tokens"].shape[0],
        "parameters": sum(x.size for x in jax.tree.leaves(abstract["params"])),
        "kernel": learner.attention,
        "flops_per_step": workload.flops_per_step,
        "device_kind": jax.devices()[0].device_kind,
        "versions": f"jax {jax.__version__}",
    }


def build(vocab, seed=0, **settings):
    """Compile the step and make its state; says what was built."""
    config = configure(vocab, **settings)
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
    return describe(vocab, **settings) | {"compile_s": compile_s} | memory_parts(step)


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


def advance(steps):
    """Take steps, one dispatched after the other; the loss of the last one, which is waited for."""
    for _ in range(steps):
        now["state"], metrics, _ = now["step"](now["state"], now["batch"])
    now["loss"] = float(metrics["loss"])
    return now["loss"]


def run(steps, clock="perf_counter"):
    """Seconds a step over `steps` steps, after one that is not counted."""
    clock_s = getattr(time, clock)
    advance(1)
    began_s = clock_s()
    advance(steps)
    return (clock_s() - began_s) / steps


def loss():
    """Training loss of the last step."""
    return now["loss"]


def profile(steps, folder):
    """The largest operations of some steps."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        advance(steps)
    return top_operations(folder, steps)


def save(folder, steps, limit_s=90.0):
    """What a checkpoint costs the steps beside it, through the emitted `Checkpoints`.

    `steps` steps before, those until the save is committed, and `steps` more, each waited for.
    """
    checkpoints = Checkpoints(Shelf(Path(folder), Path(folder)), RunConfig(keep_checkpoints=1))

    def step_ms():
        began_s = time.perf_counter()
        advance(1)
        return 1e3 * (time.perf_counter() - began_s)

    before = [step_ms() for _ in range(steps)]
    began_s = time.perf_counter()
    checkpoints.save(1, now["state"], {})
    blocking_s = time.perf_counter() - began_s
    waiting = threading.Thread(target=checkpoints.wait)
    waiting.start()
    during = []
    while waiting.is_alive() and time.perf_counter() - began_s < limit_s:
        during.append(step_ms())
    waiting.join()
    saved_s = time.perf_counter() - began_s
    error = checkpoints.wait()
    written = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "error": error,
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(now["state"]) if hasattr(x, "nbytes")),
        "written_bytes": written,
        "blocking_ms": 1e3 * blocking_s,
        "until_committed_s": saved_s,
        "steps_during": len(during),
        "step_ms_without": median(before + [step_ms() for _ in range(steps)]),
        "step_ms_during": median(during) if during else None,
        "slowest_step_ms_during": max(during, default=None),
    }


def memory():
    """Peak bytes in use on the device; None where it does not count them."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


if __name__ == "__main__":
    keep_freed_memory()  # as the console script does
    serve(describe, build, dump, run, loss, advance, profile, save, memory)
