"""Keep the host's memory between steps where the CPU is the device.

XLA asks malloc for a program's buffers at every call. glibc serves large ones with fresh mmap and
gives them back afterwards, so each step pays the kernel for zeroed pages again: up to a third
of its time (mallopt(3); docs of the template: decisions). A process then stays as large as
its largest step, which is what a training job is given anyway.
"""

import ctypes
import importlib.util
import os
import platform

# malloc.h of glibc: three that help only together, because the heap of a thread's own arena holds
# 64 MB at most and what is larger becomes an mmap again.
KEEP = ((-4, 0), (-1, -1), (-8, 1))  # M_MMAP_MAX none, M_TRIM_THRESHOLD never, M_ARENA_MAX one


def keep_freed_memory() -> bool:
    """Call before JAX makes its first array; whether it took hold (glibc, no accelerator)."""
    if platform.libc_ver()[0] != "glibc" or has_accelerator():
        return False
    libc = ctypes.CDLL(None)
    kept = all([libc.mallopt(name, value) for name, value in KEEP])
    if kept:
        import jax

        # A program of one device then runs inside its call and frees its buffers before the next
        # one asks for its own. Else they overlap for a moment: the heap keeps up to five sets.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    return kept


def has_accelerator() -> bool:
    """Whether JAX would look for one, found out without waking it."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen != "cpu"
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
