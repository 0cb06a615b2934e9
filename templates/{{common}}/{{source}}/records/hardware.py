"""Peak rates of devices, and the share of them that a run reaches (MFU). Measures nothing.

A row is one JAX device, on TPU7x half a chip. FLOP/s are dense: data sheets often print twice as
much, with 2:4 sparsity. `device_kind` is matched whole: a MIG slice, or a chip that has no row,
gets no MFU instead of a wrong one.
"""

from dataclasses import dataclass

GOOGLE = "docs.cloud.google.com/tpu/docs and jax/_src/tpu_info.py of JAX 0.12.0 (read 2026-08)"
NVIDIA = "NVIDIA data sheets, half of what they print with sparsity (read 2026-08)"


@dataclass(frozen=True)
class Peaks:
    """Upper bounds of one JAX device."""

    bf16_flops: float  # a second, dense
    hbm_bytes: float
    hbm_bytes_per_s: float
    source: str


_ROWS = (
    (("TPU v4",), Peaks(275e12, 34.4e9, 1.23e12, GOOGLE)),
    (("TPU v5 lite", "TPU v5e"), Peaks(197e12, 17.2e9, 0.82e12, GOOGLE)),
    (("TPU v5", "TPU v5p"), Peaks(459e12, 103e9, 2.765e12, GOOGLE)),
    (("TPU v6 lite", "TPU v6e"), Peaks(918e12, 34.4e9, 1.64e12, GOOGLE)),
    (("TPU7x",), Peaks(2307e12 / 2, 206e9 / 2, 7.38e12 / 2, GOOGLE)),
    (("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), Peaks(312e12, 40e9, 1.555e12, NVIDIA)),
    (("NVIDIA A100-SXM4-80GB",), Peaks(312e12, 80e9, 2.039e12, NVIDIA)),
    (("NVIDIA A100 80GB PCIe",), Peaks(312e12, 80e9, 1.935e12, NVIDIA)),
    (("NVIDIA H100 80GB HBM3",), Peaks(989e12, 80e9, 3.35e12, NVIDIA)),
    (("NVIDIA H100 PCIe",), Peaks(756e12, 80e9, 2.0e12, NVIDIA)),
    (("NVIDIA H200",), Peaks(989e12, 141e9, 4.8e12, NVIDIA)),
    (("NVIDIA B200",), Peaks(2250e12, 180e9, 8.0e12, NVIDIA)),
    (("NVIDIA GB200",), Peaks(2500e12, 186e9, 8.0e12, NVIDIA)),
)
PEAKS = {kind: row for kinds, row in _ROWS for kind in kinds}


def peaks(device_kind: str) -> Peaks | None:
    """Peaks by `jax.Device.device_kind`; None for a chip that is not in the table."""
    return PEAKS.get(device_kind)


def mfu(flops: float, step_s: float, devices: int, device_kind: str) -> tuple[float | None, str]:
    """Model FLOPs of a step -> utilisation and its formula; None and why for an unknown chip."""
    chip = peaks(device_kind)
    if chip is None:
        return None, f"no MFU: hardware.py knows no peak of {device_kind!r}"
    share = flops / (step_s * devices * chip.bf16_flops)
    return share, (
        f"MFU {share:.1%} = {flops:.4g} model FLOP a step / ({step_s:.4g} s x {devices} x "
        f"{chip.bf16_flops:.4g} FLOP/s, the dense bf16 peak of {device_kind})"
    )
