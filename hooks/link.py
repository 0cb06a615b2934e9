"""Grow `build/link/KIND`: a working project whose plain files are links into `templates/`.

A maintainer edits the sources and runs or tests them there, in place. Rendered files (`.jinja`)
are copies: run `make link` again after changing one, or after adding a file. Not for users.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import copier

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "templates"
BUILD = ROOT / "build"
KEPT = (
    ".venv",
    "uv.lock",
    ".cache",
    "runs",
    "data",
)  # costly to make again, and no part of the template


def snapshot(into: Path) -> Path:
    """Copy the working tree of the template, uncommitted files included, without its history."""
    caches = shutil.ignore_patterns("__pycache__", ".*_cache")
    for name in ("templates", "hooks"):
        shutil.copytree(ROOT / name, into / name, ignore=caches)
    for name in ("copier.yml", "LICENSE"):
        shutil.copy2(ROOT / name, into / name)
    return into


def python_for(project: Path) -> dict[str, str]:
    """UV_PYTHON for a project where uv alone finds no Python: the one that runs this.

    That one may be a pyenv version that is not on PATH, which `uv.sh` has found.
    """
    if "UV_PYTHON" in os.environ:
        return {}
    kept = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    command = [os.environ.get("UV", "uv"), "python", "find", "--quiet"]  # `uv run` sets UV
    looked = subprocess.run(
        command, cwd=project, env=kept | {"UV_PYTHON_DOWNLOADS": "never"}, capture_output=True
    )
    return {} if looked.returncode == 0 else {"UV_PYTHON": str(Path(sys.executable).resolve())}


def destination(source: Path, package: str) -> Path:
    """Where a plain file of a layer lands, relative to the project."""
    inside_layer = source.relative_to(TEMPLATES).parts[1:]
    return Path(*(part.replace("{{source}}", f"src/{package}") for part in inside_layer))


def link(kind: str) -> Path:
    """Render the kind, then put links in the place of the files that were only copied."""
    package = f"acorn_{kind}"
    project = BUILD / "link" / kind
    project.mkdir(parents=True, exist_ok=True)
    for entry in project.iterdir():
        if entry.name in KEPT:
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        copier.run_copy(
            str(snapshot(Path(scratch))),
            project,
            data={"kind": kind, "project_name": f"Acorn {kind}", "package": package},
            defaults=True,
            overwrite=True,
            quiet=True,
        )
    for source in TEMPLATES.rglob("*"):
        if source.is_dir() or source.suffix == ".jinja":
            continue
        copy = project / destination(source, package)
        if copy.is_file() and copy.read_bytes() == source.read_bytes():
            copy.unlink()
            copy.symlink_to(source)
    return project


if __name__ == "__main__":
    where = link(sys.argv[1] if len(sys.argv) > 1 else "llm")
    python = "".join(f"{name}={value} " for name, value in python_for(where).items())
    print(f"cd {where.relative_to(ROOT)} && {python}uv run pytest")
