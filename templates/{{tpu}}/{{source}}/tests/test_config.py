"""Every setting acts, and what cannot work is refused before it starts."""

import ast
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import pytest

from ..config import PRESETS, Config, validate
from ..errors import UserError
from ..run_config import from_dict, identity_of, to_dict, tunables_of
from ..runtime.compiled import abstract_state
from ..runtime.sharding import make_mesh
from ..workload import make_dry_workload
from .small import CONFIG


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
    assert not [
        f for f in names if not {(owner, f[1]) for owner in (f[0], "config", "c", "m")} & read
    ]


CHANGES = dict(
    layers=3,
    width=64,
    heads=2,
    compute_dtype="bfloat16",
    remat="dots",
)


def traced(config: Config) -> str:
    """The program of the step."""
    workload = make_dry_workload(config, make_mesh(config.mesh, jax.devices()[:1]))
    state = jax.eval_shape(partial(workload.init, jax.random.key(0)))
    return str(jax.make_jaxpr(workload.step)(state, workload.batch(0)))


def test_every_field_of_the_model_changes_the_program() -> None:
    before = traced(CONFIG)
    assert traced(CONFIG) == before
    changes = {f"model.{name}": value for name, value in CHANGES.items()} | {"data.seq_len": 16}
    assert not [k for k, v in changes.items() if traced(from_dict(CONFIG, {k: v})) == before]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds(name: str) -> None:
    config = validate(PRESETS[name]())
    mesh = make_mesh(replace(config.mesh, fsdp=min(config.mesh.fsdp, 8)))
    workload = make_dry_workload(config, mesh)
    state, _ = abstract_state(workload, 0, mesh)
    size = sum(x.size for x in jax.tree.leaves(state["params"]))
    assert size == pytest.approx(0.82e6 if name == "demo" else 1.01e9, rel=0.01)


def test_what_a_resume_must_match() -> None:
    """Of our settings; those that you add are for you to mark."""
    must_match = {"model.layers", "model.width", "model.heads", "run.seed", "optim.optimizer"}
    must_match |= {"data.seq_len", "data.batch_size", "data.heldout_fraction"}
    assert must_match <= set(identity_of(Config()))
    assert {"run.steps", "optim.learning_rate"} <= set(tunables_of(Config()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.width": 36, "model.heads": 4}, r"width 36 .*heads 4.*even.*a multiple of 8"),
        ({"model.heads": 0}, r"heads 0.*more than 0"),
        ({"data.heldout_fraction": 1.0}, r"heldout-fraction 1.0.*less than 1"),
        ({"data.seq_len": 0}, r"seq-len 0.*more than 0"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)got: .*{words}"):
        validate(from_dict(Config(), changes))
