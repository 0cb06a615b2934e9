"""Periods and shares against the model that they come from; rows against the compiler."""

import functools
import math
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ...config import PRESETS
from ...contract import State, Workload
from ...errors import UserError
from ...records.hardware import AHEAD_OF_TIME, GIB, slice_of
from ...run_config import MeshConfig
from ...runtime.compiled import abstract_state
from ...runtime.sharding import make_mesh
from ..plan import (
    Assumptions,
    Row,
    expected_goodput,
    host_bytes,
    plan_row,
    save_period_s,
    stand_ins,
)
from ..plan_table import show_rows

DAY_S = 86_400.0
ASSUMED = Assumptions(mtbf_chip_hours=50_000, restart_s=300)
needs_libtpu = pytest.mark.skipif(
    not find_spec("libtpu"), reason="libtpu is missing: uv sync --extra tpu"
)


def matrix(config: Any, mesh: Mesh, *, rows: int = 512, columns: int = 1024) -> Workload:
    """Least squares by plain descent, a matrix of float32, its rows over fsdp."""

    def step(state: State, x: jax.Array) -> Any:
        loss, gradient = jax.value_and_grad(lambda w: jnp.square(x @ w).mean())(
            state["params"]["w"]
        )
        # By its norm, so that the whole gradient has to be there at once.
        new = {"w": state["params"]["w"] - gradient / jnp.linalg.norm(gradient)}
        return {"params": new, "step": state["step"] + 1}, {"loss": loss}, {}

    def init(key: jax.Array) -> State:
        return {"params": {"w": jnp.zeros((rows, columns))}, "step": jnp.int32(0)}

    sharding = NamedSharding(mesh, P(("data", "fsdp")))
    return Workload(
        init=init,
        step=step,
        batch=lambda _: jax.ShapeDtypeStruct((64, rows), "float32", sharding=sharding),
        specs=lambda _: {"params": {"w": P("fsdp")}, "step": P()},
        flops_per_step=6.0 * 64 * rows * columns,
    )


def row(topology: str, slices: int = 1, *, compiled: bool = False, **changes: Any) -> Row:
    """The row of the matrix; axes of the mesh, sizes of the matrix, or assumptions."""
    mesh = MeshConfig(fsdp=changes.pop("fsdp", 1), tensor=changes.pop("tensor", 1))
    sizes = {name: changes.pop(name) for name in ("rows", "columns") if name in changes}
    config = replace(next(iter(PRESETS.values()))(), mesh=mesh)
    assumed, made = replace(ASSUMED, **changes), functools.partial(matrix, **sizes)
    return plan_row(config, topology, slices, made, assumed, compiled)


def expected_time(period_s: float, save_s: float, mtbf_s: float, restart_s: float) -> float:
    """Daly's complete model, equation 20: expected seconds for a second of work."""
    turns = math.exp(restart_s / mtbf_s) * (math.exp((period_s + save_s) / mtbf_s) - 1)
    return mtbf_s * turns / period_s


@pytest.mark.parametrize("save_s", [0.1, 10.0, 600.0, 7200.0])
def test_the_period_is_the_best_of_the_complete_model(save_s: float) -> None:
    period = save_period_s(save_s, DAY_S)
    tried = np.geomspace(save_s, 3 * DAY_S, 20_000)
    best = min(expected_time(t, save_s, DAY_S, 300.0) for t in tried)
    assert expected_time(period, save_s, DAY_S, 300.0) == pytest.approx(best, rel=1e-4)
    if save_s < 60:
        assert period == pytest.approx(math.sqrt(2 * save_s * DAY_S), rel=0.02)  # Young


def test_a_save_that_outlasts_the_machine_is_made_once_a_failure() -> None:
    assert save_period_s(2 * DAY_S, DAY_S) == DAY_S
    assert save_period_s(2 * DAY_S * 0.9999, DAY_S) == pytest.approx(DAY_S * 8 / 9, rel=0.01)
    assert expected_goodput(60.0, 60.0, 60.0, 60.0) == 0


@pytest.mark.parametrize("save_s", [0.1, 10.0, 60.0])
def test_goodput_is_that_of_the_complete_model(save_s: float) -> None:
    period = save_period_s(save_s, DAY_S)
    model = 1 / expected_time(period, save_s, DAY_S, 300.0)
    assert expected_goodput(save_s, period, DAY_S, 300.0) == pytest.approx(model, abs=0.002)


def test_an_estimate_is_arithmetic_and_says_that_it_is_one() -> None:
    size = 512 * 1024 * 4
    found = row("v5e:4x4", slices=4, price_per_chip_hour=2.0, blocking_s=10.0, step_s=0.5)
    assert (found.source, found.fits, found.chips, found.hosts) == ("estimate", None, 64, 16)
    assert found.mesh == {"data": 64, "fsdp": 1, "tensor": 1}
    assert found.needed_bytes == found.checkpoint_bytes == size + 4
    # Each slice sends 2 (4 - 1) / 4 of the gradient in bfloat16, by the network of its four hosts.
    assert found.dcn_bytes_per_host == pytest.approx(1.5 * size / 2 / 4)
    assert found.bounds_s["DCN"] == pytest.approx(1.5 * size / 2 / 16 / 3.125e9)
    assert found.bounds_s["HBM"] == pytest.approx(2 * (size + 4) / 0.82e12)
    assert found.bounds_s["FLOPs"] == pytest.approx(6 * 64 * 512 * 1024 / 64 / 197e12)
    assert "ICI" not in found.bounds_s
    mtbf_s = 50_000 * 3600 / 64
    assert found.save_every_s == pytest.approx(save_period_s(10.0, mtbf_s))
    assert found.save_every_steps == round(found.save_every_s / 0.5)
    assert found.hours == pytest.approx(found.steps * 0.5 / 3600 / found.goodput)
    assert found.cost == pytest.approx(2.0 * 64 * found.hours)
    assert found.bound_by == "measured"


def test_the_longest_bound_counts() -> None:
    far, near = row("v5e:4x4", slices=2), row("v5e:4x4")
    assert far.bound_by == "DCN"
    assert far.step_s == max(far.bounds_s.values())
    assert near.bounds_s["DCN"] == near.dcn_bytes_per_host == 0
    assert near.bound_by == "HBM"


def test_a_state_that_is_larger_than_a_device_is_ruled_out() -> None:
    sizes = {"rows": 2**16, "columns": 2**17}  # 32 GiB
    assert row("v5e:2x2", **sizes).fits is False
    assert row("v5e:2x2", **sizes, fsdp=4).fits is None
    assert row("v6e:2x2", **sizes).fits is False  # 31.24 GiB
    assert row("h100:1", **sizes).fits is None


@pytest.mark.parametrize("name", ["h100:2", "v5e:4x4"])
def test_stand_ins_are_named_as_what_they_stand_for(name: str) -> None:
    found = slice_of(*name.split(":"))
    assert {each.device_kind for each in stand_ins(found, 2)} == {found.device_kind}


def test_gpu_nodes_are_joined_by_their_network_but_for_those_of_a_rack() -> None:
    size = 512 * 1024 * 4
    assert row("h100:2").dcn_bytes_per_host == pytest.approx(size / 2)
    assert row("gb200:2").dcn_bytes_per_host == 0
    assert row("h100:2", compiled=True).source == "estimate"  # needs one of the GPUs


def test_a_tensor_axis_spans_hosts_of_a_slice_and_no_slices() -> None:
    assert row("v5p:2x2x2", tensor=8).mesh["tensor"] == 8
    assert row("gb200:2", tensor=8).mesh["tensor"] == 8
    with pytest.raises(UserError, match="a divisor of 8"):
        row("v5p:2x2x2", 2, tensor=16)


@pytest.mark.parametrize(("fsdp", "expected"), [(1, [4, 0]), (2, [4, 0]), (4, [4, 0]), (8, [2, 2])])
def test_first_holders_write_a_checkpoint(fsdp: int, expected: list[int]) -> None:
    mesh = make_mesh(MeshConfig(fsdp=fsdp), stand_ins(slice_of("v6e", "2x2"), 2))
    state, _ = abstract_state(matrix(None, mesh), 0, mesh)
    hosts = host_bytes(state, mesh)
    quarter = 512 * 1024 * 4 // 4
    assert [hosts[0] - 4, hosts[1]] == [n * quarter for n in expected]  # host 0 has the step


def test_first_holders_are_those_that_jax_numbers_0() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2))
    sharding = NamedSharding(mesh, P("fsdp"))
    shards = jax.device_put(np.zeros((4, 4)), sharding).addressable_shards
    firsts = {shard.device for shard in shards if shard.replica_id == 0}
    assert firsts == set(mesh.devices[0, :, 0])


@needs_libtpu
def test_the_compiler_answers_for_three_generations_and_two_slices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in AHEAD_OF_TIME.items():
        monkeypatch.setenv(name, value)
    size = 512 * 1024 * 4
    one, other, two = (
        row("v5e:2x2", compiled=True, fsdp=4),
        row("v5p:2x2x1", compiled=True),
        row("v6e:2x2", 2, compiled=True),
    )
    assert [r.fits for r in (one, other, two)] == [True] * 3
    assert one.limit_bytes == pytest.approx(15.75 * GIB)
    assert one.needed_bytes is not None
    assert size / 4 < one.needed_bytes < 10 * size
    assert other.dcn_bytes_per_host == 0
    # The estimate is the least: XLA sends this gradient as the float32 that it is.
    assert two.dcn_bytes_per_host == pytest.approx(size, rel=0.02)
    assert row("v6e:2x2", 2).dcn_bytes_per_host == size / 2
    assert one.bounds_s["ICI"] > 0
    # State and gradient: an estimate cannot tell, the compiler can.
    sizes = {"rows": 2**16, "columns": 2**15}  # 8 GiB
    assert row("v5e:1x1", **sizes).fits is None
    full = row("v5e:1x1", compiled=True, **sizes)
    assert full.fits is False
    assert full.needed_bytes is not None
    assert full.needed_bytes > full.limit_bytes
    show_rows([full, two], {})
    shown = capsys.readouterr().out
    assert "v5e:1x1 does not fit: a device needs" in shown
    assert "GiB of 15.75 GiB" in shown
