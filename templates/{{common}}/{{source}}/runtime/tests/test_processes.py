"""Two processes over gloo give the draws of one, stop at one step and end together."""

import os
import signal
import socket
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ...errors import Exit
from ...records import store
from ...records.store import read_lines
from ...run_config import MeshConfig
from ..sharding import make_mesh
from ..sink import read_outputs
from ..start import start_processes
from .children import Child, start_job, start_two, train_sampler
from .workloads import CHAINS


def sample(*args: object, folder: Path, fail: bool = False) -> list[Child]:
    """Two processes; with `fail`, the second raises at its tenth batch."""
    return start_two(train_sampler, (*args, None), (*args, 10 if fail else None), folder=folder)


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.glob("log*"))


def test_two_processes_sample_what_one_does(tmp_path: Path) -> None:
    pair = sample(tmp_path / "two", 20, 7, 0.0, None, folder=tmp_path)
    assert [child.code() for child in pair] == [0, 0], logs(tmp_path)
    one = Child(train_sampler, tmp_path / "one", 12, 7, log=tmp_path / "log")
    assert one.code() == 0, logs(tmp_path)
    # What one process began, two go on with.
    pair = sample(tmp_path / "one", 20, 7, 0.0, None, folder=tmp_path)
    assert [child.code() for child in pair] == [0, 0], logs(tmp_path)
    parts = sorted(path.name for path in (tmp_path / "two" / "outputs").iterdir())
    assert parts == [f"{step:08d}-{index}.npz" for step in (7, 14, 20) for index in range(2)]
    with np.load(tmp_path / "two" / "outputs" / parts[0]) as held:  # one process: half the chains
        assert {held[name].shape[2] for name in held if name != "step"} == {CHAINS // 4}
    two, one = (read_outputs(tmp_path / name / "outputs")["draws"] for name in ("two", "one"))
    assert two.shape[0] == 20
    np.testing.assert_array_equal(one, two)


def test_sigterm_to_one_saves_both_at_the_same_step(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    pair = sample(run_dir, 100_000, 0, 0.01, None, folder=tmp_path)
    pair[0].wait_for(lambda: len(read_lines(run_dir / "metrics.jsonl")) > 3)
    os.kill(pair[1].process.pid, signal.SIGTERM)
    assert [child.code() for child in pair] == [Exit.PREEMPTED] * 2, logs(tmp_path)
    (saved,) = (run_dir / "checkpoints").iterdir()
    assert {f"files-{i}.json" for i in range(2)} <= {p.name for p in saved.iterdir()}
    assert int(saved.name) == read_lines(run_dir / "metrics.jsonl")[-1]["step"]


def test_sigterm_ends_one_that_waits_for_the_others(tmp_path: Path) -> None:
    places = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        places["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
    child = Child(train_sampler, tmp_path / "run", 9, 3, log=tmp_path / "log", **places)
    child.wait_for(lambda: "process 0 of 2" in child.log.read_text())
    time.sleep(1)  # it is in JAX's code then
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.code(30) == Exit.PREEMPTED, child.log.read_text()


def test_exception_in_one_ends_both(tmp_path: Path) -> None:
    pair = sample(tmp_path / "run", 100_000, 0, 0.01, None, folder=tmp_path, fail=True)
    pair[0].wait_for(lambda: "tenth batch" in pair[1].log.read_text())
    began_s = time.monotonic()
    assert [child.code() for child in pair] == [Exit.BUG] * 2, logs(tmp_path)
    assert time.monotonic() - began_s < 15
    assert "ended because process 1 did" in pair[0].log.read_text()


def train_on_slices(index: int, file: Path) -> None:
    """A fit by gradient on 12 devices, flat and as two slices, whose devices are not neighbours."""
    start_processes()
    losses = []
    meshes = [make_mesh(MeshConfig(data=3, fsdp=4, slices=slices)) for slices in (1, 2)]
    for mesh in meshes:
        rows, parts = (NamedSharding(mesh, P(axes)) for axes in (("data", "fsdp"), "fsdp"))
        x = np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32)
        made = {"x": (x, rows), "y": (x @ np.arange(8, dtype=np.float32), rows)}
        made |= {"w": (np.zeros(8, np.float32), parts)}
        a = {
            name: jax.make_array_from_callback(value.shape, at, lambda i, value=value: value[i])
            for name, (value, at) in made.items()
        }

        @jax.jit
        def step(w: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss, slope = jax.value_and_grad(lambda w: jnp.mean((x @ w - y) ** 2))(w)
            return w - 0.1 * slope, loss

        for _ in range(10):
            a["w"], loss = step(a["w"], a["x"], a["y"])
            losses.append(float(loss))
    if index == 0:
        moved = meshes[0].devices != meshes[1].devices
        store.write_json(file, {"losses": losses, "moved": int(moved.sum())})


def test_two_slices_over_four_processes_equal_a_flat_mesh(tmp_path: Path) -> None:
    args = [(index, tmp_path / "losses") for index in range(4)]
    job = start_job(train_on_slices, *args, folder=tmp_path, devices=3)
    assert [child.code() for child in job] == [0] * 4, logs(tmp_path)
    found = store.read_json(tmp_path / "losses")
    assert found["moved"] > 0
    flat, slices = np.split(np.asarray(found["losses"]), 2)
    np.testing.assert_allclose(slices, flat, rtol=1e-5)
    assert flat[-1] < flat[0] / 3
