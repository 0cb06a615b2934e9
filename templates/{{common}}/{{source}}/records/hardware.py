"""What accelerators are: peak rates of a device, and the hosts, names and links of a slice.

The one table of hardware: MFU, `plan`, the launchers and TPU topologies read it. A chip is what is
rented and counted; a device is what JAX shows, on TPU7x half a chip. A slice is what one fast
network joins: the chips of a TPU topology, or GPU nodes. Knows no price and measures nothing.

FLOP/s are dense: data sheets often print twice as much, with 2:4 sparsity. `device_kind` is matched
whole: a MIG slice, or a chip that has no row, gets no MFU instead of a wrong one.
"""

import difflib
import itertools
import math
import re
from dataclasses import dataclass
from functools import cache

from ..errors import UserError

GOOGLE = "docs.cloud.google.com/tpu/docs and jax/_src/tpu_info.py of JAX 0.12.0 (read 2026-08)"
NVIDIA = "NVIDIA data sheets, half of what they print with sparsity (read 2026-08)"
GIB = 2**30

# What JAX and libtpu read when they are loaded to compile for TPUs on a machine that has none: look
# for no TPU, share libtpu with other processes, no logs.
AHEAD_OF_TIME = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Peaks:
    """Upper bounds of one JAX device."""

    bf16_flops: float  # a second, dense
    hbm_bytes: float
    hbm_bytes_per_s: float
    source: str
    program_bytes: float | None = None  # what libtpu 0.0.50 compiles against; a test asks it


_ROWS = (
    (("TPU v4",), Peaks(275e12, 34.4e9, 1.23e12, GOOGLE, 30.75 * GIB)),
    (("TPU v5 lite", "TPU v5e"), Peaks(197e12, 17.2e9, 0.82e12, GOOGLE, 15.75 * GIB)),
    (("TPU v5", "TPU v5p"), Peaks(459e12, 103e9, 2.765e12, GOOGLE, 95.73 * GIB)),
    (("TPU v6 lite", "TPU v6e"), Peaks(918e12, 34.4e9, 1.64e12, GOOGLE, 31.24 * GIB)),
    (("TPU7x",), Peaks(2307e12 / 2, 206e9 / 2, 7.38e12 / 2, GOOGLE, 94.74 * GIB)),
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


@dataclass(frozen=True)
class Chip:
    """A kind of accelerator, and what Google Cloud calls it."""

    device_kind: str
    dims: int  # of a topology; 0 for GPUs
    most_chips: int  # in a slice; 0 where nothing sets it
    machines: dict[int, str]  # chips of a host -> machine type
    gke_accelerator: str  # the value of its node label
    ici_bytes_per_s: float  # that one chip can send within a slice, by ICI or NVLink
    dcn_bytes_per_s: float  # and to other slices: its share of the network cards of its host
    source: str
    api: str = ""  # prefix of the names in the TPU API, which has no TPU7x
    api_counts: int = 1  # that such a name counts for a chip: cores on v4 and v5p
    devices: int = 1  # that JAX shows for a chip
    fast_hosts: int = 1  # of GPUs, that one NVLink network joins: 18 in an NVL72 rack
    sky: str = ""  # of GPUs, that machine in SkyPilot's catalogue of Google Cloud; "" = none


TPU_PAGE = "docs.cloud.google.com/tpu/docs/{}; a half of its bidirectional ICI (read 2026-08)"
BOOK = "jax-ml.github.io/scaling-book: 45 GB/s a link, six links; 25 GB/s a host (read 2026-08)"
GPU_PAGE = "docs.cloud.google.com/compute/docs/gpus/gpu-network-bandwidth; NVLink: NVIDIA (2026-08)"
_V5E = {n: f"ct5lp-hightpu-{n}t" for n in (1, 4, 8)}
_V6E = {n: f"ct6e-standard-{n}t" for n in (1, 4, 8)}
_7X = {n: f"tpu7x-standard-{n}t" for n in (1, 4)}
# Labels and machine types: xpk's system_characteristics.py of 2026-06-25 and the pages named.
CHIPS = {
    "v4": Chip("TPU v4", 3, 4096, {4: "ct4p-hightpu-4t"}, "tpu-v4-podslice", 270e9, 6.25e9, BOOK,
               "v4", api_counts=2),
    "v5e": Chip("TPU v5 lite", 2, 256, _V5E, "tpu-v5-lite-podslice", 200e9, 3.125e9,
                TPU_PAGE.format("v5e"), "v5litepod"),
    "v5p": Chip("TPU v5", 3, 6144, {4: "ct5p-hightpu-4t"}, "tpu-v5p-slice", 600e9, 6.25e9,
                TPU_PAGE.format("v5p"), "v5p", api_counts=2),
    "v6e": Chip("TPU v6 lite", 2, 256, _V6E, "tpu-v6e-slice", 400e9, 12.5e9,
                TPU_PAGE.format("v6e"), "v6e"),
    "tpu7x": Chip("TPU7x", 3, 9216, _7X, "tpu7x", 600e9, 12.5e9,
                  TPU_PAGE.format("tpu7x"), devices=2),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 0, 0, {8: "a2-ultragpu-8g"}, "nvidia-a100-80gb",
                 300e9, 100e9 / 8 / 8, GPU_PAGE, sky="A100-80GB"),
    "h100": Chip("NVIDIA H100 80GB HBM3", 0, 0, {8: "a3-megagpu-8g"}, "nvidia-h100-mega-80gb",
                 450e9, 1600e9 / 8 / 8, GPU_PAGE, sky="H100-MEGA"),
    "h200": Chip("NVIDIA H200", 0, 0, {8: "a3-ultragpu-8g"}, "nvidia-h200-141gb",
                 450e9, 3200e9 / 8 / 8, GPU_PAGE, sky="H200"),
    "b200": Chip("NVIDIA B200", 0, 0, {8: "a4-highgpu-8g"}, "nvidia-b200",
                 900e9, 3200e9 / 8 / 8, GPU_PAGE, sky="B200"),
    "gb200": Chip("NVIDIA GB200", 0, 0, {4: "a4x-highgpu-4g"}, "nvidia-gb200",
                  900e9, 1600e9 / 8 / 4, GPU_PAGE, fast_hosts=18),
}  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """Chips joined by one fast network, on the hosts that a launcher asks for."""

    accelerator: str
    topology: str  # of TPU chips, as "4x4"; of GPUs the number of nodes
    chips: int
    hosts: int
    chips_per_host: int
    machine_type: str
    gke_accelerator: str
    api_type: str  # in the TPU API; "" where it has none
    sky_type: str  # in SkyPilot; "" where it has none
    device_kind: str
    devices: int  # that JAX shows
    islands: int  # that the slower network joins: 1 of TPUs, else groups of GPU nodes
    ici_bytes_per_s: float  # that one chip sends within the slice
    dcn_bytes_per_s: float  # that one chip sends to other slices
    is_tpu: bool
    peaks: Peaks  # of one device
    source: str

    @property
    def most_compact(self) -> str:
        """The topology that the TPU API takes for so many chips, where it is told no shape."""
        known = _topologies(self.accelerator)
        same = [name for name, chips in known.items() if chips == self.chips]
        return min(same, key=lambda name: sum(map(int, name.split("x"))))

    def libtpu_options(self, slices: int = 1) -> dict[str, object]:
        """What `topologies.get_topology_desc` takes beside the name, to have the same hosts."""
        options: dict[str, object] = {"num_slices": slices} if slices > 1 else {}
        if self.accelerator == "v4":
            options["chip_config_name"] = "megacore"  # else a chip is two devices
        if self.chips_per_host == self.chips:
            sizes = [*map(int, self.topology.split("x")), 1]
            options["chips_per_host_bounds"] = sizes[:3]
        return options


def slice_of(accelerator: str, topology: str) -> Slice:
    """The slice of an accelerator by its topology, or of a number of GPU nodes.

    v5e and v6e have machines of 1 and of 8 chips, for slices of one host; all larger slices are
    made of machines of 4 (2x4 also exists as two of those, in GKE alone). Raises UserError.
    """
    chip = CHIPS.get(accelerator)
    if chip is None:
        names = {known: known for known in CHIPS} | {c.api: known for known, c in CHIPS.items()}
        near = difflib.get_close_matches(accelerator.lower(), [*names], n=3, cutoff=0.4)
        raise UserError(
            got=f"accelerator {accelerator!r}",
            expected=f"one of {', '.join(CHIPS)}",
            do=f"write {' or '.join(dict.fromkeys(names[n] for n in near))}" if near else
            "choose one of them; a chip that is missing needs a row in records/hardware.py",
        )  # fmt: skip
    if chip.dims:
        if topology not in _topologies(accelerator):
            raise _no_topology(accelerator, topology)
        chips = math.prod(map(int, topology.split("x")))
    elif re.fullmatch(r"[1-9]\d{0,4}", topology):
        chips = int(topology) * max(chip.machines)
    else:
        raise UserError(
            got=f"topology {topology!r} of {accelerator}",
            expected="the number of GPU nodes",
            do=f"write 2 for two machines {chip.machines[max(chip.machines)]}",
        )
    per_host = chips if chips in chip.machines else 4 if chip.dims else max(chip.machines)
    api = f"{chip.api}-{chips * chip.api_counts}" if chip.api else ""
    sky = f"{chip.sky}:{per_host}" if chip.sky else f"tpu-{api}" if api else ""
    return Slice(
        accelerator=accelerator,
        topology=topology,
        chips=chips,
        hosts=chips // per_host,
        chips_per_host=per_host,
        machine_type=chip.machines[per_host],
        gke_accelerator=chip.gke_accelerator,
        api_type=api,
        sky_type=sky,
        device_kind=chip.device_kind,
        devices=chips * chip.devices,
        islands=1 if chip.dims else -(-chips // per_host // chip.fast_hosts),
        ici_bytes_per_s=chip.ici_bytes_per_s,
        dcn_bytes_per_s=chip.dcn_bytes_per_s,
        is_tpu=chip.dims > 0,
        peaks=PEAKS[chip.device_kind],
        source=chip.source,
    )


@cache
def _topologies(accelerator: str) -> dict[str, int]:
    """Topologies that are offered -> their chips.

    In two dimensions those of the pages of v5e and v6e; in three a part of a cube, or whole cubes
    of 4x4x4 with sizes in order.
    """
    chip = CHIPS[accelerator]
    shapes: list[tuple[int, ...]]
    if chip.dims == 2:
        shapes = [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    else:
        cubes = chip.most_chips // 64
        sizes = range(4, 4 * cubes + 1, 4)
        shapes = [(1, 1, 1)] if 1 in chip.machines else []
        shapes += [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
        for a, b in itertools.combinations_with_replacement(sizes, 2):
            shapes += [(a, b, c) for c in range(b, chip.most_chips // (a * b) + 1, 4)]
    return {"x".join(map(str, shape)): math.prod(shape) for shape in shapes}


def _no_topology(accelerator: str, topology: str) -> UserError:
    known = _topologies(accelerator)
    sizes = [int(n) for n in re.findall(r"\d{1,6}", topology)[:3]]
    wanted = max(math.prod(sizes), 1)

    def distance(name: str) -> tuple[bool, float, float]:
        """Same sizes in another order first, then as many chips, then a like shape."""
        named = sorted(map(int, name.split("x")))
        shape = sum(abs(a - b) for a, b in zip(named, sorted(sizes), strict=False))
        return sorted(sizes) != named, abs(math.log(known[name] / wanted)), shape

    dims, three = CHIPS[accelerator].dims, CHIPS[accelerator].dims == 3
    return UserError(
        got=f"topology {topology[:40]!r} of {accelerator}",
        expected=f"{dims} sizes in order, as in {'2x2x1 or 4x4x8' if three else '2x4 or 16x16'}, "
        f"at most {CHIPS[accelerator].most_chips} chips a slice",
        do=f"write {' or '.join(sorted(known, key=distance)[:3])}, or ask for more slices",
    )


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
