"""Makes the next batches in other threads while a step runs. Does not look into them."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from ..contract import Batch, Workload


class Prefetch:
    """A context manager that gives batches in the order of the cursor."""

    def __init__(self, workload: Workload, cursor: int, workers: int = 1) -> None:
        self._workload, self._next = workload, cursor
        self._depth = workers + 1  # batches made ahead: one waits while each worker makes another
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
        self._ahead: deque[Future[Batch]] = deque()

    def __enter__(self) -> "Prefetch":
        for _ in range(self._depth):
            self._submit()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self) -> Batch:
        """The next batch; raises what making it raised."""
        self._submit()
        return self._ahead.popleft().result()

    def _submit(self) -> None:
        self._ahead.append(self._pool.submit(self._workload.batch, self._next))
        self._next += self._workload.stride
