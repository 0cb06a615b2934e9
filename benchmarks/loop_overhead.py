"""The emitted loop (data, logging, asynchronous checkpoints) beside the bare compiled step.

    sh hooks/uv.sh run python benchmarks/loop_overhead.py [--steps 25] [--segments 8]

One process, in alternation: the loop runs preset demo (with AdamW too: --optimizer) and calls its
own `evaluate` hook every STEPS steps; the hook times as many calls of a second compilation of the
same step on one fixed batch. A segment of the loop holds STEPS steps, their data, the records, and
one checkpoint with its hashes, which is more than a real run saves.
"""

import argparse
import itertools
import shutil
import time
from dataclasses import replace
from statistics import median

from grown import BUILD, describe_machine, enter_project, ratio


def measure(steps, segments, optimizer):
    import jax
    from acorn.config import PRESETS, validate
    from acorn.runtime.compiled import abstract_state, initialise, jit_step
    from acorn.runtime.loop import run
    from acorn.runtime.sharding import make_mesh
    from acorn.workload import make_workload

    run_dir = BUILD / "loop_overhead"
    shutil.rmtree(run_dir, ignore_errors=True)
    demo = validate(PRESETS["demo"]())
    config = replace(
        demo,
        run=replace(
            demo.run,
            run_dir=str(run_dir),
            steps=steps * (segments + 1),
            eval_every_steps=steps,
            save_every_steps=steps,
        ),
        optim=replace(demo.optim, optimizer=optimizer),
    )
    mesh = make_mesh(config.mesh)
    workload = make_workload(config, mesh)
    _, shardings = abstract_state(workload, 0, mesh)
    bare, batch = jit_step(workload, shardings, mesh), workload.batch(0)
    own = {"state": initialise(workload, 0, shardings)}
    loop_s, bare_s, left = [], [], []

    def burst(state, beat):
        """Called by the loop between its steps; times the bare ones."""
        if left:
            loop_s.append(time.perf_counter() - left[0])
        for count in (1, steps):  # the first is not counted: caches are the loop's
            began_s = time.perf_counter()
            for _ in range(count):
                own["state"], metrics, _ = bare(own["state"], batch)
            jax.block_until_ready(metrics)
        bare_s.append(time.perf_counter() - began_s)
        left[:] = [time.perf_counter()]
        return {}

    run(replace(workload, evaluate=burst, artifacts=None, finish=None), config, mesh)
    # A segment of the loop lies between two bursts: compare it with their mean.
    around_s = [(a + b) / 2 for a, b in itertools.pairwise(bare_s)]
    print(f"demo, {optimizer}: loop {1e3 * median(loop_s) / steps:.1f} ms a step,")
    print(f"bare {1e3 * median(bare_s) / steps:.1f} ms, jax {jax.__version__}")
    print(f"overhead: {100 * (ratio(loop_s, around_s) - 1):+.1f} %, of each segment:")
    print(" ".join(f"{100 * (a / b - 1):+.1f}" for a, b in zip(loop_s, around_s, strict=True)))


if __name__ == "__main__":
    enter_project()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "muon"])
    options = parser.parse_args()
    print(describe_machine())
    measure(options.steps, options.segments, options.optimizer)
