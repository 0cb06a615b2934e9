"""Outputs come back whole, once and in order, whatever is cut, refused by the disk or too large."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ...records import store
from ...run_config import MeshConfig
from .. import sink as sink_module
from ..sharding import make_mesh
from ..sink import NpzFiles, read_outputs


def outputs(step: int) -> dict[str, jax.Array]:
    """One array split over two mesh axes, one replicated, one scalar."""
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    whole = np.arange(8 * 4 * 3, dtype=np.float32).reshape(8, 4, 3) + step
    split = jax.device_put(whole, NamedSharding(mesh, P("data", "fsdp")))
    return {"split": split, "whole/deep": jnp.full((2,), step), "one": jnp.asarray(step)}


def test_shards_are_copied_where_they_are_and_come_back_whole(tmp_path: Path) -> None:
    sink = NpzFiles(tmp_path / "outputs")
    for step in (1, 2, 4):
        sink.add(step, outputs(step))
    assert all(type(x) is np.ndarray for steps in sink._shards.values() for x in steps)
    assert {x.shape for x in sink._shards["split/0,2,0/8,4,3"]} == {(2, 2, 3)}
    sink.write(4)
    sink.durable()
    found = sink.read()
    assert found["step"].tolist() == [1, 2, 4]
    for i, step in enumerate((1, 2, 4)):
        for name, array in outputs(step).items():
            np.testing.assert_array_equal(found[name][i], array)
    assert found["split"].dtype == np.float32


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(["step", "step", "step", "save", "resume", "kill"]), max_size=40))
def test_what_is_on_disk_is_what_the_saves_say(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("run") / "outputs"
    sink, step, saved = NpzFiles(folder), 0, [0]
    for act in acts:
        if act == "step":
            step += 1
            sink.add(step, {"x": jnp.asarray(step)})
        elif act == "save":
            sink.write(step)
            sink.durable()
            saved.append(step)
        else:  # from the newest checkpoint, or from the one before where that was damaged
            if act == "resume" and len(saved) > 1:
                saved.pop()
            step = saved[-1]
            sink = NpzFiles(folder)
            sink.cut(step)
    sink.write(step)
    sink.durable()
    assert read_outputs(folder).get("x", np.array([])).tolist() == list(range(1, step + 1))


def test_a_part_that_the_disk_refused_is_written_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    sink = NpzFiles(tmp_path)
    sink.add(1, {"x": jnp.ones(2)})
    with monkeypatch.context() as disk:
        disk.setattr(store, "write", full)
        sink.write(1)
        with pytest.raises(OSError, match="No space"):
            sink.durable()
    sink.add(2, {"x": jnp.zeros(2)})
    sink.write(2)
    sink.durable()
    assert read_outputs(tmp_path)["x"].tolist() == [[1, 1], [0, 0]]


def test_memory_is_bounded_between_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "BLOCK_BYTES", 1000)
    sink = NpzFiles(tmp_path)
    for step in range(1, 101):
        sink.add(step, {"x": jnp.full((25,), step)})  # 100 bytes
        assert sum(len(steps) for steps in sink._shards.values()) <= 10
        assert len(sink._waiting) <= sink_module.WAITING_BLOCKS + 1
    sink.durable()
    assert read_outputs(tmp_path)["step"].tolist() == list(range(1, 101))
    sink.cut(50)
    assert read_outputs(tmp_path)["step"].tolist() == list(range(1, 51))


def test_a_disk_that_is_full_for_a_while_costs_nothing_and_for_long_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sink_module, "BLOCK_BYTES", 1000)
    sink = NpzFiles(tmp_path)

    def add(steps: range) -> None:
        for step in steps:
            sink.add(step, {"x": jnp.full((25,), step)})

    with monkeypatch.context() as disk:
        disk.setattr(store, "write", full)
        add(range(1, 21))  # two blocks wait
    add(range(21, 31))
    sink.durable()
    assert read_outputs(tmp_path)["step"].tolist() == list(range(1, 31))
    monkeypatch.setattr(store, "write", full)
    with pytest.raises(OSError, match="No space"):
        add(range(31, 100))


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    sink = NpzFiles(tmp_path)
    sink.add(1, {"x": jnp.ones(2)})
    sink.write(1)
    sink.durable()
    mine = ["00000007.npz", "mean.csv", "notes.npz"]
    for name in (*mine, "00000009-0.npz.part", "00000002-0.npz.1f.part", "00000002-1.npz"):
        (tmp_path / name).write_bytes(b"torn")
    sink.cut(1)
    assert store.names(tmp_path) == sorted(["00000001-0.npz", *mine])
    assert sink.read()["x"].shape == (1, 2)


def test_narrow_floats_are_widened_without_loss(tmp_path: Path) -> None:
    x = jnp.array([1.0, 1.00390625, -3e38], jnp.bfloat16)
    sink = NpzFiles(tmp_path)
    sink.add(1, {"x": x})
    sink.write(1)
    sink.durable()
    found = sink.read()["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], x.astype(jnp.float32))


def test_a_missing_file_of_a_process_is_told(tmp_path: Path) -> None:
    mesh = make_mesh(MeshConfig())
    sink = NpzFiles(tmp_path)
    sink.add(1, {"x": jax.device_put(jnp.arange(8), NamedSharding(mesh, P("data")))})
    sink._shards.pop("x/3/8")
    sink.write(1)
    sink.durable()
    with pytest.raises(ValueError, match=r"step 00000001.*'x'"):
        sink.read()
