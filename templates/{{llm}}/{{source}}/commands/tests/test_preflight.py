"""Preflight compiles what the loop runs, needs no data, and says what to change."""

import importlib.util
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from ...errors import Exit, UserError
from ...run_config import MeshConfig
from ...runtime import cost
from ...runtime.compiled import abstract_state
from ...runtime.sharding import make_mesh
from ...step import make_learner
from ...tests import tiny
from ...text.settings import DataConfig
from ...workload import make_dry_workload, vocabulary
from ..preflight import changes, preflight

CONFIG = replace(
    tiny.CONFIG,
    mesh=MeshConfig(fsdp=4),
    data=DataConfig(prepared_dir="nowhere", vocab_size=300, seq_len=16, batch_size=16),
)


@pytest.fixture(scope="module")
def step() -> Any:
    mesh = make_mesh(CONFIG.mesh)
    return cost.compile_step(make_dry_workload(CONFIG, mesh), 0, mesh)


def test_memory_is_the_states_and_the_sharding_shows(step: Any) -> None:
    mesh = make_mesh(CONFIG.mesh)
    workload = make_dry_workload(CONFIG, mesh)
    state, _ = abstract_state(workload, 0, mesh)
    arrays = jax.tree.leaves((state, workload.batch(0)))
    needed = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)
    assert cost.memory_parts(step)["memory_state_bytes"] == pytest.approx(needed, rel=0.05)
    counts = cost.count_collectives(step)
    assert counts["all-gather"] > 0  # parameters
    assert counts["all-reduce"] + counts["reduce-scatter"] > 0  # gradients


def test_one_device_needs_no_collective() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    workload = make_dry_workload(CONFIG, mesh)
    assert not cost.count_collectives(cost.compile_step(workload, 0, mesh))


def test_the_command_says_what_fits_and_what_to_change(
    step: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "compile_step", lambda *_: step)
    assert preflight(config=CONFIG) == Exit.DONE
    shown = capsys.readouterr().out
    assert shown.endswith("fits\n")
    assert "params/embedding float32" in shown  # the table of shardings
    assert "mesh              data 2, fsdp 4, tensor 1" in shown
    monkeypatch.setattr(cost, "memory_limit", lambda device: 1e4)
    assert preflight(config=CONFIG) == Exit.USER
    shown = capsys.readouterr().out
    assert "does not fit: a device needs " in shown
    assert "--mesh.fsdp 8" in shown
    assert "--model.remat dots" in shown
    assert "micro-batches" not in shown  # there is one row a device


def test_advice_names_only_settings_that_the_kind_has() -> None:
    mesh = {"data": 1, "fsdp": 1}
    assert len(changes(CONFIG, mesh)) == 3  # micro-batches, remat, chips
    assert "--mesh.fsdp 8:" in changes(CONFIG, {"data": 8, "fsdp": 2}, slices=2)[0]
    assert "fsdp" not in changes(CONFIG, {"data": 2, "fsdp": 8}, slices=2)[0]
    bare = SimpleNamespace(model=SimpleNamespace(), optim=CONFIG.optim, data=CONFIG.data)
    assert not [change for change in changes(bare, mesh) if "remat" in change]
    assert len(changes(bare, mesh)) == 2


def test_automatic_choices_are_those_of_the_target() -> None:
    learner = make_learner(CONFIG, 300, 0, "tpu")
    assert (learner.config.model.compute_dtype, learner.attention) == ("bfloat16", "xla")
    assert make_learner(CONFIG, 300, 0).config.model.compute_dtype == "float32"


def test_vocabulary_without_prepared_text() -> None:
    assert vocabulary(CONFIG.data)[0] == 300
    assert vocabulary(replace(CONFIG.data, tokenizer="byte")) == (257, 256)


def test_a_topology_without_libtpu_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--extra tpu"):
        cost.find_devices("v5e:2x2")


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="the extra `tpu` is not here")
def test_a_tpu_without_a_tpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    config = replace(CONFIG, mesh=MeshConfig(fsdp=2))
    assert preflight(config=config, topology="v5e:2x2", slices=2) == Exit.DONE
    shown = capsys.readouterr().out
    assert "8 x TPU v5 lite (2 slices of v5e:2x2)" in shown
    assert re.search(r"between slices .*all-reduce; a device sends [\d.]+ kB a step", shown)
    with pytest.raises(UserError, match="'3x3' of v5e"):
        cost.find_devices("v5e:3x3")
