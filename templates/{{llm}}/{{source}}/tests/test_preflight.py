"""Preflight compiles what the loop runs, needs no data, and says what to change."""

import importlib.util
import math
from dataclasses import replace
from typing import Any

import jax
import pytest

from .. import commands, preflight
from ..config import DataConfig
from ..errors import Exit, UserError
from ..loop import abstract_state
from ..run_config import MeshConfig
from ..sharding import make_mesh
from ..step import make_learner
from ..workload import dry_workload
from . import tiny

CONFIG = replace(
    tiny.CONFIG,
    mesh=MeshConfig(fsdp=4),
    data=DataConfig(prepared_dir="nowhere", vocab_size=300, seq_len=16, batch_size=16),
)


@pytest.fixture(scope="module")
def compiled() -> Any:
    mesh = make_mesh(CONFIG.mesh)
    return preflight.compile_step(dry_workload(make_learner(CONFIG, 300, 0), mesh), 0, mesh)


def test_memory_is_the_states_and_the_sharding_shows(compiled: Any) -> None:
    mesh = make_mesh(CONFIG.mesh)
    workload = dry_workload(make_learner(CONFIG, 300, 0), mesh)
    state, _ = abstract_state(workload, 0, mesh)
    arrays = jax.tree.leaves((state, workload.batch(0)))
    needed = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)
    assert preflight.memory_parts(compiled)["memory_state_bytes"] == pytest.approx(needed, rel=0.05)
    counts = preflight.count_collectives(compiled)
    assert counts["all-gather"] > 0  # parameters
    assert counts["all-reduce"] + counts["reduce-scatter"] > 0  # gradients


def test_one_device_talks_to_nobody() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    workload = dry_workload(make_learner(CONFIG, 300, 0), mesh)
    assert not preflight.count_collectives(preflight.compile_step(workload, 0, mesh))


def test_the_command_says_what_fits_and_what_to_change(
    compiled: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "compile_step", lambda *_: compiled)
    assert commands.preflight(config=CONFIG) == Exit.DONE
    shown = capsys.readouterr().out
    assert shown.endswith("fits\n")
    assert "mesh              data 2, fsdp 4, tensor 1" in shown
    monkeypatch.setattr(preflight, "memory_limit", lambda device: 1e4)
    assert commands.preflight(config=CONFIG) == Exit.USER
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert "--mesh.fsdp 8" in shown
    assert "--model.remat dots" in shown
    assert "micro-batches" not in shown  # there is one row a device


def test_automatic_choices_are_those_of_the_target() -> None:
    learner = make_learner(CONFIG, 300, 0, "tpu")
    assert (learner.config.model.compute_dtype, learner.attention) == ("bfloat16", "xla")
    assert make_learner(CONFIG, 300, 0).config.model.compute_dtype == "float32"


def test_vocabulary_without_prepared_text() -> None:
    assert preflight.vocabulary(CONFIG.data)[0] == 300
    assert preflight.vocabulary(replace(CONFIG.data, tokenizer="byte")) == (257, 256)


def test_a_topology_without_libtpu_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--extra tpu"):
        preflight.find_devices("v5e:2x2")


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="the extra `tpu` is not here")
def test_a_tpu_without_a_tpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    assert preflight.preflight(replace(CONFIG, mesh=MeshConfig(fsdp=2)), "v5e:2x2")
    assert "4 x TPU v5 lite (v5e:2x2)" in capsys.readouterr().out
    with pytest.raises(UserError, match="v5e:3x3"):
        preflight.find_devices("v5e:3x3")
