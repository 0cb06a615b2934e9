"""Every setting acts, and what cannot work is refused before it starts."""

import ast
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import pytest

from ..config import Config, ModelConfig, NutsConfig, validate
from ..errors import UserError
from ..models import eight_schools
from ..posterior.settings import DataConfig
from ..posterior.table import prepare
from ..run_config import MeshConfig, RunConfig, identity_of, to_dict
from ..runtime.sharding import make_mesh
from ..workload import make_workload
from .small import placed, sampler_of, workload_of

# Settings of the sampler that change its program; the others are tried through the command line.
CHANGES = dict(warmup=300, chunk=25, metric="dense", target_accept=0.8, max_tree_depth=5)
CHANGES |= dict(layout="vmap")
SCHOOLS = prepare(eight_schools.example(), eight_schools.COLUMNS, DataConfig())


def test_every_field_is_read() -> None:
    read = set()
    for path in Path(__file__).parents[1].rglob("*.py"):
        if not {"tests", "conftest"} & {*path.parts, path.stem} and not path.stem.endswith(
            "config"
        ):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
                    read.add((owner.lstrip("_").removesuffix("_config"), node.attr))
    names = [name.split(".") for name in to_dict(Config())]
    unread = [f for f in names if not {(owner, f[1]) for owner in (f[0], "config", "n")} & read]
    assert not unread


def program(**nuts: Any) -> str:
    sampler = sampler_of(eight_schools.model, SCHOOLS.arrays, SCHOOLS.sizes, **nuts)
    workload = workload_of(sampler)
    state = jax.eval_shape(workload.init, jax.random.key(0))
    return str(jax.make_jaxpr(workload.step)(state, placed(sampler)))


def test_every_setting_of_the_sampler_changes_its_program() -> None:
    assert {*CHANGES} == {f.name for f in fields(NutsConfig)} - {"chains", "target_ess"}
    plain = program()
    assert plain == program()
    for name, value in CHANGES.items():
        assert program(**{name: value}) != plain, name


def test_what_defines_a_run() -> None:
    found = {name for name in identity_of(Config()) if not name.startswith("run.")}
    nuts = {"warmup", "chunk", "metric", "target_accept", "max_tree_depth"}
    assert found == {"model.name"} | {f"nuts.{name}" for name in nuts}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": ModelConfig("partail")}, "--model.name partail\nexpected: eight_schools"),
        ({"nuts": NutsConfig(warmup=1000, chunk=300)}, "chunk that divides it, such as 250"),
        ({"nuts": NutsConfig(chains=1)}, "two or more"),
        ({"data": DataConfig(columns=("hits",))}, "hits=successes"),
    ],
)
def test_what_cannot_work(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        validate(replace(Config(), **change))
    assert words in str(refusal.value)


def test_chains_by_the_devices(tmp_path: Path) -> None:
    config = Config(run=RunConfig(run_dir=str(tmp_path)), model=ModelConfig("pooled"))
    for devices, chains in ((1, 4), (2, 4), (8, 8)):
        mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
        assert make_workload(config, mesh).identity["nuts.chains"] == chains
    mesh = make_mesh(MeshConfig(), jax.devices()[:3])
    with pytest.raises(UserError, match=r"--nuts\.chains 6"):
        make_workload(config, mesh)
