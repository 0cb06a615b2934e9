"""A grown project, installed for real: its own tests pass, it learns, and it can be updated then.

The slow part of the suite. One project serves all tests here, in the order of a user's first day.
"""

import json
import os
import re
import shutil
import subprocess
import sysconfig
import time
import tomllib
import zipfile
from collections import Counter
from math import log2
from pathlib import Path

import pytest
from growing import commit_all, git, grow, template_repository
from link import ROOT
from updating import NEWER, PINNED, adopt, release_next, update

pytestmark = pytest.mark.slow
# Enough of the emitted tests to run every dependency, and short, for the lowest versions.
CORE_TESTS = ["model", "optim", "step", "checkpoint", "corpus", "telemetry"]
CORE_TESTS += ["cli", "tokenizer", "trackers"]
# A run of seconds, of preset demo.
MINI = """--eval-every-steps 0 --optim.warmup-steps 2 --data.tokenizer byte --data.seq-len 128
    --data.prepared-dir data/bytes --data.batch-size 16 --model.width 96"""


def uv(project: Path, *arguments: str, code: int = 0) -> str:
    """Run uv in the project as a user would, outside the environment of this suite."""
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "XLA_FLAGS")}
    done = subprocess.run(
        [os.environ.get("UV", "uv"), *arguments],
        cwd=project,
        env=kept | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == code, (
        f"uv {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-8000:]}"
    )
    return done.stdout


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


def test_every_command_of_the_readme_exists(acorn: Path) -> None:
    readme = (acorn / "README.md").read_text("utf-8")
    table = readme.partition("## Commands")[2].partition("##")[0]
    named = re.findall(r"^\| `([a-z-]+)", table, re.MULTILINE)
    assert {"train", "sample", "template-status"} <= set(named)
    for command in named:
        told = uv(acorn, "run", "--no-sync", "acorn", command, "--help")
        assert f"usage: acorn {command}" in told
    known = uv(acorn, "run", "--no-sync", "acorn", "--help")
    listed = re.findall(r"^  ([a-z-]+) ", known, re.MULTILINE)
    assert sorted(listed) == sorted(named), "a command that the README does not name"


def test_no_package_may_have_the_name_of_a_dependency(acorn: Path) -> None:
    lock = tomllib.loads((acorn / "uv.lock").read_text("utf-8"))
    names = {package["name"] for package in lock["package"]} - {"acorn"}
    installed = "from importlib.metadata import packages_distributions as d; print(*d())"
    names |= set(uv(acorn, "run", "--no-sync", "python", "-c", installed).split()) - {"acorn"}
    possible = {re.sub("[-.]", "_", name.lower()) for name in names}
    possible = {name for name in possible if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)}
    assert {"tqdm", "google"} <= possible
    assert possible <= set((ROOT / "hooks" / "reserved-names.txt").read_text("utf-8").split())


def unigram_bits_per_byte() -> float:
    """Entropy of single bytes of the standard library: what counting alone achieves."""
    count: Counter[int] = Counter()
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        count.update(file.read_bytes())
    return -sum(n / count.total() * log2(n / count.total()) for n in count.values())


def test_it_learns(acorn: Path) -> None:
    options = "--run-dir runs/mini --steps 50 --log-every-steps 1 --save-every-steps 25"
    uv(acorn, "run", "acorn", "train", "demo", *MINI.split(), *options.split())

    run = acorn / "runs" / "mini"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 50
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert summary["heldout_bits_per_byte"] < unigram_bits_per_byte()
    for name in ("config.json", "report.html", "checkpoints"):
        assert (run / name).exists()
    assert list((run / "plots").glob("*.png"))


def test_sampling_from_the_run(acorn: Path) -> None:
    assert uv(acorn, "run", "acorn", "sample", "--run-dir", "runs/mini", "--chars", "40").strip()


def test_an_update_right_after_the_run_is_clean(acorn: Path, moving: Path) -> None:
    assert git(acorn, "status", "--porcelain").split() == ["??", "uv.lock"]
    commit_all(acorn, "Lock the dependencies, as the README says")
    release_next(moving)
    update(acorn, NEWER)
    assert (acorn / "runs" / "mini" / "summary.json").is_file()


def test_the_wheel_holds_the_package_and_no_tests(acorn: Path) -> None:
    uv(acorn, "build", "--wheel", "--quiet")
    names = zipfile.ZipFile(next((acorn / "dist").glob("*.whl"))).namelist()
    assert "acorn/step.py" in names
    assert not [name for name in names if "/tests/" in name]


def test_the_lowest_dependencies_pass_the_core_tests(moving: Path, tmp_path: Path) -> None:
    project = grow(moving, tmp_path / "lowest", vcs_ref=PINNED)
    uv(project, "sync", "--resolution", "lowest-direct")
    installed = uv(project, "pip", "freeze")
    assert "jax==0.11.1\n" in installed
    tests = project / "src" / "acorn" / "tests"
    wanted = [str(file) for name in CORE_TESTS if (file := tests / f"test_{name}.py").is_file()]
    assert len(wanted) == len(CORE_TESTS)
    print(uv(project, "run", "--no-sync", "pytest", "-q", "-m", "not slow", *wanted)[-2000:])
    short = ["--steps", "3", "--run-dir", "runs/short"]
    uv(project, "run", "--no-sync", "acorn", "train", "demo", *MINI.split(), *short)
    assert (project / "runs" / "short" / "summary.json").is_file()
    shutil.rmtree(project / ".venv")
