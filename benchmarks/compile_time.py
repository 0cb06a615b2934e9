"""Compile time of the emitted training step against depth, layers scanned (scan_unroll = 1).

    sh hooks/uv.sh run python benchmarks/compile_time.py [--rounds 3]

Trace, lower and XLA compilation of the step at demo width; every depth once a round, in
one process without JAX's persistent cache.
"""

import argparse
import time
from dataclasses import replace
from statistics import median

from grown import describe_machine, enter_project, ratio, table

DEPTHS = (12, 24, 48)


def measure(rounds, unroll):
    """Print seconds of each depth, and relative to the shallowest."""
    import jax
    from acorn.config import PRESETS, validate
    from acorn.runtime.compiled import abstract_state, jit_step
    from acorn.runtime.sharding import make_mesh
    from acorn.workload import make_dry_workload

    mesh = make_mesh(PRESETS["demo"]().mesh)

    def compile_once(layers):
        config = validate(PRESETS["demo"]())
        model = replace(config.model, layers=layers, scan_unroll=layers if unroll else 1)
        optim = replace(config.optim, optimizer="adamw")
        workload = make_dry_workload(replace(config, model=model, optim=optim), mesh)
        jax.clear_caches()
        state, shardings = abstract_state(workload, 0, mesh)
        began_s = time.perf_counter()
        lowered = jit_step(workload, shardings, mesh).lower(state, workload.batch(0))
        lowered_s = time.perf_counter()
        lowered.compile()
        return lowered_s - began_s, time.perf_counter() - lowered_s

    compile_once(2)  # what is imported and cached by the first
    seconds = {layers: [] for layers in DEPTHS}
    for _ in range(rounds):
        for layers in DEPTHS:
            seconds[layers].append(compile_once(layers))
    totals = {layers: [a + b for a, b in took] for layers, took in seconds.items()}
    rows = [
        [
            layers,
            f"{median(a for a, _ in seconds[layers]):.2f}",
            f"{median(b for _, b in seconds[layers]):.2f}",
            f"{median(totals[layers]):.2f}",
            f"{ratio(totals[layers], totals[DEPTHS[0]]):.2f}",
        ]
        for layers in DEPTHS
    ]
    print(f"jax {jax.__version__}, {'unrolled' if unroll else 'scanned'}")
    table(["layers", "trace and lower, s", "XLA, s", "together, s", "to 12 layers"], rows)


if __name__ == "__main__":
    enter_project()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unroll", action="store_true", help="unroll all layers instead")
    options = parser.parse_args()
    print(describe_machine())
    measure(options.rounds, options.unroll)
