"""A run is opened as it was saved, on the devices that are here, and stays untouched."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from ...errors import UserError
from ...run_config import MeshConfig
from ..saved import all_saved, find_saved, mesh_that_fits
from .test_checkpoint import flip, largest
from .test_loop import config_of, go
from .workloads import SamplerConfig, sampler


def steps_of(folder: Path) -> list[int]:
    return [saved.step for saved in all_saved(folder, SamplerConfig())]


def test_the_newest_sound_checkpoint_is_found_and_loaded(tmp_path: Path) -> None:
    config = dataclasses.replace(config_of(tmp_path, 14), scale=0.5)
    go(config)
    saved = find_saved(tmp_path, SamplerConfig())
    assert (saved.step, saved.config) == (14, config)
    workload = sampler(saved.config)
    bare = {"at": jax.eval_shape(workload.init, jax.random.key(0))["at"]}
    mesh = mesh_that_fits(saved.config.mesh)
    loaded = saved.load(bare, workload.specs(bare), mesh)["at"]
    assert loaded.sharding.shard_shape(loaded.shape)[0] == 1
    again = saved.load(bare, workload.specs(bare), mesh_that_fits(MeshConfig(fsdp=2)))["at"]
    np.testing.assert_array_equal(loaded, again)
    (saved.path / "manifest.json").write_text("{")
    before = sorted(saved.path.parent.rglob("*"))
    assert find_saved(tmp_path, SamplerConfig()).step == 7
    assert sorted(saved.path.parent.rglob("*")) == before


def test_a_step_is_found_and_a_missing_or_damaged_one_is_refused_with_those_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert steps_of(tmp_path) == []
    go(config_of(tmp_path, 20, save_every_steps=1, keep_checkpoints=0))  # more than a restore needs
    assert steps_of(tmp_path) == list(range(1, 21))
    workload, mesh = sampler(SamplerConfig()), mesh_that_fits(MeshConfig())
    abstract = jax.eval_shape(workload.init, jax.random.key(0))
    bare = {name: abstract[name] for name in ("at", "step")}
    for step in (1, 13, 20):
        saved = find_saved(tmp_path, SamplerConfig(), step)
        assert (saved.step, saved.path.name) == (step, f"{step:08d}")
        assert saved.load(bare, workload.specs(bare), mesh)["step"] == step
    for step in (*range(3, 13), *range(14, 21)):
        shutil.rmtree(tmp_path / "checkpoints" / f"{step:08d}")
    (tmp_path / "checkpoints" / "00000002" / "files-0.json").unlink()  # never committed
    flip(largest(tmp_path / "checkpoints" / "00000013"))
    before = sorted((tmp_path / "checkpoints").rglob("*"))
    for step, others in ((13, "1"), (2, "1, 13"), (7, "1, 13"), (0, "1, 13")):
        said = rf"got: .*step {step}\nexpected: .*: {others}\n.*--keep-every-steps"
        with pytest.raises(UserError, match=said):
            find_saved(tmp_path, SamplerConfig(), step)
    assert "00000013 is damaged" in caplog.text
    assert steps_of(tmp_path) == [1]
    shutil.rmtree(tmp_path / "checkpoints" / "00000001")
    with pytest.raises(UserError, match="without a checkpoint"):
        find_saved(tmp_path, SamplerConfig(), 13)
    assert sorted((tmp_path / "checkpoints").rglob("*")) == [
        p for p in before if "00000001" not in p.parts
    ]


def test_what_the_code_declares_is_what_was_saved(tmp_path: Path) -> None:
    go(config_of(tmp_path, 5))
    saved = find_saved(tmp_path, SamplerConfig())
    ours = jax.eval_shape(sampler(saved.config).init, jax.random.key(0))
    shape = jax.ShapeDtypeStruct
    for wrong, says in (
        ({"at": shape((8, 3), "float32")}, r"got: .*float32\[8, 3\].*\n.*float32\[8, 2\]"),
        ({"at": shape((8, 2), "int32")}, r"got: .*int32\[8, 2\].*\n.*float32\[8, 2\]"),
        ({"at": {"x": ours["at"]}}, r"got: .*\['at'\]\['x'\].*\nexpected: .*nothing"),
        ({"at": {}}, r"got: .*\['at'\]: nothing.*\nexpected: .*float32\[8, 2\]"),
        ({"more": ours["at"]}, r"got: .*\['more'\].*\nexpected: .*nothing"),
    ):
        with pytest.raises(UserError, match=f"{says}(.|\n)*undo that"):
            saved.load(wrong, {}, mesh_that_fits(MeshConfig()))


def test_nothing_saved_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)without a checkpoint.*--run-dir"):
        find_saved(tmp_path, SamplerConfig())


def test_a_mesh_that_does_not_fit_here_becomes_replicas() -> None:
    assert mesh_that_fits(MeshConfig(data=1, fsdp=4)).shape == {"data": 2, "fsdp": 4, "tensor": 1}
    assert mesh_that_fits(MeshConfig(fsdp=16)).shape == {"data": 8, "fsdp": 1, "tensor": 1}
