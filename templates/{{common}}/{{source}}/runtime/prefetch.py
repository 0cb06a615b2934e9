"""Makes the next batches in another thread while a step runs. Knows nothing of what is in them."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from ..contract import Batch, Workload

DEPTH = 2  # batches made ahead of need


class Prefetch:
    """A context: batches of growing cursor, each a pure function of it."""

    def __init__(self, workload: Workload, cursor: int) -> None:
        self._workload, self._next = workload, cursor
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: deque[Future[Batch]] = deque()

    def __enter__(self) -> "Prefetch":
        for _ in range(DEPTH):
            self._order()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self) -> Batch:
        """The next batch; raises what making it raised."""
        self._order()
        return self._ahead.popleft().result()

    def _order(self) -> None:
        self._ahead.append(self._pool.submit(self._workload.batch, self._next))
        self._next += self._workload.stride
