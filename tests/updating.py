"""What a user does around `copier update`, and what the template's maintainer does before it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import copier
from growing import commit_all, git, tree
from link import ROOT

PINNED = "v999.0.0"  # the working tree
NEWER = "v1000.0.0"  # made in the test
MOVED_SINCE = {"0.1.0"}  # releases from which the notes give another way, to MOVED_IN
MOVED_IN = "v0.2.0"
ROLES = ("AUTHOR", "COMMITTER")


def adopt(project: Path) -> Path:
    """What a user does after the copy: a repository, and a first commit."""
    git(project, "init", "--quiet")
    commit_all(project, "Start from the template")
    return project


def run_once(project: Path) -> None:
    """What a training run leaves behind: ignored outputs, and a lock to commit."""
    for name in (
        "runs/demo/metrics.jsonl",
        "data/stdlib/manifest.json",
        "runs/demo/checkpoints/1/x",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("written by a run\n")
    (project / "uv.lock").write_text("version = 1\n")
    commit_all(project, "Lock the dependencies")


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file.name}"
    file.write_text(text.replace(old, new), "utf-8")


def update(project: Path, to: str) -> None:
    """Update as the emitted workflow does; fails on a conflict, which Copier reports as success."""
    assert not git(project, "status", "--porcelain"), "Copier wants a clean tree"
    copier.run_update(
        str(project),
        vcs_ref=to,
        defaults=True,
        skip_answered=True,
        overwrite=True,
        quiet=True,
        unsafe=False,
    )
    assert not git(project, "diff", "--name-only", "--diff-filter=U"), git(project, "diff")
    assert not list(project.rglob("*.rej"))
    assert not [
        name for name, text in tree(project).items() if re.search(rb"^(<{7}|>{7}) ", text, re.M)
    ]


def answer_anew(project: Path, **answers: str) -> None:
    """Other answers on the same version, as docs/index.md says; may leave conflicts."""
    copier.run_update(
        str(project),
        vcs_ref=copier.VcsRef.CURRENT,
        data=answers,
        defaults=True,
        overwrite=True,
        quiet=True,
        unsafe=False,
    )


def release_next(template: Path) -> None:
    """A newer template: other bounds beside the marker, a changed, a new and a longer file."""
    common = template / "templates" / "{{common}}"
    edit(template / "hooks" / "dependencies" / "llm.toml", "pyarrow>=20.0.0", "pyarrow>=20.0.1")
    edit(
        common / "pyproject.toml.jinja",
        '"pre-commit>=4.3.0",',
        '"pre-commit>=4.3.0",\n    "extra>=1",',
    )
    edit(common / ".gitignore", "/dist/", "/dist/\n/profile/")
    edit(
        template / "hooks" / "notes.md", "## 0.1.0", "## 1000.0.0\n\nBrings a new file.\n\n## 0.1.0"
    )
    package = common / "{{source}}"
    (package / "brand_new.py").write_text('"""New in this release."""\n')
    errors = package / "errors.py"
    first_line = errors.read_text("utf-8").splitlines()[0]
    edit(errors, first_line, first_line.replace('"""', '"""Now better. ', 1))
    commit_all(template, "Release", tag=NEWER)


def documented(heading: str) -> list[str]:
    """The commands below a heading of the release notes, up to those that install packages."""
    section = (ROOT / "hooks" / "notes.md").read_text("utf-8").partition(f"### {heading}\n")[2]
    commands = re.findall(r"^    (.*)", section.partition("\n#")[0], re.MULTILINE)
    assert commands, heading
    return [command for command in commands if not command.startswith("uv ")]


def follow(commands: list[str], project: Path) -> str:
    """Type the commands, word for word; what they print. A merge may end with a conflict."""
    programs = project.parent / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "uvx").write_text('#!/bin/sh\nexec "$@"\n')  # Copier stands in this environment
    (programs / "uvx").chmod(0o755)
    found = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    who = {f"GIT_{role}_{what}": "t@example.org" for role in ROLES for what in ("NAME", "EMAIL")}
    environment = os.environ | who | {"PATH": os.pathsep.join(found), "GIT_EDITOR": "false"}
    script = "\n".join(commands)
    done = subprocess.run(
        ["bash", "-c", script], cwd=project, env=environment, capture_output=True, text=True
    )
    told = done.stdout + done.stderr
    # A merge comes last.
    assert done.returncode == (1 if "CONFLICT" in done.stdout else 0), told
    return told


def follow_releases(project: Path, version: str) -> None:
    """From a past release to the working tree, as the notes say, without edits that conflict."""
    if version in MOVED_SINCE:
        follow(documented("How to update"), project)
    update(project, PINNED)
