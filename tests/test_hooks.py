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
    source = link.TEMPLATES / "{{common}}" / "src" / "{{package}}" / "errors.py"
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
    (project / "README.md").write_text("mine")
    demo.settle("llm")
    assert not (project / "runs").exists()
    assert (build / "demo.previous" / "README.md").read_text() == "mine"
    assert sorted(entry.name for entry in build.iterdir()) == ["demo", "demo.previous"]


def test_a_demo_that_is_stopped_while_it_grows_leaves_nothing(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(kind: str, into: Path) -> None:
        into.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "grow", stop)
    assert demo.main("llm") == 130
    assert list(build.iterdir()) == []


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
