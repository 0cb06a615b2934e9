"""How a process begins, before JAX makes its first array. Knows no settings of a run."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from ..errors import UserError
from . import distributed
from .detect import detect
from .encryption import ENCRYPTION
from .host_memory import keep_freed_memory
from .private import job

THREADS = 32  # of XLA, at least, where several processes share the CPU devices of a mesh
COMPILED = Path(".cache/jax")  # below the working folder; git ignores it


def start() -> None:
    """Keep the host's memory and the compiled programs, and join the other processes of the job."""
    keep_freed_memory()
    keep_compiled_programs()
    start_processes()
    try:
        jax.devices()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            got=f"JAX_PLATFORMS={asked}: {str(error).splitlines()[0]}",
            expected="devices that JAX finds",
            do="correct JAX_PLATFORMS or unset it; `doctor` shows the environment",
        ) from error


def start_processes() -> None:
    """Join the job that the environment describes; without one, stay a single process.

    Called again by the second of two commands, it does nothing.
    """
    place = detect(os.environ)
    if place.count > 1 and job().client is None:
        _check_encryption()
        _make_room_for_collectives()
        distributed.join(place)


def _check_encryption() -> None:
    """JAX 0.12 reads the variables of mutual TLS itself; an older one would ignore them."""
    asked = [name for name in os.environ if name.startswith("JAX_MTLS_")]
    knows = hasattr(jax.config, "jax_mtls_cert_file")
    if asked and not (knows and all(name in asked for name in ENCRYPTION)):
        raise UserError(
            got=f"{' '.join(sorted(asked))} with JAX {jax.__version__}",
            expected=f"{' '.join(ENCRYPTION)}: paths of PEM files, and JAX 0.12 or newer",
            do="set all three in every process" if knows else "uv add 'jax>=0.12', or unset them",
        )


def _make_room_for_collectives() -> None:
    """Give XLA more threads than cores: on a CPU, each collective that waits blocks one.

    With a thread for each of two cores, two processes of two devices waited for one another in
    three of four runs, each thread in another collective. Read when JAX makes its client.
    """
    os.environ.setdefault("PJRT_NPROC", str(max(os.cpu_count() or 1, THREADS)))


def keep_compiled_programs() -> None:
    """Turn on JAX's persistent compilation cache, unless its own variables say otherwise.

    The folder is named after the CPU: a program that XLA made for another one may not run here.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = COMPILED / hashlib.sha256(_cpu().encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _cpu() -> str:
    """The instruction set of this machine, by the features that Linux lists."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return platform.machine() + "".join(sorted(features))
