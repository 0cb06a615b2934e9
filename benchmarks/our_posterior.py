"""The sampler of the kind bayes as a worker: runs in the grown project's environment.

Builds what `fit` builds for a model of posterior_models.py, without its table, store and report.
"""

import time
from functools import partial

import jax
import numpy as np
from acorn.config import NutsConfig
from acorn.contract import Workload
from acorn.nuts import init_state, make_sampler, sample_step, state_specs
from acorn.run_config import MeshConfig
from acorn.runtime.compiled import abstract_state, jit_step
from acorn.runtime.host_memory import keep_freed_memory
from acorn.runtime.sharding import make_mesh
from grown import serve
from jax.sharding import NamedSharding, PartitionSpec
from posterior_models import cpu_s, in_numpyro, judge, read_columns

now = {}  # name, draws, begin, step, columns: what `build` leaves for `run`


def build(name, draws, metric="diagonal", chains=4):
    """Compile; CPU seconds since the process began. draws: of each chain; as many of warm-up."""
    settings = NutsConfig(warmup=draws, metric=metric, target_accept=0.8)
    columns = {
        n: v.astype(np.int32 if v.dtype == int else np.float32)
        for n, v in read_columns(name).items()
    }
    mesh, model = make_mesh(MeshConfig(), jax.devices()), in_numpyro(name)
    sampler = make_sampler(
        settings, lambda sizes, **columns: model(**columns), columns, {}, mesh, chains
    )
    columns = jax.device_put(columns, NamedSharding(mesh, PartitionSpec()))
    init = partial(init_state, sampler)
    workload = Workload(
        init=init,
        step=partial(sample_step, sampler),
        batch=lambda cursor: columns,
        specs=state_specs,
    )
    with jax.set_mesh(mesh):
        state, shardings = abstract_state(workload, 0, mesh)
        begin = jax.jit(lambda seed: init(jax.random.key(seed)), out_shardings=shardings)
        begin = begin.lower(np.int32(0)).compile()
        step = jit_step(workload, shardings, mesh).lower(state, columns).compile()
    now.update(name=name, draws=draws, chunk=settings.chunk, columns=columns)
    now.update(mesh=mesh, begin=begin, step=step)
    return {"cpu": cpu_s(), "version": f"jax {jax.__version__}"}


def run(seed):
    """Warm up and draw; seconds, gradients of the draws that are kept, and what they say."""
    began, kept = (time.perf_counter(), cpu_s()), []
    warmup_steps = now["draws"] // now["chunk"]
    with jax.set_mesh(now["mesh"]):
        state = now["begin"](np.int32(seed))
        for number in range(2 * warmup_steps):
            state, _, outputs = now["step"](state, now["columns"])
            if number >= warmup_steps:
                kept.append(jax.device_get(outputs))
    draws = {n: np.concatenate([k[n] for k in kept], axis=1) for n in kept[0]}
    wall, cpu = time.perf_counter() - began[0], cpu_s() - began[1]
    posterior = {n.removeprefix("posterior/"): v for n, v in draws.items()}
    gradients = int(draws["sample_stats/n_steps"].sum())
    found = {"wall": wall, "cpu": cpu, "gradients": gradients}
    return found | judge(now["name"], posterior)


if __name__ == "__main__":
    keep_freed_memory()  # as the console script does
    serve(build, run)
