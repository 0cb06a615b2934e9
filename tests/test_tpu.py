"""A grown project of the kind `tpu`, installed for real: each command of its README runs.

What common and training promise is tested in full with `llm`; here are the rooms of this kind and
of the layer `cluster`, the second workload of the README, and that layer in two other kinds.
"""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from growing import grow, template_repository
from installed import commands_of_the_readme, environment, losses_of, names_of_dependencies, uv
from link import ROOT
from updating import PINNED

pytestmark = pytest.mark.slow
MINI = "--model.layers 1 --model.width 32 --model.compute-dtype float32 --data.seq-len 32"
SHORT = f"""{MINI} --steps 12 --data.eval-rows 8 --log-every-steps 1 --save-every-steps 3
    --eval-every-steps 0"""
OFFLINE = "not simulat"  # tests of the layer that need no data
ONE_HOST = "--hosts 1 --devices-per-host 1 --run-dir runs/alone"
# What the emitted README tells its user to type -> the options that make it a matter of seconds.
# In this order: the first ones make what others read. `simulate` runs the command of the job file.
RECIPES = {
    "uv run acorn train demo": SHORT,
    "uv run acorn simulate --hosts 2 --devices-per-host 1 --kill 1@step150": "--kill 1@step5",
    "uv run acorn goodput --run-dir runs/simulated": "",
    "uv run acorn train --help": "",
    "uv run acorn train --data.paths 'corpus/*.txt' --run-dir runs/mine": SHORT,
    "uv run acorn plan slice-1b --topologies v5e:16x16 v6e:16x16 --price-per-chip-hour 1.2": "",
    "uv run acorn preflight --topology v5e:4x4": MINI,
    "uv run acorn launch gke": "",
    "uv run acorn train": f"{SHORT} --run-dir runs/demo",
    "uv run acorn preflight": MINI,
    "uv run acorn plan": "--topologies v5e:4x4 --slices 1",
    "uv run acorn launch": "gke --out build/job.yaml",
    "uv run acorn health": "",
    "uv run acorn simulate": ONE_HOST,
    "uv run acorn goodput": "",
    "uv run acorn bench": f"{MINI} --timed-steps 2",
    "uv run acorn report": "",
    "uv run acorn report --run-dir DIR": "--run-dir runs/mine",
    "uv run --with tensorboard tensorboard --logdir runs": "--inspect",  # instead of serving
    "uv run acorn doctor": "",
    "uv run acorn template-status": "",
    "uv sync": "--dry-run",
}
# Those that are not typed here -> why.
ELSEWHERE = {
    "uv run pytest": "test_its_own_tests_pass types it",
    "uv sync --extra tpu": "the fixture types it",
    "uvx xprof --logdir DIR/profile": "serves until it is stopped",
    "uvx copier update --skip-answered": "would fetch the template; updating.py calls the same",
    "docker build -t acorn .": "needs an engine; test_render.py lints the Dockerfile",
}
SHARED = "test_project.py types it, for the kind llm"
ELSEWHERE |= {f"uv sync --extra {name}": SHARED for name in ("cuda12", "wandb", "gcs")}
IMAGE = "REGION-docker.pkg.dev/PROJECT/REPOSITORY/acorn"
PUSHED = f"docker build --build-arg ACCELERATOR=tpu -t {IMAGE} . && docker push {IMAGE}"
ELSEWHERE |= {PUSHED: "needs an engine and a registry"}
ELSEWHERE |= {"uv lock --upgrade-package flax": SHARED}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template_repository(tmp_path_factory.mktemp("template") / "flaxseed")


@pytest.fixture(scope="module")
def acorn(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of someone who chose the kind, and pressed Enter everywhere else; installed."""
    into = tmp_path_factory.mktemp("project") / "acorn"
    project = grow(template, into, {"kind": "tpu"}, vcs_ref=PINNED)
    uv(project, "sync", "--extra", "tpu")
    job = project / "launch" / "job.toml"
    text = job.read_text("utf-8")
    assert 'command = "train demo"' in text
    job.write_text(text.replace("train demo", f"train demo {' '.join(SHORT.split())}"))
    (project / "corpus").mkdir()
    for i in range(20):
        (project / "corpus" / f"{i}.txt").write_text(f"the {i}th file\n" * (60 + i))
    return project


def test_checks_pass(acorn: Path) -> None:
    uv(acorn, "run", "ruff", "format", "--check")
    uv(acorn, "run", "ruff", "check")
    uv(acorn, "run", "mypy")


@pytest.mark.parametrize("room", ["tests", "cluster", "commands"])
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
    assert {"yaml", "grain"} <= names
    assert names <= set((ROOT / "hooks" / "reserved-names.txt").read_text("utf-8").split())


def test_what_is_left_of_it(acorn: Path) -> None:
    runs = acorn / "runs"
    summary = json.loads((runs / "simulated" / "simulated" / "summary.json").read_text("utf-8"))
    assert summary["code"] == 0
    assert [each["fault"] for each in summary["faults"]] == ["kill 1@step5"]
    assert [each["then"] for each in summary["attempts"]] == ["restart", "complete"]
    # Killed and started again by two hosts, it trains as one process does.
    assert losses_of(runs / "simulated") == pytest.approx(losses_of(runs / "demo"), rel=2e-3)
    assert (runs / "simulated" / "plots" / "goodput.png").is_file()
    assert (acorn / "build" / "job.yaml").is_file()


def test_the_workload_of_the_readme_is_a_whole_one(acorn: Path, tmp_path: Path) -> None:
    """It takes the place of ours, and is held to what ours is held to."""
    readme = (acorn / "README.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    file = acorn / "src" / "acorn" / "workload.py"
    ours = shutil.copy(file, tmp_path)
    try:
        file.write_text(code)
        uv(acorn, "run", "ruff", "format", "--check", str(file))
        uv(acorn, "run", "ruff", "check", str(file))
        options = "--steps 300 --log-every-steps 1 --run-dir runs/mlp"
        uv(acorn, "run", "acorn", "train", *options.split())
        losses = losses_of(acorn / "runs" / "mlp")
        assert losses[300] < 0.2 * losses[1]
        told = uv(acorn, "run", "acorn", "preflight")
        assert "fits" in told
        assert "nan" not in told
        uv(acorn, "run", "acorn", "plan", "--topologies", "v5e:4x4", "--slices", "1")
        uv(acorn, "run", "pytest", "-q", "src/acorn/tests/test_job.py")
    finally:
        shutil.copy(ours, file)


@pytest.mark.parametrize("kind", ["llm", "diffusion"])
def test_two_other_kinds_take_the_layer(
    template: Path, acorn: Path, tmp_path: Path, kind: str
) -> None:
    """Clean, by the tools and packages of the one that is installed; its own tests of the room."""
    answers = {"kind": kind, "several_hosts": True}
    project = grow(template, tmp_path / "other", answers, vcs_ref=PINNED)
    assert (project / "launch" / "job.toml").is_file()
    python = acorn / ".venv" / "bin" / "python"
    rooms = ["tests/test_rooms.py"] * (kind == "llm") + ["cluster"]  # the other has more packages
    tests = [project / "src" / "acorn" / name for name in rooms]
    for command in (["-m", "mypy"], ["-m", "pytest", "-q", *tests, "-k", OFFLINE]):
        done = subprocess.run(
            [python, *command],
            cwd=project,
            env=environment() | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(project / "src")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
