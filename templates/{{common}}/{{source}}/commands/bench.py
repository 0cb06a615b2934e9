"""`bench`: how fast the step, the loop around it and the input run here. Tunes nothing.

One process: bare steps, the loop, bare steps again, so that a change of clock rate shows.
"""

import math
import time
from typing import Annotated

from ..errors import Exit
from ..run_config import Bounds
from . import Settings


def bench(*, config: Settings, timed_steps: Annotated[int, Bounds(least=1)] = 20) -> int:
    """Time the bare step, the loop around it and the input.

    Args:
        timed_steps: of each measurement; about five times as many are run
    """
    import jax

    from ..records import hardware
    from ..records.report import format_summary
    from ..runtime import cost
    from ..runtime.sharding import make_mesh
    from ..runtime.start import start
    from ..workload import make_workload

    start()
    jax.config.update("jax_enable_compilation_cache", False)  # its compile time is asked for
    mesh = make_mesh(config.mesh)
    workload = make_workload(config, mesh)
    input_s = cost.time_input(workload, timed_steps)
    began_s = time.perf_counter()
    compiled = cost.compile_step(workload, config.run.seed, mesh)
    compile_s = time.perf_counter() - began_s
    before_s = cost.time_bare(workload, compiled, config.run.seed, mesh, timed_steps)
    loop_s = cost.time_loop(workload, config, mesh, timed_steps)
    after_s = cost.time_bare(workload, compiled, config.run.seed, mesh, timed_steps)
    bare_s = (before_s + after_s) / 2
    device, (name, units) = jax.devices()[0], workload.rate
    flops, memory = workload.flops_per_step or math.nan, device.memory_stats() or {}
    figures = {
        "devices": f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}",
        "compile_s": compile_s,
        "step_ms": 1e3 * bare_s,
        "step_before_and_after": f"{1e3 * before_s:.1f} and {1e3 * after_s:.1f} ms",
        f"{name}_per_s": units / bare_s,
        "mfu_formula": hardware.mfu(flops, bare_s, jax.device_count(), device.device_kind)[1],
        "loop_step_ms": 1e3 * loop_s,
        "loop_overhead_fraction": loop_s / bare_s - 1,
        "input": f"{units / input_s:,.0f} {name}/s, {bare_s / input_s:.0f} times the step's rate",
        "peak_memory_bytes": memory.get(
            "peak_bytes_in_use", cost.memory_parts(compiled)["memory_bytes"]
        ),
    }
    print(format_summary(figures))
    return Exit.DONE
