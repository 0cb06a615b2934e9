"""Keep the host's memory between steps where the CPU is the device.

XLA asks malloc for a program's buffers at every call. glibc takes large ones from the kernel with
mmap and returns them afterwards, so each step pays for zeroed pages again. Keeping them brought a
step from 459 to 315 ms (two cores, glibc 2.36, jax 0.12; see mallopt(3)). The process then holds
the memory of its largest step.
"""

import ctypes
import importlib.util
import os
import platform

DISPATCH = "JAX_CPU_ENABLE_ASYNC_DISPATCH"  # JAX's own variable, which decides where it is set
# malloc.h of glibc. All three are needed: the heap of a thread's own arena holds 64 MB at most,
# and a larger request becomes an mmap again.
KEEP = ((-4, 0), (-1, -1), (-8, 1))  # M_MMAP_MAX none, M_TRIM_THRESHOLD never, M_ARENA_MAX one


def keep_freed_memory() -> bool:
    """Call before JAX makes its first array; False without glibc or with an accelerator."""
    if platform.libc_ver()[0] != "glibc" or has_accelerator():
        return False
    libc = ctypes.CDLL(None)
    kept = all([libc.mallopt(name, value) for name, value in KEEP])
    if kept and DISPATCH not in os.environ:
        import jax

        # A program of one device then runs inside its call and frees its buffers before the next
        # program allocates. Otherwise they overlap, and the heap keeps up to five sets. Where a
        # step takes milliseconds, dispatching the next one meanwhile may be worth that: by 1.09.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    return kept


def has_accelerator() -> bool:
    """Whether JAX would look for an accelerator; starts no backend."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen != "cpu"
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
