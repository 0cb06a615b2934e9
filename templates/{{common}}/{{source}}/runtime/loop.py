"""The one loop that drives every kind: restore, step, log, evaluate, save, stop.

Whether to stop, save or evaluate is decided from the step number, from replicated metrics or from
a flag that all processes agree on; never from a clock, a signal or a disk error of one of them.
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from typing import Any, cast

import jax
from jax.sharding import Mesh

from ..contract import Beat, Metrics, Outputs, State, Workload
from ..errors import Exit
from ..records import provenance, store, telemetry
from ..records.mirror import Mirror
from ..records.recorder import Recorder, reported
from ..run_config import RunConfig, absolute_paths, due, identity_of, to_dict, tunables_of
from . import hosts
from .agree import check_folder, check_same_program, check_same_run, lack_artifacts
from .changes import in_words, list_changes
from .checkpoint import Checkpoints
from .compiled import abstract_state, count_parameters, describe_state, initialise, jit_step
from .distributed import all_agree, barrier, on_end
from .guards import CompileCount, FiniteCheck, OneCompilation, debugging_as_asked
from .lock import only_run_in
from .prefetch import Prefetch
from .sharding import describe_shards
from .shelf import shelf_of
from .sink import NpzFiles
from .stop import StopRequest, to_save
from .tiers import Tiers
from .watch import Watch

log = logging.getLogger(__name__)


def run(workload: Workload, config: Any, mesh: Mesh) -> Exit:
    """Run to `config.run.steps` or `workload.done`, from the newest sound checkpoint on."""
    mirror = Mirror(config.run.run_dir, process=jax.process_index())
    is_primary = jax.process_index() == 0
    held = only_run_in(mirror.local, mirror.folder) if is_primary else nullcontext(mirror.confirm)
    with held as mirror.confirm:
        code = None
        try:
            code = _run(workload, config, mesh, mirror)
        finally:
            if is_primary and mirror.is_current:  # of a run that failed, too: it is of use
                mirror.send_rest(required=code == Exit.DONE)
        # Process 0 alone writes the report: one that leaves the job first would end it.
        barrier("finished")
        return code


def _run(workload: Workload, config: Any, mesh: Mesh, mirror: Mirror) -> Exit:
    run_config: RunConfig = config.run
    run_dir = mirror.local
    clock, compilations = telemetry.Clock(age_s=telemetry.age_s()), CompileCount()
    about: dict[str, Any] = {
        "identity": identity_of(config) | workload.identity,
        "tunable": tunables_of(config) | workload.tunable,
        # To accept changed code holds for one start: it is no setting for the starts after it.
        "config": to_dict(config) | {"run.accept_changed_code": False},
        "provenance": provenance.collect(),
        "sources": provenance.sources(),
    }
    clock.about = {"command": provenance.command_line(), "provenance": about["provenance"]}

    # ---- the state, and what stands beside it in the run folder ----
    own_disks = check_folder(run_config.run_dir, run_dir)
    check_same_run(about)
    mirror.fetch()
    barrier("fetched")
    checkpoints = Checkpoints(shelf_of(run_config.run_dir, own_disks=own_disks), run_config)
    abstract, shardings = abstract_state(workload, run_config.seed, mesh)
    tiers = Tiers(run_dir, checkpoints, abstract, run_config)
    with jax.set_mesh(mesh):
        with clock.measure("restore"):
            restored = tiers.restore(about, identity_of(type(config)()))
        # Each device makes only its own shards.
        state, manifest = restored or (initialise(workload, run_config.seed, shardings), {})
    first, cursor = int(state["step"]), manifest.get("cursor", 0)
    newest: dict[str, float] = manifest.get("newest", {})
    # Judged again, because `done` may have changed since.
    finished = manifest.get("finished", False) and _is_done(workload, newest)
    last = first if finished else run_config.steps
    # A run that was stopped between its last save and its report continues, to write the report.
    if first >= last and all_agree(reported(run_dir, first)):
        do = "it has reached its aim" if finished else "raise --steps to go on"
        log.info("nothing to do: %s is at step %d; %s", run_dir, first, do)
        tiers.end()
        return Exit.DONE
    changes = list_changes(manifest, about, first, accept_code=run_config.accept_changed_code)
    about |= {
        # None: begun before 0.3.0, which was the first to note it.
        "command": manifest.get("command") if manifest else provenance.command_line(),
        "changes": [*manifest.get("changes", []), *changes],
    }
    # What a stop left undone at this step, its record too.
    owed: dict[str, Any] = manifest.get("owed") or {}
    recorder = Recorder(workload, config, run_dir, first, clock, kept=first - ("values" in owed))
    # Release 0.1.0 kept `losses`: sum and count of the one metric that it averaged.
    recorder.sums = manifest.get("sums") or {"loss": manifest.get("losses", (0.0, 0))}
    on_end(recorder.ended)
    sink = (workload.sink or NpzFiles)(run_dir / "outputs")
    sink.cut(first)
    if jax.process_index() == 0:
        about |= {
            "parameters": count_parameters(state),
            "means": list(workload.means),
        }  # for the report
        paths = {"paths_absolute": absolute_paths(config)}
        store.write_json(run_dir / "config.json", about | paths)
        for name, content in workload.run_files.items():
            store.write(run_dir / "inputs" / name, content)
        log.info("%s", describe_state(state))
        if mesh.size > 1:
            log.info("%s", describe_shards(state))
        log.info("%s at step %d", "resumed" if manifest else "starting", first)
        if manifest and about["command"]:
            log.info("begun with: %s", about["command"])
        for change in changes:
            log.info("%s", in_words(change, about["tunable"]))
        mirror.send()  # the other processes have written nothing yet that it could delete
    barrier("outputs cut")

    # ---- the step, compiled once ----
    step_fn = jit_step(workload, shardings, mesh)
    one_compilation = OneCompilation(compilations)
    finite = FiniteCheck(workload, run_config.max_skipped_steps, state)
    step, code = first, cast("Exit | None", None)

    def settle(step: int, metrics: Metrics, outputs: Outputs) -> dict[str, float]:
        """Wait for a step's metrics and check them; outputs of a skipped step are dropped."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        watch.beat()
        if finite.counts(step, values) and outputs:
            sink.add(step, outputs)
        return values

    def durable() -> None:
        sink.durable()
        recorder.durable()
        index = jax.process_index()
        for under in ("outputs/", f"profile/host-{index}/") if index else ("",):
            mirror.send(under)

    def log_pending(pending: tuple[int, Metrics, Outputs] | None) -> None:
        if pending is not None:
            recorder.step(pending[0], settle(*pending))

    def evaluate() -> dict[str, float]:
        return unless_stopped("evaluate", cast(Any, workload.evaluate))

    def show() -> None:
        recorder.artifacts(step, unless_stopped("artifacts", cast(Any, workload.artifacts)))

    def save(planned: bool) -> None:
        so_far = about | {"cursor": cursor, "sums": recorder.sums, "newest": newest}
        so_far |= {"finished": finished, "owed": owed}
        with clock.measure("checkpoint" if code is None else "preemption"):
            began_s = time.monotonic()
            sink.write(step)
            with watch.waiting(run_config.save_timeout_s):
                tiers.wait(planned=planned)
            # While steps are skipped, the older checkpoints may be what is wanted.
            rotate = not finite.skipping
            copied = tiers.due(step) and code is None  # a stop has no time for two saves
            tiers.save(step, state, so_far, durable, planned=planned, copied=copied, rotate=rotate)
            recorder.saved(time.monotonic() - began_s)

    def unless_stopped(part: str, work: Callable[[State, Beat], dict[str, Any]]) -> dict[str, Any]:
        nonlocal code
        with clock.measure(part):
            made = stop.unless_stopped(partial(work, state), step, watch.beat)
        code = stop.code
        return made or {}

    # ---- the loop ----
    can_evaluate, can_show = workload.evaluate is not None, workload.artifacts is not None
    pending: tuple[int, Metrics, Outputs] | None = None
    hosts.follow(lambda: (step, *clock.doing()), run_dir)
    with ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(debugging_as_asked())
        stack.enter_context(recorder)
        stack.callback(tiers.wait)
        batches = stack.enter_context(Prefetch(workload, cursor, run_config.prefetch_workers))
        watch = stack.enter_context(closing(Watch(run_config.hang_timeout_s)))
        with StopRequest().listening() as stop:
            if "values" in owed:
                values = owed["values"] | (evaluate() if owed["evaluate"] else {})
                newest |= values
                recorder.step(first, values, force=True)
            if owed.get("show") and can_show and code is None and lack_artifacts(run_dir, first):
                show()
            if tiers.from_copies:  # what its hosts alone hold may be gone at the next start
                save(True)
            # Stopped again, it is owed still: the checkpoint says so.
            if code is not None or (owed.get("judge") and _is_done(workload, newest)):
                last = first
            for step in range(first + 1, last + 1):
                at_start, at_end = step == first + 1, step == run_config.steps
                keeping = due(step, run_config.keep_every_steps)
                planned = due(step, run_config.save_every_steps) or keeping or at_end
                evaluating = can_evaluate and (due(step, run_config.eval_every_steps) or at_end)
                showing = can_show and (due(step, run_config.artifacts_every_steps) or at_end)
                waiting = planned or tiers.due(step) or evaluating or showing or at_start
                if waiting:  # so that no record of the step before shares the time of this one
                    log_pending(pending)
                    pending = None
                clock.enter("data_wait")
                batch = batches.take()
                clock.enter("compile" if at_start else "step")
                if at_start:
                    check_same_program(step_fn, state, batch)
                recorder.profile(step)
                with one_compilation.watching(state, batch):
                    state, metrics, outputs = step_fn(state, batch)
                cursor += workload.stride
                log_pending(pending)  # one step late, so that the device never waits for the host
                pending = (step, metrics, outputs)
                code = stop.decide(step)
                if not (waiting or code is not None):
                    continue
                values, pending = settle(*pending), None
                if at_start:
                    recorder.compiled(compilations.seconds)
                if evaluating and code is None:
                    values |= evaluate()
                newest |= values
                # A save that a stop forces is none of an uninterrupted run.
                finished = planned and _is_done(workload, newest)
                if finished and can_evaluate and not evaluating:
                    evaluating = True
                    values |= evaluate() if code is None else {}
                showing |= can_show and finished
                if code is None or not (evaluating or showing):
                    # Step 1 too: the loss before training, which the first mean would hide.
                    force = step == 1 or evaluating or at_end or finished or code is not None
                    recorder.step(step, values, force=force)
                    evaluating = False
                # A stop saves at once, since its grace may be seconds: what is due is owed to this
                # step by the next start, which writes its record too.
                owed = {"show": showing}
                if code is not None and (evaluating or showing):
                    owed |= {"values": values, "evaluate": evaluating, "judge": planned}
                if planned or tiers.due(step) or code is not None:
                    save(planned or code is not None)
                if showing and code is None:  # after the save: what fails in it loses no step
                    show()
                    if code is not None and not planned:
                        save(True)
                if code is not None or finished:
                    break
        clock.enter("checkpoint" if code is None else "preemption")
        with watch.waiting(run_config.save_timeout_s):
            tiers.check_last()
        if code is not None:
            over = finished or step == run_config.steps
            next_run = "writes the report" if over else "goes on from there"
            log.info("saved at step %d; the same command %s", step, next_run)
            recorder.stopped(step, code)
            return code
        to_save.clear()
        clock.enter("evaluate")
        if jax.process_count() > 1 and jax.process_index() == 0:
            mirror.fetch("outputs/")  # of the other processes
        summary, sections = workload.finish(state, watch.beat) if workload.finish else ({}, {})
        recorder.finish(step, summary, sections)
        tiers.end()
    return Exit.DONE


def _is_done(workload: Workload, newest: dict[str, float]) -> bool:
    return workload.done is not None and workload.done(newest)
