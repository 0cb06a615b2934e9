"""A grown project of the kind `bayes`, installed for real: each command of its README runs."""

import json
import re
import shlex
from pathlib import Path

import pytest
from growing import grow, template_repository
from installed import commands_of_the_readme, names_of_dependencies, uv
from link import ROOT
from updating import PINNED

pytestmark = pytest.mark.slow
SHORT = "--nuts.warmup 500 --steps 15"
# What the emitted README tells its user to type -> the options that make it a matter of seconds.
RECIPES = {
    "uv run acorn fit demo": "",
    "uv run acorn diagnose --run-dir runs/demo": "",
    "uv run acorn fit --model.name pooled --run-dir runs/pooled": SHORT,
    "uv run acorn compare runs/demo runs/pooled": "",
    "uv run acorn calibrate --run-dir runs/demo": "--simulations 8 --nuts.warmup 500",
    "uv run acorn predict --data.path new.csv --to predictions.zarr": "",
    "uv run acorn fit --help": "",
    "uv run acorn fit --model.name partial --data.path table.csv --data.columns player=name "
    "hits=wins at_bats=games --run-dir runs/mine": SHORT,
    "uv run acorn fit": "--steps 20",  # the demo again: nothing to do
    "uv run acorn diagnose": "",
    "uv run acorn compare": "runs/pooled runs/demo",
    "uv run acorn fit svi": "--steps 40",
    "uv run acorn calibrate": "--simulations 8 --run-dir runs/pooled",
    "uv run acorn predict": "--data.path new.csv --run-dir runs/pooled --to build/predictions.zarr",
    "uv run acorn export": "--to build/fit.nc",
    "uv run acorn report": "",
    "uv run acorn report --run-dir DIR": "--run-dir runs/mine",
    "uv run --with tensorboard tensorboard --logdir runs": "--inspect",  # instead of serving
    "uv run acorn bench": "--timed-steps 2",
    "uv run acorn doctor": "",
    "uv run acorn template-status": "",
    "uv sync": "--dry-run",
}
# Those that are not typed here -> why.
ELSEWHERE = {
    "uv run pytest": "test_its_own_tests_pass types it",
    "uvx xprof --logdir DIR/profile": "serves until it is stopped",
    "uvx copier update --skip-answered": "would fetch the template; updating.py calls the same",
    "docker build -t acorn .": "needs an engine; test_render.py lints the Dockerfile",
}
SHARED = "test_project.py types it, for the kind llm"
ELSEWHERE |= {f"uv sync --extra {name}": SHARED for name in ("cuda12", "tpu", "wandb", "gcs")}
ELSEWHERE |= {"uv lock --upgrade-package flax": SHARED}
TABLE = "name,wins,games\n" + "".join(f"{'abcdefgh'[i % 8]},{i % 5},9\n" for i in range(24))


@pytest.fixture(scope="module")
def acorn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of someone who chose the kind, and pressed Enter everywhere else; installed."""
    template = template_repository(tmp_path_factory.mktemp("template") / "flaxseed")
    into = tmp_path_factory.mktemp("project") / "acorn"
    project = grow(template, into, {"kind": "bayes"}, vcs_ref=PINNED)
    uv(project, "sync")
    (project / "table.csv").write_text(TABLE)
    (project / "new.csv").write_text("player,at_bats\nClemente,100\nAlvis,100\n")
    return project


def test_checks_pass(acorn: Path) -> None:
    uv(acorn, "run", "ruff", "format", "--check")
    uv(acorn, "run", "ruff", "check")
    uv(acorn, "run", "mypy")


@pytest.mark.parametrize("room", ["tests", "posterior", "models"])
def test_its_own_tests_pass(acorn: Path, room: str) -> None:
    print(uv(acorn, "run", "pytest", "-q", f"src/acorn/{room}")[-2000:])


def test_the_readme_names_every_command_and_each_has_a_recipe(acorn: Path) -> None:
    known = uv(acorn, "run", "--no-sync", "acorn", "--help")
    listed = {f"uv run acorn {name}" for name in re.findall(r"^  ([a-z-]+) ", known, re.MULTILINE)}
    named = set(commands_of_the_readme(acorn))
    assert listed <= named, "a command that the README does not name"
    assert named == {*RECIPES, *ELSEWHERE}, "each command of the README is run, and no other"


@pytest.mark.parametrize("command", RECIPES, ids=str)
def test_a_command_of_the_readme_runs(acorn: Path, command: str) -> None:
    told = uv(acorn, *shlex.split(command)[1:], *RECIPES[command].split())
    assert told.strip()


def test_no_package_may_have_the_name_of_a_dependency(acorn: Path) -> None:
    names = names_of_dependencies(acorn)
    assert {"numpyro", "h5py"} <= names
    assert names <= set((ROOT / "hooks" / "reserved-names.txt").read_text("utf-8").split())


def test_what_is_left_of_it(acorn: Path) -> None:
    assert json.loads((acorn / "runs" / "demo" / "summary.json").read_text("utf-8"))["trusted"]
    assert (acorn / "predictions.zarr" / "summary").is_dir()
    assert (acorn / "build" / "fit.nc").is_file()


def test_the_script_of_the_readme_runs(acorn: Path) -> None:
    readme = (acorn / "README.md").read_text("utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    assert "ability" in uv(acorn, "run", "--no-sync", "python", "-", typed=script)
