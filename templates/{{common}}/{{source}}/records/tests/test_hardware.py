"""MFU is the closed form over a table whose rows are dense peaks."""

import pytest

from ..hardware import PEAKS, mfu, peaks


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
