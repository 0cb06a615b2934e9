"""What is compiled has the memory that its shardings say, and leaves outputs where they are."""

import math
from pathlib import Path

import jax
import pytest

from ...run_config import MeshConfig
from ..compiled import abstract_state
from ..cost import compile_step, count_collectives, memory_parts
from ..sharding import make_mesh
from .test_loop import config_of
from .workloads import CHAINS, CHUNK, DIM, sampler


def test_memory_of_the_state_is_what_its_shards_hold(tmp_path: Path) -> None:
    workload, mesh = sampler(config_of(tmp_path, 1)), make_mesh(MeshConfig())
    abstract, _ = abstract_state(workload, 0, mesh)
    shards = jax.tree.leaves(abstract)
    needed = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in shards)
    step = compile_step(workload, 0, mesh)
    draws = CHUNK * CHAINS // mesh.size * DIM * 4
    found = memory_parts(step)["memory_state_bytes"]
    assert found == pytest.approx(needed + draws, rel=0.01)


def test_outputs_are_not_gathered(tmp_path: Path) -> None:
    step = compile_step(sampler(config_of(tmp_path, 1)), 0, make_mesh(MeshConfig()))
    assert not count_collectives(step)["all-gather"]
    assert not step.output_shardings[2]["draws"].is_fully_replicated
