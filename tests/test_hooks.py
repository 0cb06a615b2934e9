"""`make link` and `make demo`, and the script that finds or installs uv."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import demo
import link
import pytest


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somewhere else than build/, which is the maintainer's."""
    monkeypatch.setattr(demo, "BUILD", tmp_path / "build")
    monkeypatch.setattr(link, "BUILD", tmp_path / "build")
    return tmp_path / "build"


def test_a_linked_project_is_edited_in_place_and_keeps_its_environment(build: Path) -> None:
    project = link.link("llm")
    source = link.TEMPLATES / "{{common}}" / "{{source}}" / "errors.py"
    assert (project / "src" / "acorn_llm" / "errors.py").resolve() == source
    assert not (project / "pyproject.toml").is_symlink()
    (project / ".venv").mkdir()
    (project / "stale.py").touch()
    link.link("llm")
    assert (project / ".venv").is_dir()
    assert not (project / "stale.py").exists()


def test_the_demo_is_grown_once_and_set_aside_when_it_differs(build: Path) -> None:
    project = demo.settle("llm")
    (project / "runs").mkdir()
    assert demo.settle("llm") == project
    assert (project / "runs").is_dir(), "an unchanged demo must be used again"
    for edited in ("mine", "mine too"):
        (project / "README.md").write_text(edited)
        demo.settle("llm")
        assert not (project / "runs").exists()
    aside = sorted(build.glob("demo.previous-*/README.md"))
    assert [readme.read_text() for readme in aside] == ["mine", "mine too"]
    assert sorted(entry.name for entry in build.iterdir())[0] == "demo"
    assert len(list(build.iterdir())) == 3


def test_a_demo_that_is_stopped_while_it_grows_leaves_nothing(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(kind: str, into: Path) -> None:
        into.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "grow", stop)
    assert demo.main("llm") == 130
    assert list(build.iterdir()) == []


def test_the_demo_runs_on_the_python_that_runs_the_template(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[dict[str, str]] = []
    grown = tmp_path / "demo"
    shutil.copytree(project, grown)
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(demo, "settle", lambda kind: grown)
    monkeypatch.setattr(demo, "run", lambda command, folder, environment: ran.append(environment))
    uv = os.environ.get("UV") or shutil.which("uv") or ""
    for name in [name for name in os.environ if name.startswith(("UV_PYTHON", "VIRTUAL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV", uv)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no Python on it, as with pyenv's alone
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "managed"))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    assert demo.main("llm") == 0
    assert len(ran) == len(demo.COMMANDS["llm"])
    show = "import os, sys; print(os.path.realpath(sys.executable))"
    command = [uv, "run", "--offline", "--no-project", "python", "-c", show]
    found = subprocess.run(command, cwd=grown, env=ran[0], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str(Path(sys.executable).resolve())
    # Where uv finds one, the project decides.
    (tmp_path / "bin" / "python3.12").symlink_to(Path(sys.executable).resolve())
    assert link.python_for(grown) == {}


@pytest.mark.slow
def test_the_group_grow_is_enough_for_demo_and_link() -> None:
    target = (link.ROOT / "Makefile").read_text("utf-8").partition("GROW := run ")[2]
    options = target.partition(" python\n")[0].split()
    assert "--group" in options
    command = [os.environ.get("UV", "uv"), "run", "--isolated", *options]
    kept = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    listing = "import demo, importlib.metadata as m; print({d.name for d in m.distributions()})"
    done = subprocess.run(
        [*command, "python", "-c", listing],
        cwd=link.ROOT,
        env=kept | {"PYTHONPATH": "hooks"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "'copier'" in done.stdout
    assert "'sphinx'" not in done.stdout


@pytest.mark.slow
def test_uv_is_installed_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "repo" / "hooks").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    shutil.copy(link.ROOT / "hooks" / "uv.sh", tmp_path / "repo" / "hooks")
    for tool in ("sh", "dirname", "git", "env"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or "")
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("UV", "VIRTUAL"))}
    command = ["sh", str(tmp_path / "repo" / "hooks" / "uv.sh"), "--version"]
    for _ in range(2):
        done = subprocess.run(
            command, env=kept | {"PATH": str(tmp_path / "bin")}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("uv ")
    assert "installing" not in done.stderr, "the second call must find what the first installed"
    assert (tmp_path / "repo" / ".venv" / "bin" / "uv").is_file()
