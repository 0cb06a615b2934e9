"""Times of operations add up, without what runs inside them; another file gives nothing."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ..trace import Operation, top_operations


def event(name: str, start: float, duration: float, tid: int = 1, **args: str) -> dict:
    return {"ph": "X", "pid": 1, "tid": tid, "ts": start, "dur": duration, "name": name} | (
        {"args": args} if args else {}
    )


def write(folder: Path, session: str, *events: dict, host: str = "host") -> None:
    path = folder / "plugins" / "profile" / session / f"{host}.trace.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    # JAX ends the list with an empty event.
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [*events, {}]}).encode()))


def test_an_operation_does_not_count_what_runs_inside_it(tmp_path):
    loop = event("while.1", 0.0, 10_000.0, hlo_op="while.1")
    inside = [event("dot.2", at, 2000.0, hlo_op="dot.2") for at in (1000.0, 5000.0)]
    beside = event("dot.2", 1000.0, 4000.0, tid=2, hlo_op="dot.2")
    python = event("$loop.py run", 0.0, 90_000.0)
    write(tmp_path, "2026", *inside, loop, beside, python)
    assert top_operations(tmp_path) == [
        Operation("dot.2", 3, 8.0, pytest.approx(8 / 14)),
        Operation("while.1", 1, 6.0, pytest.approx(6 / 14)),
    ]


def test_the_rows_of_an_accelerator_are_counted_once(tmp_path):
    names = {1: "XLA Ops", 2: "Stream #14(Compute)"}
    rows = [
        {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}}
        for tid, name in names.items()
    ]
    events = [event("fusion.1", 0.0, 3000.0, tid=tid, hlo_op="fusion.1") for tid in names]
    write(tmp_path, "2026", *rows, *events)
    assert top_operations(tmp_path) == [Operation("fusion.1", 1, 3.0, 1.0)]


def test_the_newest_trace_of_all_hosts_counts(tmp_path):
    write(tmp_path, "2026_01", event("old", 0.0, 9000.0, hlo_op="old"))
    for host in ("a", "b"):
        write(tmp_path, "2026_02", event("new", 0.0, 1000.0, hlo_op="new"), host=host)
    assert top_operations(tmp_path) == [Operation("new", 2, 2.0, 1.0)]


def test_only_the_longest_are_told(tmp_path):
    events = [event(f"op.{i}", 100.0 * i, i, hlo_op="x") for i in range(1, 15)]
    write(tmp_path, "2026", *events)
    found = top_operations(tmp_path)
    assert [operation.name for operation in found] == [f"op.{i}" for i in range(14, 4, -1)]
    assert found[0].fraction == pytest.approx(14 / 105)


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b"{}")[:-9],
        gzip.compress(b"{"),
        gzip.compress(b"[]"),
        gzip.compress(b'{"traceEvents": [7]}'),
        gzip.compress(b'{"traceEvents": [{"ph": "X", "args": {"hlo_op": 1}}]}'),
    ],
)
def test_another_file_gives_nothing(tmp_path, content):
    assert top_operations(tmp_path / "missing") == []
    (tmp_path / "host.trace.json.gz").write_bytes(content)
    assert top_operations(tmp_path) == []


def test_what_jax_writes_is_read(tmp_path):
    step = jax.jit(lambda x: jnp.sin(x @ x))
    x = step(jnp.ones((64, 64)))
    with jax.profiler.trace(str(tmp_path)):
        step(x).block_until_ready()
    found = top_operations(tmp_path)
    assert found
    assert all(operation.time_ms > 0 for operation in found)
    assert sum(operation.fraction for operation in found) == pytest.approx(1.0)
