"""The allocator's settings, seen from outside: page faults of a child process."""

import os
import platform
import subprocess
import sys

import pytest

from ..host_memory import DISPATCH, has_accelerator

CHILD = """
import resource, sys
from {package}.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.fft.fft(jnp.outer(x, x)).real.sum())
x = jnp.ones(4096)
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(pages() for _ in range(10)) * resource.getpagesize(), int(step(x).is_ready()))
"""


def measure(how, **environment):
    """Bytes faulted in by the best of ten steps, and whether a call returns after its step."""
    code = CHILD.format(package=__package__.rpartition(".")[0])
    child = [sys.executable, "-c", code, how]
    env = {name: value for name, value in os.environ.items() if name != DISPATCH} | environment
    printed = subprocess.run(child, env=env, capture_output=True, text=True, check=True).stdout
    return map(float, printed.split())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory")
@pytest.mark.skipif(has_accelerator(), reason="only where the CPU is the device")
def test_a_step_touches_no_fresh_pages_and_runs_inside_its_call():
    buffer_bytes = 4 * 4096**2
    faulted, over = measure("as it is")
    assert faulted > buffer_bytes / 2
    assert not over
    faulted, over = measure("keep")
    assert faulted < buffer_bytes / 20
    assert over
    _, over = measure("keep", **{DISPATCH: "true"})
    assert not over


@pytest.mark.parametrize(
    ("platforms", "found"), [("cpu", False), ("cuda", True), ("tpu,cpu", True)]
)
def test_the_platform_that_the_environment_names(monkeypatch, platforms, found):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert has_accelerator() is found
