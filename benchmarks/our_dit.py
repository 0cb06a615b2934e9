"""The emitted diffusion step and sampler as a worker: runs in the grown project's environment.

Builds what `train` and `sample` build, on one fixed batch of random images.
"""

import time
from dataclasses import replace

import jax
import numpy as np
from acorn.config import PRESETS, average_names
from acorn.ema import exponent
from acorn.generate import averaged, balanced_labels, make_generate
from acorn.objectives import LEAST
from acorn.runtime.compiled import abstract_state, initialise, jit_step
from acorn.runtime.host_memory import keep_freed_memory
from acorn.runtime.sharding import make_mesh
from acorn.samplers import draw_noise, image_keys
from acorn.step import draw, expected_kind, make_learner, predict
from acorn.workload import BATCH_SPEC, make_dry_workload
from grown import serve
from jax.sharding import NamedSharding

PARITY_STEPS = 8
now = {}  # learner, mesh, step, state, batch, generate, labels: what the calls below share


def configure(preset):
    """A preset in float32 at a constant rate, so that the peer needs no schedule."""
    config = PRESETS[preset]()
    constant = {"schedule": "constant", "warmup_steps": 0, "horizon_steps": 10**6}
    return replace(
        config,
        model=replace(config.model, compute_dtype="float32"),
        optim=replace(config.optim, **constant),
        objective=replace(config.objective, time_mean=0.0, time_std=1.0),
    )


def describe(learner, state):
    """All that the other side has to know."""
    c, kind = learner.config, learner.kind
    same = (c.objective.name, c.objective.weight, c.optim.optimizer, c.sample.sampler)
    assert same == ("flow-v", "flat", "adamw", "heun"), f"the peer does not know {same}"
    names = ("width", "layers", "heads", "patch", "mlp_width", "registers", "rope_theta")
    optim = ("learning_rate", "beta1", "beta2", "weight_decay", "clip_norm")
    times = ("time_mean", "time_std", "label_dropout")
    return (
        {name: getattr(c.model, name) for name in names}
        | {name: getattr(c.optim, name) for name in optim}
        | {name: getattr(c.objective, name) for name in times}
        | {
            "shape": kind.shape,
            "classes": kind.classes,
            "levels": kind.levels,
            "least_time": LEAST,
            "averages": average_names(c.ema),
            "average": c.sample.ema,
            "decays": c.ema.decays,
            "exponents": [exponent(std) for std in c.ema.power_stds],
            "sampler_steps": c.sample.sampler_steps,
            "batch_size": c.data.batch_size,
            "parameters": sum(x.size for x in jax.tree.leaves(state["params"])),
            "versions": f"jax {jax.__version__}",
        }
    )


def build(preset, images, seed=0):
    """Compile the step and make its state; says what was built. images: samples of one draw."""
    config, random = configure(preset), np.random.default_rng(seed)
    mesh, kind = make_mesh(config.mesh), expected_kind(config.data)
    learner, workload = make_learner(config, kind), make_dry_workload(config, mesh)
    _, shardings = abstract_state(workload, seed, mesh)
    state = initialise(workload, seed, shardings)

    def moved(x):
        return np.asarray(x) + 0.05 * random.standard_normal(x.shape, np.float32)

    # At first the output and all gates are zero, which would hide differences of the networks.
    params = jax.tree.map(moved, state["params"])
    state |= {"params": params, "ema": dict.fromkeys(state["ema"], params)}
    state = jax.device_put(state, shardings)
    shape, placed = (1, config.data.batch_size), NamedSharding(mesh, BATCH_SPEC)
    arrays = {
        "image": random.integers(0, kind.levels, (*shape, *kind.shape), np.uint8),
        "label": random.integers(0, kind.classes, shape, np.int32),
    }
    batch = jax.device_put(arrays, placed)
    began_s = time.perf_counter()
    step = jit_step(workload, shardings, mesh).lower(state, batch).compile()
    facts = describe(learner, state) | {"compile_s": time.perf_counter() - began_s}
    generate, labels = make_generate(learner, mesh, config.sample), balanced_labels(learner, images)
    now.update(learner=learner, step=step, state=state, batch=batch)
    now.update(generate=generate, labels=labels)
    return facts


def dump(path):
    """Save what the other side is compared with: inputs and results of network, step and sampler.

    Takes PARITY_STEPS steps; their draws of noise, times and labels are saved, to be taken there.
    """
    learner, state, labels = now["learner"], now["state"], now["labels"]
    draws = [
        jax.jit(draw, static_argnums=0)(
            learner, jax.random.fold_in(state["key"], number), now["batch"]
        )
        for number in range(PARITY_STEPS)
    ]
    arrays = {name: np.concatenate([d[name] for d in draws]) for name in ("x", "eps", "t", "label")}
    first = {name: array[0] for name, array in arrays.items()}
    output = jax.jit(predict, static_argnums=0)(
        learner, state["params"], first["eps"], first["t"], first["label"]
    )
    noise = draw_noise(image_keys(jax.random.key(0), np.arange(len(labels))), learner.kind.shape)
    images = now["generate"](state["params"], labels, 0)
    arrays |= {"output": output, "noise": noise, "images": images, "labels": labels}
    arrays |= {f"batch.{name}": array[0] for name, array in now["batch"].items()}
    trees = {"start": jax.tree.map(np.array, state["params"])}  # copies: the steps donate theirs
    arrays["losses"] = [advance(1) for _ in range(PARITY_STEPS)]
    trees |= {"raw": now["state"]["params"]} | now["state"]["ema"]
    flat = jax.tree_util.tree_leaves_with_path(trees)
    arrays |= {".".join(str(part.key) for part in path): np.asarray(x) for path, x in flat}
    np.savez(path, **arrays)
    return True


def advance(steps):
    """Take steps, one dispatched after the other; the loss of the last one, which is waited for."""
    for _ in range(steps):
        now["state"], metrics, _ = now["step"](now["state"], now["batch"])
    return float(metrics["loss"])


def run(steps, what, clock="perf_counter"):
    """Seconds a step of training, after one that is not counted, or a draw of samples."""
    clock_s = getattr(time, clock)
    if what == "train":
        advance(1)
    began_s = clock_s()
    if what == "train":
        advance(steps)
    else:
        for seed in range(steps):
            params = averaged(now["state"], now["learner"].config.sample.ema)
            now["generate"](params, now["labels"], seed)
    return (clock_s() - began_s) / steps


if __name__ == "__main__":
    keep_freed_memory()  # as the console script does
    serve(build, dump, run)
