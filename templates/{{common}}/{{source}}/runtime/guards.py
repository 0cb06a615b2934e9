"""What watches a run: non-finite steps, a second compilation, what the state costs in memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.monitoring

from ..errors import UserError

log = logging.getLogger(__name__)


class SkipLimit:
    """Stops a run in which too many steps in a row were not finite."""

    def __init__(self, limit: int, skipped: int) -> None:
        self._limit, self._in_a_row, self._last = limit, 0, skipped

    def check(self, step: int, metrics: dict[str, Any]) -> bool:
        """Whether the step was skipped. metrics: on the host, equal in all processes."""
        skipped = int(metrics.get("skipped", 0))
        grew = skipped > self._last
        self._in_a_row, self._last = (self._in_a_row + 1 if grew else 0), skipped
        if grew:
            log.warning("step %d was not finite and was skipped: %s", step, metrics)
        if self._in_a_row >= self._limit:
            shown = {name: value for name, value in metrics.items() if name != "skipped"}
            raise UserError(
                got=f"{self._in_a_row} non-finite steps in a row, up to step {step}: {shown}",
                expected="finite metrics",
                do="the last checkpoint is sound. Lower the learning rate, or look for the first "
                "NaN with JAX_DEBUG_NANS=True; --max-skipped-steps raises the limit",
            )
        return grew


class CompileCount:
    """Counts XLA compilations of this process."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
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
        seen = _signature(inputs)  # shapes and shardings outlive a donation
        if self._seen is not None:
            pairs = ((name, self._seen.get(name), value) for name, value in seen.items())
            changed = [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]
            what = "; ".join(changed) or "nothing in its inputs"
            log.warning("the step was compiled again; what changed: %s", what)
        self._seen = seen


def _signature(inputs: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(inputs)
    return {jax.tree_util.keystr(path): f"{jax.typeof(x)} {x.sharding}" for path, x in leaves}
