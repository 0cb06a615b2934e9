"""A process finds the programs that an earlier one compiled, unless it is told otherwise."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ...errors import UserError
from .. import start
from ..detect import JOB_VARIABLES

CHILD = """
from {package}.runtime.start import start
start()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.split("/")[-1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
x = jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8)))
print(hits.count("cache_hits") > 0, float(x))
"""


def child(folder: Path, **environment: str) -> list[str]:
    code = CHILD.format(package=str(__package__).partition(".")[0])
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "rror" not in done.stderr, done.stderr  # XLA logs a program made for another CPU
    return done.stdout.split()


def test_the_second_start_reads_what_the_first_compiled(tmp_path: Path) -> None:
    first, second = child(tmp_path), child(tmp_path)
    assert (first[0], second[0]) == ("False", "True")
    assert first[1] == second[1]
    (folder,) = (tmp_path / ".cache" / "jax").iterdir()
    assert any(folder.iterdir())


def test_a_folder_that_the_environment_names_is_taken(tmp_path: Path) -> None:
    child(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other"))
    assert not (tmp_path / ".cache").exists()
    assert any((tmp_path / "other").iterdir())


def test_encryption_by_halves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(JOB_VARIABLES, ("127.0.0.1:1", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(start.ENCRYPTION[0], "cert.pem")
    with pytest.raises(UserError, match=r"JAX_MTLS_KEY_FILE.*\n.*set all three"):
        start.start_processes()
    for name in start.ENCRYPTION:
        monkeypatch.setenv(name, "file.pem")
    monkeypatch.setattr(start, "jax", SimpleNamespace(config=object(), __version__="0.11.1"))
    with pytest.raises(UserError, match=r"with JAX 0.11.1\n.*\n.*uv add"):
        start.start_processes()


def test_processes_have_threads_for_more_collectives_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in zip(JOB_VARIABLES, ("127.0.0.1:1", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)
    found: list[str | None] = []
    join = lambda place: found.append(os.environ.get("PJRT_NPROC"))  # noqa: E731
    monkeypatch.setattr(start.distributed, "join", join)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("PJRT_NPROC", "5")
    start.start_processes()
    monkeypatch.delenv("PJRT_NPROC")
    start.start_processes()
    assert found == ["5", "32"]
