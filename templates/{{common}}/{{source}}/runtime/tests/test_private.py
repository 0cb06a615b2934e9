"""What is private in JAX and Orbax is still there, and means what it did."""

import ast
import os
import signal
import socket
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src import distributed
from jax._src.clusters import cloud_tpu_cluster
from orbax.checkpoint import v1 as ocp

from ..private import COMPILED_EVENT, gce_place, is_stop_asked, job, writer_of

FOLDER = Path(__file__).parents[2]


def test_nothing_else_imports_what_is_private() -> None:
    private = set()
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(part.startswith("_") for name in names for part in name.split(".")[1:]):
                private.add(path.relative_to(FOLDER))
    assert {path.as_posix() for path in private if "tests" not in path.parts} == {
        "runtime/private.py"
    }


def test_a_process_alone_is_in_no_job() -> None:
    assert job().client is None
    assert job().process_id == 0
    assert gce_place() is None
    names = ["is_env_present", "get_process_count", "get_process_id", "get_coordinator_address"]
    for name in names:
        assert callable(getattr(cloud_tpu_cluster.GceTpuCluster, name))


def test_the_client_of_a_job_keeps_values_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = distributed.State()
    alone.initialize(f"127.0.0.1:{port}", num_processes=1, process_id=0)
    monkeypatch.setattr(distributed, "global_state", alone)
    try:
        client = job().client
        assert client.key_value_dir_get("peers/") == []
        client.key_value_set("peers/0", "1 first", allow_overwrite=True)
        client.key_value_set("peers/0", "2 second", allow_overwrite=True)
        assert client.key_value_dir_get("peers/") == [("peers/0", "2 second")]
        client.wait_at_barrier("all are here", 5000)
        assert not is_stop_asked()
        os.kill(os.getpid(), signal.SIGTERM)
        end_s = time.monotonic() + 20
        while not is_stop_asked():
            assert time.monotonic() < end_s
            time.sleep(0.1)
    finally:
        alone.shutdown()


def test_a_compilation_is_told() -> None:
    told: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, _, **__: told.append(name))
    jax.jit(lambda x: x * 17 + 3)(jnp.ones(19)).block_until_ready()
    assert told.count(COMPILED_EVENT) >= 1


def test_orbax_names_the_writer_in_a_folder(tmp_path: Path) -> None:
    ocp.save(tmp_path / "state", {"x": jnp.ones((64, 64))})
    owned = [f for f in (tmp_path / "state").rglob("*") if "ocdbt.process_" in str(f)]
    assert owned
    assert {writer_of(f.relative_to(tmp_path)) for f in owned} == {0}
    assert writer_of(Path("state/ocdbt.process_12/d/3f")) == 12
    assert writer_of(Path("manifest.json")) == 0
