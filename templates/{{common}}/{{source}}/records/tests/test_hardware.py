"""MFU is the closed form over dense peaks, and slices are those that libtpu and Google know."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from ...errors import UserError
from ..hardware import AHEAD_OF_TIME, CHIPS, GIB, PEAKS, mfu, peaks, slice_of

ASK_LIBTPU = """
import json, re, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies

found = {}
for name, options in json.load(sys.stdin):
    devices = topologies.get_topology_desc(name, "tpu", **options).devices
    hosts = len({d.process_index for d in devices})
    limit = None
    if hosts == 1:
        one = jax.sharding.SingleDeviceSharding(devices[0])
        huge = jax.ShapeDtypeStruct((2**38,), jnp.int8, sharding=one)
        try:
            jax.jit(lambda x: x + 1).lower(huge).compile()
        except jax.errors.JaxRuntimeError as error:
            limit = re.search(r"available HBM .([\\d.]+)G", str(error))[1]
    found[name] = [len(devices), hosts, devices[0].device_kind, limit]
print(json.dumps(found))
"""


def test_mfu_is_the_closed_form():
    # Half of eight H200 for two seconds.
    value, formula = mfu(0.5 * 8 * 2.0 * 989e12, 2.0, 8, "NVIDIA H200")
    assert value == pytest.approx(0.5)
    for part in ("50.0%", "7.912e+15", "2 s", "8", "9.89e+14", "NVIDIA H200"):
        assert part in formula


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H200 MIG 1g.18gb", "TPU v99"])
def test_an_unknown_chip_gets_no_mfu(kind):
    assert peaks(kind) is None
    value, why = mfu(1e15, 1.0, 1, kind)
    assert value is None
    assert kind in why


def test_rows_are_dense_and_in_proportion():
    assert PEAKS["NVIDIA H100 80GB HBM3"].bf16_flops < 1e15  # 1979e12 is the sparse figure
    assert 2 * PEAKS["TPU7x"].bf16_flops == 2307e12  # a chip is two devices
    for row in PEAKS.values():
        assert 100 < row.bf16_flops / row.hbm_bytes_per_s < 700  # FLOP a byte
        assert 0.01 < row.hbm_bytes / row.hbm_bytes_per_s < 0.06  # s to read it all
        assert row.source


def test_links_are_in_proportion():
    for chip in CHIPS.values():
        hbm = PEAKS[chip.device_kind].hbm_bytes_per_s * chip.devices
        assert 2 < hbm / chip.ici_bytes_per_s < 13
        assert 8 < chip.ici_bytes_per_s / chip.dcn_bytes_per_s < 200
        assert chip.source


@pytest.mark.parametrize(
    ("name", "hosts", "chips_per_host", "machine", "api", "sky"),
    [
        ("v4:2x2x4", 4, 4, "ct4p-hightpu-4t", "v4-32", "tpu-v4-32"),  # cores
        ("v5e:1x1", 1, 1, "ct5lp-hightpu-1t", "v5litepod-1", "tpu-v5litepod-1"),
        ("v5e:2x4", 1, 8, "ct5lp-hightpu-8t", "v5litepod-8", "tpu-v5litepod-8"),
        ("v5e:16x16", 64, 4, "ct5lp-hightpu-4t", "v5litepod-256", "tpu-v5litepod-256"),
        ("v5p:16x16x24", 1536, 4, "ct5p-hightpu-4t", "v5p-12288", "tpu-v5p-12288"),
        ("v6e:2x2", 1, 4, "ct6e-standard-4t", "v6e-4", "tpu-v6e-4"),
        ("v6e:4x4", 4, 4, "ct6e-standard-4t", "v6e-16", "tpu-v6e-16"),
        ("tpu7x:2x2x1", 1, 4, "tpu7x-standard-4t", "", ""),
        ("a100:1", 1, 8, "a2-ultragpu-8g", "", "A100-80GB:8"),
        ("h100:2", 2, 8, "a3-megagpu-8g", "", "H100-MEGA:8"),  # H100 is another machine there
        ("h200:2", 2, 8, "a3-ultragpu-8g", "", "H200:8"),
        ("b200:2", 2, 8, "a4-highgpu-8g", "", "B200:8"),
        ("gb200:18", 18, 4, "a4x-highgpu-4g", "", ""),
    ],
)
def test_slices_are_those_of_the_pages(name, hosts, chips_per_host, machine, api, sky):
    found = slice_of(*name.split(":"))
    assert (found.hosts, found.chips_per_host) == (hosts, chips_per_host)
    assert found.chips == hosts * chips_per_host
    assert (found.machine_type, found.api_type, found.sky_type) == (machine, api, sky)
    assert found.devices == found.chips * (2 if name.startswith("tpu7x") else 1)


@pytest.mark.parametrize(
    ("topology", "expected"), [("4x4x16", "4x8x8"), ("4x4x24", "4x8x12"), ("2x4x4", "2x4x4")]
)
def test_as_many_chips_in_their_most_compact_shape(topology, expected):
    assert slice_of("v5p", topology).most_compact == expected


@pytest.mark.parametrize(
    ("accelerator", "topology", "expected"),
    [
        ("v5litepod-16", "4x4", "write v5e"),
        ("V6E", "4x4", "write v6e"),
        ("zebra", "4x4", "needs a row in records/hardware.py"),
        ("v6e", "4x2", "write 2x4 "),
        ("v6e", "32x16", "write 16x16 .* more slices"),
        ("v5p", "4x4", "write 2x2x4 "),
        ("v5p", "8x4x4", "write 4x4x8 "),
        ("v4", "16x16x32", "at most 4096 chips"),
        ("v5p", "8x8x100", "write 8x8x96 "),
        ("v5e", "", "write 1x1"),
        ("v5e", "0x0", "write 1x1"),
        ("v4", "9" * 4000, "write"),
        ("h100", "2x2", "the number of GPU nodes"),
        ("h100", "0", "write 2 for two machines a3-megagpu-8g"),
    ],
)
def test_a_slice_that_is_not_offered_names_those_near_to_it(accelerator, topology, expected):
    with pytest.raises(UserError, match=f"(?s)got:.*expected:.*{expected}"):
        slice_of(accelerator, topology)


@pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu is missing: uv sync --extra tpu")
def test_libtpu_agrees_on_chips_hosts_and_memory():
    names = ["v4:2x2x1", "v4:2x2x4", "v5e:1x1", "v5e:2x4", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x8"]
    names += ["v6e:1x1", "v6e:4x4", "tpu7x:2x2x1", "tpu7x:4x4x4"]
    slices = {name: slice_of(*name.split(":")) for name in names}
    asked = json.dumps([(name, s.libtpu_options()) for name, s in slices.items()])
    answer = subprocess.run(
        [sys.executable, "-c", ASK_LIBTPU],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | AHEAD_OF_TIME,
    )
    for name, (devices, hosts, kind, limit) in json.loads(answer.stdout).items():
        expected = slices[name]
        assert (devices, hosts) == (expected.devices, expected.hosts), name
        assert kind == expected.device_kind
        if hosts == 1:
            assert expected.peaks.program_bytes == pytest.approx(float(limit) * GIB, rel=1e-3), name
