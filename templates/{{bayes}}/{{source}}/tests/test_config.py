"""Every setting acts, and what cannot work is refused before it starts."""

import ast
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest

from ..config import Config, ModelConfig, NutsConfig, SviConfig, validate
from ..errors import UserError
from ..models import eight_schools
from ..posterior.settings import DataConfig
from ..posterior.table import prepare
from ..run_config import MeshConfig, RunConfig, identity_of, to_dict
from ..runtime.sharding import make_mesh
from ..svi import draw_guide
from ..workload import make_workload
from .small import fit_of, sampler_of, workload_of

# Settings of the sampler that change its program; the others are tried through the command line.
CHANGES = dict(warmup=300, chunk=25, metric="dense", target_accept=0.8, max_tree_depth=5)
CHANGES |= dict(layout="vmap", start="svi")
CHANGES_SVI = dict(guide="normal", chunk=50, learning_rate=0.1, particles=2, batch_rows=4)
CHANGES_SVI |= dict(draws=200)
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
    names.remove(["method"])
    assert ("config", "method") in read
    aliases = ("config", "n", "c")
    unread = [f for f in names if not {(owner, f[1]) for owner in (f[0], *aliases)} & read]
    assert not unread


def program(of: Callable[..., Any], **options: Any) -> str:
    made = of(eight_schools.model, SCHOOLS.arrays, SCHOOLS.sizes, **options)
    workload = workload_of(made)
    key = jax.random.key(0)
    state, batch = jax.eval_shape(workload.init, key), workload.batch(0)
    steps = jax.make_jaxpr(workload.init)(key), jax.make_jaxpr(workload.step)(state, batch)
    drawn = jax.eval_shape(partial(draw_guide, made), state, batch) if of is fit_of else ""
    return f"{steps} {drawn}"


@pytest.mark.parametrize(
    ("of", "changes", "names"),
    [(sampler_of, CHANGES, NutsConfig), (fit_of, CHANGES_SVI, SviConfig)],
)
def test_every_setting_of_a_method_changes_its_program(
    of: Callable[..., Any], changes: dict[str, Any], names: type
) -> None:
    assert {*changes} == {f.name for f in fields(names)} - {"chains", "target_ess"}
    plain = program(of)
    assert plain == program(of)
    for name, value in changes.items():
        assert program(of, **{name: value}) != plain, name


def test_what_defines_a_run() -> None:
    found = {name for name in identity_of(Config()) if not name.startswith("run.")}
    nuts = {"warmup", "chunk", "metric", "target_accept", "max_tree_depth", "start"}
    svi = {"guide", "chunk", "draws"}
    assert found == {"model.name", "method"} | {f"nuts.{n}" for n in nuts} | {
        f"svi.{n}" for n in svi
    }


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
