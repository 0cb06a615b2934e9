"""`template-status`: which template release the project follows and what the last update brought.

Reads git, `.copier-answers.yml` and `docs/template-notes.md`. Changes nothing. Without a network it
cannot say whether there is a newer release. Imports no JAX.
"""

import os
import re
import subprocess
from pathlib import Path

from ..errors import Exit, UserError
from ..records.provenance import ANSWERS, answer

NOTES = "docs/template-notes.md"
NETWORK_TIMEOUT_S = 15

Version = tuple[int, ...]


def template_status(*, project: Path = Path(".")) -> int:
    """Say how far the template is ahead of this project, and what the last update brought.

    Args:
        project: the root folder of the project
    """
    if not (project / ANSWERS).is_file():
        raise UserError(
            got=f"no {ANSWERS} in {project.resolve()}",
            expected="a project made by `copier copy`",
            do="run the command in the project's root folder, or name that folder",
        )
    answers = (project / ANSWERS).read_text("utf-8")
    current, previous = answer(answers, "_commit"), previous_commit(project, answers)
    print(f"template: {answer(answers, '_src_path')}")
    print(f"version:  {current or 'unknown (made from a folder that is not a git repository)'}")
    print(f"behind:   {behind(answer(answers, '_src_path'), parse(current))}")
    if previous and previous != current:
        print(f"\nThe last update went from {previous} to {current}:\n")
        notes = (project / NOTES).read_text("utf-8") if (project / NOTES).is_file() else ""
        print(crossed_notes(notes, parse(previous), parse(current)) or "(no notes for these)")
    if edited := edited_files(project):
        print("\nFiles of the template that differ from its last copy or update:")
        print("\n".join(f"  {name}" for name in edited))
    return Exit.DONE


def parse(version: str) -> Version:
    """`v1.2.0-3-gabc` -> (1, 2, 0): its release; () if there is none, as in a bare hash."""
    found = re.match(r"v?(\d+(?:\.\d+)+)", version)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def behind(source: str, current: Version) -> str:
    """Newer releases of the template, from the tags of its repository."""
    for short, address in (("gh:", "https://github.com/"), ("gl:", "https://gitlab.com/")):
        if source.startswith(short):
            source = address + source.removeprefix(short)
    listing = git(Path(), "ls-remote", "--tags", "--refs", "--", source)
    if listing is None:
        return "unknown (the template's repository did not answer)"
    tags = [line.rpartition("/")[2] for line in listing.splitlines()]
    newer = sorted(
        (v, t) for t in tags if re.fullmatch(r"v?\d+(\.\d+)+", t) and (v := parse(t)) > current
    )
    if not newer:
        return "no newer release"
    return (
        f"{len(newer)} newer, the last is {newer[-1][1]}: run `uvx copier update --skip-answered`"
    )


def crossed_notes(notes: str, after: Version, upto: Version) -> str:
    """The sections of the notes with after < version <= upto."""
    sections = re.split(r"^(?=## )", notes, flags=re.MULTILINE)[1:]
    return "".join(s for s in sections if after < parse(s.split(maxsplit=2)[1]) <= upto).strip()


def previous_commit(project: Path, answers: str) -> str:
    """The template version before the last update, committed or not; empty if there was none."""
    revisions = (git(project, "log", "--format=%H", "--", ANSWERS) or "").split()
    versions = [
        answer(git(project, "show", f"{r}:./{ANSWERS}") or "", "_commit") for r in revisions
    ]
    return next((v for v in versions if v and v != answer(answers, "_commit")), "")


def edited_files(project: Path) -> list[str]:
    """Template files changed since the commit that last wrote the answers file."""
    revisions = (git(project, "log", "--format=%H", "--", ANSWERS) or "").split()
    if not revisions:
        return []
    # The first revision of the answers file is the first render: nothing in it is the user's.
    template = set((git(project, "ls-tree", "-r", "--name-only", revisions[-1]) or "").splitlines())
    changed = git(project, "diff", "--name-only", "--relative", revisions[0]) or ""
    return [name for name in changed.splitlines() if name in template]


def git(project: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails, is missing or takes too long."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotepath=off", *arguments],
            cwd=project,
            capture_output=True,
            encoding="utf-8",
            timeout=NETWORK_TIMEOUT_S,
            env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
