"""Checks of each step: non-finite metrics, and a second compilation. Changes no state."""

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import jax.monitoring

from ..contract import State, Workload
from ..errors import UserError
from .private import COMPILED_EVENT

log = logging.getLogger(__name__)


class FiniteCheck:
    """Handles non-finite metrics as `workload.nonfinite` says."""

    def __init__(self, workload: Workload, limit: int, state: State) -> None:
        self._mode, self._limit, self._in_a_row = workload.nonfinite, limit, 0
        self._smaller_steps = workload.smaller_steps
        self._skipped = int(state["skipped"]) if self._mode == "skip" else 0

    @property
    def skipping(self) -> bool:
        """Whether the newest step was skipped."""
        return self._in_a_row > 0

    def counts(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether the step counts. metrics: on the host, equal in all processes."""
        if self._mode == "allow":
            return True
        if self._mode == "stop":
            if not all(map(math.isfinite, metrics.values())):
                raise self._stop(f"step {step}: {metrics}", metrics)
            return True
        before, self._skipped = self._skipped, int(metrics["skipped"])
        if self._skipped == before:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        shown = {name: value for name, value in metrics.items() if name != "skipped"}
        why = "is too large" if all(map(math.isfinite, metrics.values())) else "is not finite"
        log.warning("step %d %s and is skipped: %s", step, why, shown)
        if self._in_a_row >= self._limit:
            got = f"{self._in_a_row} skipped steps in a row, up to step {step}: {shown}"
            raise self._stop(got, metrics)
        return False

    def _stop(self, got: str, metrics: dict[str, float]) -> UserError:
        do = "run the same command again"
        if self._smaller_steps:
            do += f" with {self._smaller_steps}: it goes on in smaller steps"
        if self._mode == "skip":
            do += f"; --max-skipped-steps {2 * self._limit} skips more of them"
        if all(map(math.isfinite, metrics.values())):
            return UserError(got=got, expected="a gradient and rates that are no larger", do=do)
        # Of a step's results alone: the infinities of a mask, which are meant, are inside it.
        what = "nans" if any(map(math.isnan, metrics.values())) else "infs"
        do += f"; with JAX_DEBUG_{what.upper()}=1 set, it stops where the first one is computed"
        return UserError(got=got, expected="finite metrics", do=do)


@contextmanager
def debugging_as_asked() -> Iterator[None]:
    """JAX_DEBUG_NANS and JAX_DEBUG_INFS hold in this thread, whatever JAX does in between.

    Whenever JAX pauses them for a moment, as it does to trace some functions, it forgets to turn
    them on again where the thread has no value of its own (jax 0.12: `jaxpr_as_fun`).
    """
    with ExitStack() as stack:
        if jax.config.jax_debug_nans:
            stack.enter_context(jax.debug_nans(True))
        if jax.config.jax_debug_infs:
            stack.enter_context(jax.debug_infs(True))
        yield


class CompileCount:
    """Counts XLA compilations of this process."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED_EVENT:
            self.count += 1
            self.seconds += duration_secs


class OneCompilation:
    """Warns when a function that was compiled is compiled again, and says which input changed."""

    def __init__(self, counter: CompileCount) -> None:
        self._counter = counter
        self._seen: dict[str, str] | None = None

    @contextmanager
    def watching(self, *inputs: Any) -> Iterator[None]:
        """Wrap one call; `inputs` are its arguments."""
        before = self._counter.count
        yield
        if self._counter.count == before:
            return
        seen = _signature(inputs)  # shapes and shardings can be read after a donation
        if self._seen is not None:
            pairs = ((name, self._seen.get(name), value) for name, value in seen.items())
            changed = [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]
            what = "; ".join(changed) or "nothing in its inputs"
            log.warning("the step was compiled again; what changed: %s", what)
        self._seen = seen


def _signature(inputs: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(inputs)
    return {jax.tree_util.keystr(path): f"{jax.typeof(x)} {x.sharding}" for path, x in leaves}
