"""A grown project, installed for real: its own tests pass, it learns, and it can be updated then.

The slow part of the suite. One project serves all tests here, in the order of a user's first day.
"""

import gzip
import json
import re
import shlex
import shutil
import sysconfig
import time
import zipfile
from collections import Counter
from math import log2
from pathlib import Path

import pytest
from growing import commit_all, git, grow, template_repository
from installed import (
    MINI,
    MINI_TEXT,
    ONE_LAYER,
    TINY,
    commands_of_the_readme,
    losses_of,
    names_of_dependencies,
    uv,
)
from link import ROOT
from updating import NEWER, PINNED, adopt, release_next, update

pytestmark = pytest.mark.slow
# What the emitted README tells its user to type -> the options that make it a matter of seconds.
# In this order: the first one trains what others read.
RECIPES = {
    "uv run acorn train demo": MINI + " --steps 50 --log-every-steps 1 --save-every-steps 25",
    "uv run acorn sample --run-dir runs/demo --chars 300": "",
    "uv run acorn train --help": "",
    "uv run acorn train --data.paths 'corpus/*.jsonl.gz' --data.prepared-dir data/mine "
    "--run-dir runs/mine": TINY + " --steps 3",
    "uv run acorn train": MINI + " --run-dir runs/demo --steps 50 --save-every-steps 25",
    "uv run acorn prepare": MINI_TEXT,
    "uv run acorn sample": "--chars 5",
    "uv run acorn evaluate": "",
    "uv run acorn report": "",
    "uv run acorn report --run-dir DIR": "--run-dir runs/mine",
    "uv run --with tensorboard tensorboard --logdir runs": "--inspect",  # instead of serving
    "uv run acorn export": "--to build/hub",
    "uv run acorn preflight": f"{MINI} {ONE_LAYER}",
    "uv run acorn bench": f"{MINI} {ONE_LAYER} --timed-steps 2",
    "uv run acorn doctor": "",
    "uv run acorn template-status": "",
    # Gigabytes to download: that the extra is there and fits the others must do.
    "uv sync": "--dry-run",
    "uv sync --extra cuda12": "--dry-run",
    "uv sync --extra tpu": "--dry-run",
    "uv sync --extra wandb": "--dry-run",
    "uv sync --extra gcs": "--dry-run",
    "uv lock --upgrade-package flax": "",
}
# Those that are not typed here -> why.
ELSEWHERE = {
    "uv run pytest": "test_its_own_tests_pass types it",
    "uvx xprof --logdir DIR/profile": "serves until it is stopped",
    "uvx copier update --skip-answered": "would fetch the template; updating.py calls the same",
    "docker build -t acorn .": "needs an engine; test_render.py lints the Dockerfile",
}


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template_repository(tmp_path_factory.mktemp("template") / "flaxseed")


@pytest.fixture(scope="module")
def acorn(moving: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of someone who pressed Enter everywhere, installed."""
    project = adopt(grow(moving, tmp_path_factory.mktemp("project") / "acorn", vcs_ref=PINNED))
    uv(project, "sync")
    return project


def test_checks_pass(acorn: Path) -> None:
    uv(acorn, "run", "ruff", "format", "--check")
    uv(acorn, "run", "ruff", "check")
    uv(acorn, "run", "mypy")


def test_its_own_tests_pass(acorn: Path) -> None:
    print(uv(acorn, "run", "pytest", "-q")[-2000:])


def test_help_is_instant_and_loads_no_jax(acorn: Path) -> None:
    loaded = "import sys, acorn.cli, acorn.config; print([m for m in sys.modules if m == 'jax'])"
    assert uv(acorn, "run", "--no-sync", "python", "-c", loaded).strip() == "[]"
    started = time.monotonic()
    assert "--mesh.fsdp" in uv(acorn, "run", "--no-sync", "acorn", "train", "--help")
    assert time.monotonic() - started < 6


def test_the_readme_names_every_command_and_each_has_a_recipe(acorn: Path) -> None:
    known = uv(acorn, "run", "--no-sync", "acorn", "--help")
    listed = {f"uv run acorn {name}" for name in re.findall(r"^  ([a-z-]+) ", known, re.MULTILINE)}
    named = set(commands_of_the_readme(acorn))
    assert listed <= named, "a command that the README does not name"
    assert named == {*RECIPES, *ELSEWHERE}, "each command of the README is run, and no other"


@pytest.mark.parametrize("command", RECIPES, ids=str)
def test_a_command_of_the_readme_runs(acorn: Path, command: str) -> None:
    corpus = acorn / "corpus"
    corpus.mkdir(exist_ok=True)
    for i in range(40):
        text = "".join(f"line {n} of {i}\n" for n in range(i + 8))
        with gzip.open(corpus / f"{i}.jsonl.gz", "wt") as file:
            file.write(json.dumps({"text": text}) + "\n")
    try:
        told = uv(acorn, *shlex.split(command)[1:], *RECIPES[command].split())
    finally:
        shutil.rmtree(corpus)  # git sees it, and the update below wants a clean tree
    assert told.strip()


def test_no_package_may_have_the_name_of_a_dependency(acorn: Path) -> None:
    names = names_of_dependencies(acorn)
    assert {"tqdm", "google"} <= names
    assert names <= set((ROOT / "hooks" / "reserved-names.txt").read_text("utf-8").split())


def unigram_bits_per_byte() -> float:
    """Entropy of single bytes of the standard library: what counting alone achieves."""
    count: Counter[int] = Counter()
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        count.update(file.read_bytes())
    return -sum(n / count.total() * log2(n / count.total()) for n in count.values())


def test_it_learned(acorn: Path) -> None:
    run = acorn / "runs" / "demo"
    losses = losses_of(run)
    assert list(losses) == list(range(1, 51))
    assert sum(list(losses.values())[-5:]) / 5 < 0.7 * losses[1]
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert summary["heldout_bits_per_byte"] < unigram_bits_per_byte()
    for name in ("config.json", "report.html", "checkpoints"):
        assert (run / name).exists()
    assert list((run / "plots").glob("*.png"))
    assert (acorn / "build" / "hub" / "model.safetensors").is_file()


def test_the_script_of_the_readme_runs(acorn: Path) -> None:
    readme = (acorn / "README.md").read_text("utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    assert len(script.split("\n")) <= 12
    told = uv(acorn, "run", "--no-sync", "python", "-", typed=script)
    assert re.search(r"^step 50: \d\.\d{3} nats a token$", told, re.M), told
    options = shlex.split("--prompt 'def ' --chars 80 --temperature 0.7 --top-p 0.9 --seed 1")
    sampled = uv(acorn, "run", "--no-sync", "acorn", "sample", *options)
    assert told.endswith(sampled.removeprefix("def "))
    assert sampled.startswith("def ")


def test_the_step_of_the_benchmarks_trains_and_saves(acorn: Path, tmp_path: Path) -> None:
    shape = {"layers": 1, "width": 32, "heads": 1, "kv_heads": 1, "head_dim": 32, "mlp_width": 32}
    sizes = {"model": shape, "data": {"seq_len": 16, "batch_size": 2}}
    asked = [
        ("build", {"vocab": 512} | sizes),
        ("advance", {"steps": 1}),
        ("advance", {"steps": 4}),
    ]
    asked += [("save", {"folder": str(tmp_path / "saved"), "steps": 1})]
    lines = "\n".join(map(json.dumps, asked))
    script = str(ROOT / "benchmarks" / "our_step.py")
    told = uv(acorn, "run", "--no-sync", "python", script, typed=lines).splitlines()
    answers = [json.loads(line) for line in told if re.match(r"[{\d]", line)]
    _, first_loss, last_loss, saved = answers
    assert last_loss < first_loss
    assert saved["error"] is None
    assert saved["written_bytes"] >= saved["state_bytes"]


def test_an_update_right_after_the_run_is_clean(acorn: Path, moving: Path) -> None:
    assert git(acorn, "status", "--porcelain").split() == ["??", "uv.lock"]
    commit_all(acorn, "Lock the dependencies, as the README says")
    release_next(moving)
    update(acorn, NEWER)
    assert (acorn / "runs" / "demo" / "summary.json").is_file()


def test_the_wheel_holds_the_package_and_no_tests(acorn: Path) -> None:
    uv(acorn, "build", "--wheel", "--quiet")
    names = zipfile.ZipFile(next((acorn / "dist").glob("*.whl"))).namelist()
    package = acorn / "src" / "acorn"
    wanted = {
        f"acorn/{file.relative_to(package).as_posix()}"
        for file in package.rglob("*.py")
        if "tests" not in file.relative_to(package).parts and file.name != "conftest.py"
    }
    assert "acorn/runtime/loop.py" in wanted
    assert {name for name in names if ".dist-info/" not in name} == wanted
