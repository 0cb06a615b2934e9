"""What the benchmarks count without a GPU at hand to see it: a profiler's trace of one."""

import gzip
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

TRACED = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "traced.py"))


def complete(name: str, ts: float, dur: float, pid: int = 1, tid: int = 7, **more: Any) -> dict:
    return {"ph": "X", "name": name, "ts": ts, "dur": dur, "pid": pid, "tid": tid} | more


def named(what: str, name: str, pid: int, tid: int = 0) -> dict:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": tid, "args": {"name": name}}


JAX = [
    named("process", "/device:GPU:0", 1),
    named("process", "/host:CPU", 2),
    named("thread", "Stream #13(Compute)", 1, 7),
    named("thread", "XLA Ops", 1, 8),
    complete("loop_fusion.12", 0, 30),
    complete("loop_fusion_7", 30, 10),
    complete("gemm", 40, 60),
    complete("gemm", 40, 60, tid=8),  # the same work again, by its place in the program
    complete("ExecuteHelper", 0, 500, pid=2),
]
TORCH = [
    complete("aten::mm", 0, 500, pid=2),
    complete("void gemm(float*, int)", 40, 60, cat="kernel"),
    complete("loop_fusion", 0, 40, cat="kernel"),
]
HOST = [complete("gemm", 0, 100), complete("loop_fusion", 10, 40), complete("$python", 0, 900)]


@pytest.mark.parametrize("events", [JAX, TORCH, HOST], ids=["jax", "torch", "host"])
def test_largest_operations_are_counted_once_and_by_their_own_time(
    events: list[dict], tmp_path: Path
) -> None:
    with gzip.open(tmp_path / "t.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    found = TRACED["top_operations"](tmp_path, steps=2)
    assert found["busy_ms_per_step"] == pytest.approx(0.05)
    shares = {row["name"]: row["share"] for row in found["top"]}
    assert shares == pytest.approx({"gemm": 0.6, "loop_fusion": 0.4})
