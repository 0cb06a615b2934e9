"""`doctor`: what the environment is and what is wrong with it. Changes nothing."""

import contextlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import Exit, UserError
from ..records import store
from ..records.hardware import peaks
from ..records.provenance import requirements, versions
from ..runtime.detect import JOB_VARIABLES, detect

type Check = tuple[str, str, str]
"""ok, warn or fail; what was found; what to do about it."""

SETTINGS = ("JAX_", "XLA_", "LIBTPU_", "NCCL_", "TF_GPU_", "MEGASCALE_")
COSTLY = ("JAX_DISABLE_JIT", "JAX_DEBUG_NANS", "JAX_ENABLE_X64", "XLA_PYTHON_CLIENT_ALLOCATOR")


def doctor(*, run_dir: Path = Path("runs")) -> int:
    """Say what this environment is, and what is wrong with it; exit code 2 if anything fails.

    Args:
        run_dir: a folder on the disk that runs are written to
    """
    failed = False
    # The devices come last: a wrong XLA_FLAGS aborts the process there, with XLA's own message.
    for checks in (_packages(), _disk(run_dir), _processes(), _settings(), _devices()):
        for level, found, do in checks:
            print(f"{level:<5} {found}" + (f"\n      to do: {do}" if do else ""), flush=True)
            failed |= level == "fail"
    return Exit.USER if failed else Exit.DONE


def _packages() -> Iterator[Check]:
    installed = {"Python": platform.python_version()} | versions()
    yield "ok", ", ".join(f"{name} {version}" for name, version in installed.items()), ""
    for name, lowest in requirements().items():
        if name not in installed:
            yield "fail", f"{name} is not installed", "uv sync"
        elif _number(installed[name]) < _number(lowest):
            yield "fail", f"{name} {installed[name]} is older than {lowest}", "uv sync"


def _devices() -> Iterator[Check]:
    try:
        import jax

        devices = jax.local_devices()
    except Exception as error:  # a driver may raise anything
        do = "correct JAX_PLATFORMS or unset it, or look for another process that holds them"
        yield "fail", f"JAX finds no devices: {error}", do
        return
    first = devices[0]
    limit = (first.memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / 2**30:.1f} GiB usable each" if limit else ""
    yield "ok", f"{len(devices)} x {first.device_kind} ({first.platform}){memory}", ""
    if first.platform == "cpu" and os.environ.get("JAX_PLATFORMS") != "cpu":
        if Path("/proc/driver/nvidia/version").exists():
            yield "warn", "an NVIDIA driver, but JAX runs on the CPU", "uv sync --extra cuda13"
        if any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*")):
            yield "warn", "maybe a TPU, but JAX runs on the CPU", "uv sync --extra tpu"
    elif first.platform != "cpu" and not peaks(first.device_kind):
        yield "warn", f"no peak known for {first.device_kind}: no MFU", "add a row to hardware.py"


def _processes() -> Iterator[Check]:
    try:
        place = detect(os.environ)
    except UserError as error:
        yield "fail", str(error).replace("\n", "\n      "), ""
        return
    if place.count > 1:
        where = f"process {place.index} of {place.count}, coordinator {place.coordinator}"
        found = f"{where}, by {place.why}"
        yield "ok", found, ""
    elif "SLURM_JOB_ID" in os.environ and not place.overruled:
        yield "warn", "a Slurm job, but not a step of it: one process", "start with srun"
    else:
        yield "ok", f"one process: {place.why}", ""


def _settings() -> Iterator[Check]:
    for name in sorted(n for n in os.environ if n.startswith(SETTINGS) and n not in JOB_VARIABLES):
        value = os.environ[name]
        costly = name in COSTLY and value.lower() not in ("", "0", "false", "default")
        do = "unset it to train: it is for debugging, and slow" if costly else ""
        yield "warn" if costly else "ok", f"{name}={value}", do


def _disk(run_dir: Path) -> Iterator[Check]:
    folder = next(p for p in (run_dir.resolve(), *run_dir.resolve().parents) if store.exists(p))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
    except OSError as error:
        yield "fail", f"cannot write to {folder}: {error}", "choose another --run-dir"
        return
    free_gb = shutil.disk_usage(folder).free / 1e9
    level = "fail" if free_gb < 1 else "warn" if free_gb < 20 else "ok"
    kept = "keep_checkpoints + 1 times its state, and more with keep_every_steps"
    do = "" if level == "ok" else f"free space: a run keeps {kept}"
    yield level, f"{folder} can be written, {free_gb:.1f} GB free", do
    if damaged := list(_damaged(folder)):
        size_gb = sum(store.size_bytes(path) for path in damaged) / 1e9
        found = f"{len(damaged)} damaged checkpoints were set aside there, {size_gb:.1f} GB"
        yield "warn", found, f"delete them: {damaged[0].parent}/*.damaged-*"


def _damaged(folder: Path) -> Iterator[Path]:
    """Checkpoints that were set aside in a run folder, or in the runs of a folder of them."""
    for run in (folder, *(folder / name for name in store.names(folder))):
        checkpoints = run / "checkpoints"
        with contextlib.suppress(PermissionError):  # a folder of somebody else
            yield from (checkpoints / n for n in store.names(checkpoints) if ".damaged-" in n)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4])
