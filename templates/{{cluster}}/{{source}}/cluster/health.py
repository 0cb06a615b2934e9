"""Whether every host of a job computes, remembers and reaches the others; names those that fail.

Three checks in this order, each within a limit: every process alone, neighbours in pairs, all
together. Their sums are of whole numbers, hence equal to the bit on any sound chip. No part of a
run: `health -- train ...` makes one after it, in the same processes.
"""

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..runtime.agree import exchange
from ..runtime.distributed import unique

SIZE, CPU_SIZE = 2048, 256  # of matrices whose products add up to what a float32 holds exactly
SENT = 2**20  # float32 that a device sends, 4 MiB
CHUNK = 2**28  # uint32 of memory that are filled at once, 1 GiB
FILLED = 0.8  # of an accelerator's free memory; of a CPU's, 64 MiB
SLOW = 2.0  # times the median of all


@dataclass(frozen=True)
class Check:
    """What came of one check."""

    name: str
    hosts: dict[int, str]
    """Process -> its host."""
    seconds: dict[int, float]
    """Process that passed -> for how long it was at it, without compiling."""
    failed: dict[int, str]
    """Process -> why it did not."""

    def __str__(self) -> str:
        """A line, and one more for each process that failed."""
        if self.failed:
            each = (f"{self._who(i)}: {why}" for i, why in sorted(self.failed.items()))
            return "\n  ".join([f"{self.name}: FAILED", *each])
        usual_s = statistics.median(self.seconds.values())
        slow = {i: s for i, s in sorted(self.seconds.items()) if s > SLOW * usual_s}
        each = (f"; slow: {self._who(i)}, {1e3 * s:.3g} ms" for i, s in slow.items())
        return "".join([f"{self.name}: {1e3 * usual_s:.3g} ms", *each])

    def _who(self, index: int) -> str:
        return f"process {index} on {self.hosts[index]}"


def check_all(limit_s: float) -> Iterator[Check]:
    """The checks up to the first that fails, the same in every process of the job."""
    count, own = jax.process_count(), jax.process_index()
    yield (alone := run("alone", range(count), compute, limit_s))
    if alone.failed or count == 1:
        return
    rounds = [
        [(i, (i + 1) % count) for i in range(first, count - 1 + first, 2)] for first in (0, 1)
    ]
    links = []
    for pairs in rounds[: 1 if count == 2 else 2]:
        members = {i: pair for pair in pairs for i in pair}
        mine = members.get(own, ())
        links.append(run("pairs", members, partial(reach, mine), limit_s))
    # Who reaches one neighbour is sound: what fails is the other one, or what lies between.
    seconds = {i: s for link in links for i, s in link.seconds.items()}
    failed = {i: why for link in links for i, why in link.failed.items()}
    causes = {i: why for i, why in failed.items() if i not in seconds} or failed
    yield replace(links[0], seconds=seconds, failed=causes)
    if not causes and count > 2:
        yield run("all", range(count), partial(reach, range(count)), limit_s)


def run(name: str, members: Collection[int], work: Callable[[], float], limit_s: float) -> Check:
    """Do one check if this process is a member, and say what came of it to all."""
    said = {"host": socket.gethostname(), "why": f"not done within {limit_s:g} s", "seconds": 0.0}

    def attempt() -> None:
        try:
            said.update(seconds=work(), why="")
        except Exception as error:  # a driver may raise anything
            said.update(why=(str(error) or repr(error)).splitlines()[0])

    if jax.process_index() in members:
        # A thread that hangs in a collective is left behind.
        thread = threading.Thread(target=attempt, name="health", daemon=True)
        thread.start()
        thread.join(limit_s)
    told = {i: json.loads(text) for i, text in exchange(unique(name), json.dumps(said)).items()}
    return Check(
        name,
        {i: row["host"] for i, row in told.items()},
        {i: row["seconds"] for i, row in told.items() if i in members and not row["why"]},
        {i: row["why"] for i, row in told.items() if i in members and row["why"]},
    )


def compute() -> float:
    """Multiply and remember, on each device of this process; seconds of the slowest product."""
    longest_s = 0.0
    for device in jax.local_devices():
        size = CPU_SIZE if device.platform == "cpu" else SIZE
        rng = np.random.default_rng(0)
        a, b = rng.integers(-1, 2, (2, size, size)).astype(np.float32)
        weights = rng.integers(0, 7, (size, size)).astype(np.int32)
        add = jax.jit(lambda a, b, weights: jnp.sum((a @ b).astype(jnp.int32) * weights))
        found, seconds = _timed(add, *(jax.device_put(x, device) for x in (a, b, weights)))
        longest_s = max(longest_s, seconds)
        exact = np.sum(np.rint(a.astype(np.float64) @ b).astype(np.int64) * weights)
        _demand(int(found) == int(exact.astype(np.int32)), f"{device} multiplies wrongly")
        count, chunks = CHUNK // 16, 1
        if stats := device.memory_stats():  # None on the CPU
            free_bytes = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
            count, chunks = CHUNK, int(FILLED * free_bytes) // (4 * CHUNK)
        with jax.default_device(device):
            # All numbers below a power of two, in another order in each chunk.
            held = [jnp.arange(count, dtype=jnp.uint32) ^ np.uint32(k) for k in range(chunks)]
            sums = {int(jnp.sum(chunk)) for chunk in held}
        _demand(sums <= {count * (count - 1) // 2 % 2**32}, f"{device} remembers wrongly")
    return longest_s


def reach(members: Collection[int]) -> float:
    """Add up over all devices of some processes, each of which calls it; seconds of it."""
    devices = [device for device in jax.devices() if device.process_index in members]
    mesh = Mesh(np.asarray(devices), ("all",))
    rows, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())

    def numbers(index: Any) -> np.ndarray:
        return np.full((1, SENT), index[0].start or 0, np.float32)

    x = jax.make_array_from_callback((len(devices), SENT), rows, numbers)
    found, seconds = _timed(jax.jit(lambda x: x.sum(axis=0), out_shardings=whole), x)
    exact = len(devices) * (len(devices) - 1) / 2
    is_exact = bool((np.asarray(found.addressable_data(0)) == exact).all())
    _demand(is_exact, f"a sum over processes {', '.join(map(str, members))} is wrong")
    return seconds


def _timed(function: Callable[..., jax.Array], *args: jax.Array) -> tuple[jax.Array, float]:
    """What a function returns, and the seconds of its second call."""
    function(*args).block_until_ready()
    began_s = time.monotonic()
    found = function(*args).block_until_ready()
    return found, time.monotonic() - began_s


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ArithmeticError(otherwise)
