"""The one loop that drives every kind: restore, step, log, evaluate, save, stop.

Whether to stop, save or evaluate is decided from the step number, from replicated metrics or from
a flag that all processes agree on; never from a clock, a signal or a disk error of one of them.
"""

import json
import logging
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ..contract import Metrics, Outputs, Workload
from ..errors import Exit, UserError
from ..records import provenance, telemetry
from ..records.recorder import Recorder, reported
from ..run_config import RunConfig, identity_of, to_dict
from .checkpoint import Checkpoints
from .compiled import abstract_state, initialise, jit_step
from .distributed import StopRequest, Watch, all_agree
from .guards import CompileCount, OneCompilation, SkipLimit
from .prefetch import Prefetch
from .sharding import describe_shards
from .sink import Sink

log = logging.getLogger(__name__)


def run(workload: Workload, config: Any, mesh: Mesh) -> Exit:
    """Train (or sample) until `config.run.steps`, going on from the newest sound checkpoint."""
    run_config: RunConfig = config.run
    run_dir = Path(run_config.run_dir)
    clock, counter = telemetry.Clock(), CompileCount()
    facts = {
        "identity": identity_of(config) | workload.identity,
        "config": to_dict(config),
        "provenance": provenance.collect(),
    }

    # ---- state: restored or initialised, each device making only its own shards ----
    abstract, shardings = abstract_state(workload, run_config.seed, mesh)
    checkpoints = Checkpoints(run_dir / "checkpoints", run_config.keep_checkpoints)
    sink = Sink(run_dir / "outputs")
    with jax.set_mesh(mesh):
        with clock.measure("restore"):
            defaults = identity_of(type(config)())
            restored = checkpoints.restore(abstract, facts["identity"], defaults)
        state, manifest = restored or (initialise(workload, run_config.seed, shardings), {})
    first, cursor = int(state["step"]), manifest.get("cursor", 0)
    # A run that was stopped between its last save and its report goes through to write that.
    if first >= run_config.steps and all_agree(reported(run_dir, first)):
        log.info("nothing to do: %s is at step %d; raise --steps to go on", run_dir, first)
        return Exit.DONE
    recorder = Recorder(workload, config, run_dir, first, clock)
    recorder.losses = manifest.get("losses", recorder.losses)
    if jax.process_index() == 0:
        (run_dir / "config.json").write_text(json.dumps(facts, indent=1))
        log.info("%s", describe_shards(abstract))
        log.info("%s at step %d", "resumed" if restored else "starting", first)
    sink.cut(first)

    # ---- the step, compiled once ----
    step_fn = jit_step(workload, shardings, mesh)
    one_compilation = OneCompilation(counter)
    skips = SkipLimit(run_config.max_skipped_steps, int(state.get("skipped", 0)))

    def settle(step: int, metrics: Metrics, outputs: Outputs) -> dict[str, float]:
        """Wait for a step's metrics and judge them; what a skipped step gave out is dropped."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        watch.beat()
        if not skips.check(step, values):
            sink.add(outputs)
        return values

    # ---- the loop ----
    code, pending = None, None
    with ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.callback(recorder.close)
        stack.callback(checkpoints.wait)
        batches = stack.enter_context(Prefetch(workload, cursor))
        # The watch ends with the loop: the last save and `finish` take what they take.
        with closing(Watch(run_config.hang_timeout_s)) as watch, StopRequest().listening() as stop:
            for step in range(first + 1, run_config.steps + 1):
                clock.enter("data_wait")
                batch = batches.take()
                clock.enter("compile" if step == first + 1 else "step")
                recorder.profile(step)
                with one_compilation.watching(state, batch):
                    state, metrics, outputs = step_fn(state, batch)
                cursor += workload.stride
                # Read one step late, so that the device never waits for the host.
                if pending is not None:
                    recorder.step(pending[0], settle(*pending))
                pending = (step, metrics, outputs)

                code = stop.decide(step)
                last = code is not None or step == run_config.steps
                saving = _due(step, run_config.save_every_steps) or last
                evaluating = workload.evaluate is not None and (
                    _due(step, run_config.eval_every_steps) or step == run_config.steps
                )
                if step == first + 1 or evaluating or saving:
                    values = settle(*pending)
                    pending = None
                    if step == first + 1:
                        recorder.compiled(counter.seconds)
                    if evaluating and workload.evaluate is not None:
                        with clock.measure("evaluate"):
                            values |= workload.evaluate(state, watch.beat)
                        watch.beat()
                    recorder.step(step, values, force=evaluating or last)
                if saving:
                    with clock.measure("checkpoint"):
                        began_s = time.monotonic()
                        sink.write(step)
                        manifest = facts | {"cursor": cursor, "losses": recorder.losses}
                        checkpoints.save(step, state, manifest)
                        recorder.saved(time.monotonic() - began_s)
                if code is not None:
                    break
        clock.enter("checkpoint")
        if (error := checkpoints.wait()) is not None:
            raise UserError(
                got=f"the last checkpoint could not be saved: {error}",
                expected=f"room for it in {run_dir}",
                do="free some space and run the same command again: it goes on from the last "
                "checkpoint that was saved",
            )
        if code is not None:
            next_run = "goes on from there" if step < run_config.steps else "writes the report"
            log.warning("saved at step %d; the same command %s", step, next_run)
            return code
        clock.enter("evaluate")
        extra, _ = workload.finish(state, watch.beat) if workload.finish is not None else ({}, {})
        recorder.finish(max(first, run_config.steps), extra)
    return Exit.DONE


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
