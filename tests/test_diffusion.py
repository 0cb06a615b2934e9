"""A grown project of the kind `diffusion`, installed for real: its own tests pass, it learns.

What common and training promise is tested in full with `llm`; here are the rooms of this kind,
and its commands.
"""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from growing import grow, template_repository
from installed import commands_of_the_readme, losses_of, names_of_dependencies, uv
from link import ROOT
from updating import PINNED

pytestmark = pytest.mark.slow
MINI = """--eval-every-steps 0 --optim.warmup-steps 2 --data.batch-size 32 --model.width 16
    --model.layers 1 --model.scan-unroll 1 --model.mlp-width 32 --sample.images 40
    --sample.sampler-steps 4"""
# What the emitted README tells its user to type -> the options that make it a matter of seconds.
RECIPES = {
    "uv run acorn train demo": MINI + " --steps 60 --log-every-steps 1 --save-every-steps 30",
    "uv run acorn sample --run-dir runs/demo --count 100": "--sampler-steps 4",
    "uv run acorn train --help": "",
    "uv run acorn train --data.source pictures --data.size 32 --data.colour --data.prepared-dir "
    "data/mine --run-dir runs/mine": MINI
    + " --data.size 16 --model.patch 4 --data.heldout-fraction 0.3 --steps 2",
    "uv run acorn train": MINI + " --run-dir runs/demo --steps 60 --save-every-steps 30",
    "uv run acorn prepare": "",
    "uv run acorn sample": "--count 4 --sampler euler",
    "uv run acorn evaluate": "--images 40 --probes 1",
    "uv run acorn report": "",
    "uv run acorn report --run-dir DIR": "--run-dir runs/mine",
    "uv run --with tensorboard tensorboard --logdir runs": "--inspect",  # instead of serving
    "uv run acorn export": "--to build/exported",
    "uv run acorn preflight": MINI,
    "uv run acorn bench": f"{MINI} --timed-steps 2",
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
PICTURES = """
from pathlib import Path
import numpy as np
from PIL import Image
random = np.random.default_rng(0)
for number in range(60):
    folder = Path("pictures", "ab"[number % 2])
    folder.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")
"""


@pytest.fixture(scope="module")
def acorn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of someone who chose the kind, and pressed Enter everywhere else; installed."""
    template = template_repository(tmp_path_factory.mktemp("template") / "flaxseed")
    into = tmp_path_factory.mktemp("project") / "acorn"
    project = grow(template, into, {"kind": "diffusion"}, vcs_ref=PINNED)
    uv(project, "sync")
    return project


def test_checks_pass(acorn: Path) -> None:
    uv(acorn, "run", "ruff", "format", "--check")
    uv(acorn, "run", "ruff", "check")
    uv(acorn, "run", "mypy")


@pytest.mark.parametrize("room", ["tests", "images"])
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
    if "pictures" in command:
        uv(acorn, "run", "--no-sync", "python", "-", typed=PICTURES)
    told = uv(acorn, *shlex.split(command)[1:], *RECIPES[command].split())
    assert told.strip()


def test_no_package_may_have_the_name_of_a_dependency(acorn: Path) -> None:
    names = names_of_dependencies(acorn)
    assert {"diffrax", "sklearn"} <= names
    assert names <= set((ROOT / "hooks" / "reserved-names.txt").read_text("utf-8").split())


def test_it_learned(acorn: Path) -> None:
    run = acorn / "runs" / "demo"
    losses = losses_of(run)
    assert list(losses) == list(range(1, 61))
    assert sum(list(losses.values())[-5:]) / 5 < 0.8 * losses[1]
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    for name in ("samples", "floor", "baseline", "bits_per_dimension"):
        assert all(map(math.isfinite, summary[name].values()))
    assert {"samples", "nearest-in-training", "from-noise", "guidance-by-steps"} == {
        file.name.rpartition("-")[0] for file in (run / "artifacts").iterdir()
    }
    assert (acorn / "build" / "exported" / "sampler.stablehlo").is_file()
    assert (acorn / "samples" / "images.png").is_file()


def test_the_script_of_the_readme_runs(acorn: Path) -> None:
    readme = (acorn / "README.md").read_text("utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    told = uv(acorn, "run", "--no-sync", "python", "-", typed=script)
    assert "step 60: (10, 8, 8, 1), heun" in told
    assert re.search(r"^\d\.\d\d bits a pixel$", told, re.M), told
