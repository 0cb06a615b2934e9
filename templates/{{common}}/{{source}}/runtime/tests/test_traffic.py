"""Bytes and counts are those of the program: in loops, over groups, and between TPU slices."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ...records.hardware import AHEAD_OF_TIME
from ...run_config import MeshConfig
from ..sharding import make_mesh
from ..traffic import read_traffic, sent_bytes

TURNS, SIZE = 5, 4 * 64 * 64  # bytes of a matrix

# As libtpu 0.0.50 writes it, shortened: one all-gather over two fusions, in a loop of 7 turns; a
# fusion that reduces and scatters; sends to other slices, to all four or in pairs.
TPU_PROGRAM = """
%start (p: bf16[8,64]) -> bf16[32,64] {
  ROOT %all-gather.1 = bf16[32,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=9, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%done (p: bf16[8,64]) -> bf16[32,64] {
  ROOT %all-gather.2 = bf16[32,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=9, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%all-reduce-scatter.3 (p: f32[64,64]) -> f32[16,64] {
  %all-reduce.4 = f32[64,64]{1,0} all-reduce(%p), channel_id=3, replica_groups=[2,4]<=[8]
}

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %f = bf16[32,64]{1,0} fusion(%p), kind=kCustom, calls=%start, metadata={op_name="all-gather"}
  %g = bf16[32,64]{1,0} fusion(%p), kind=kCustom, calls=%done
}

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.5), direction=LT
}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0}) while(%t), condition=%condition, body=%body
  %fusion.2 = f32[16,64]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
  %send.1 = (f32[1,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%a, %b), channel_id=1, \
frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:1}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.2 = (bf16[8,128]{1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%c, %d), channel_id=2, \
frontend_attributes={_xla_megascale_target={{100000,200000},{300000,400000}},\
_xla_megascale_transfer_type="ALL_GATHER"}
  %recv.2 = (bf16[16,128]{1,0:T(8,128)}, u32[]{:S(2)}, token[]) recv(%d), channel_id=2, \
frontend_attributes={_xla_megascale_target={{100000,200000},{300000,400000}},\
_xla_megascale_transfer_type="ALL_GATHER"}
}
"""

# A data-parallel step over two slices: one matrix, its gradient, plain descent.
DATA_PARALLEL = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from {package}.run_config import MeshConfig
from {package}.runtime.cost import find_devices
from {package}.runtime.sharding import make_mesh
from {package}.runtime.traffic import read_traffic, sent_bytes

devices = find_devices("v6e:2x2", 2)
mesh = make_mesh(MeshConfig(), devices)
order = [device.slice_index for device in mesh.devices.flat]

def step(w, x):
    return w - jax.grad(lambda w: jnp.square(x @ w).mean())(w)

w = jax.ShapeDtypeStruct((512, 1024), "float32", sharding=NamedSharding(mesh, P()))
x = jax.ShapeDtypeStruct((64, 512), "float32", sharding=NamedSharding(mesh, P("data")))
found = read_traffic(jax.jit(step).lower(w, x).compile().as_text(), mesh.size)
print(json.dumps([order, sent_bytes(found, between_slices=True), found[0].times]))
"""


def test_a_collective_of_a_loop_counts_for_each_turn() -> None:
    mesh = make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])

    def step(stacked: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stacked)[0].sum()

    stacked = jax.ShapeDtypeStruct(
        (TURNS, 64, 64), "float32", sharding=NamedSharding(mesh, P(None, None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((8, 64), "float32", sharding=NamedSharding(mesh, P()))
    found = read_traffic(jax.jit(step).lower(stacked, x).compile().as_text(), 4)
    gathers = [c for c in found if c.kind == "all-gather"]
    assert [c.times for c in gathers] == [TURNS]  # of activations (8, 64), 16 columns each
    assert sent_bytes(gathers, between_slices=False) == TURNS * 3 / 4 * 8 * 64 * 4


def test_what_libtpu_writes_is_read() -> None:
    within = [c for c in read_traffic(TPU_PROGRAM, 8) if not c.between_slices]
    assert sorted(c.kind for c in within) == ["all-gather", "reduce-scatter"]
    found = {c.kind: c for c in within}
    assert found["all-gather"].times == 7
    assert found["all-gather"].sent_bytes == 3 / 4 * 32 * 64 * 2
    assert found["reduce-scatter"].sent_bytes == 3 / 4 * 64 * 64 * 4
    between = {c.kind: c for c in read_traffic(TPU_PROGRAM, 8) if c.between_slices}
    assert between["all-reduce"].sent_bytes == 2 * 3 / 4 * 8 * 128 * 4  # four slices
    assert between["all-gather"].sent_bytes == 8 * 128 * 2  # of pairs: the own part, once


@pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu is missing: uv sync --extra tpu")
def test_two_slices_exchange_their_gradient() -> None:
    package = __package__.split(".")[0]
    answer = subprocess.run(
        [sys.executable, "-c", DATA_PARALLEL.replace("{package}", package)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | AHEAD_OF_TIME,
    )
    order, device_sends, _ = json.loads(answer.stdout)
    assert order == [0] * 4 + [1] * 4  # the data axis crosses slices once
    # Each of the four chips of a slice sends a quarter of the gradient to its peer: with two slices
    # an all-reduce of n bytes sends 2 (2 - 1) / 2 = 1 n.
    assert 4 * device_sends == pytest.approx(512 * 1024 * 4, rel=0.02)
