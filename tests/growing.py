"""How tests read the questionnaire, and grow projects through Copier, never with trust."""

import functools
import itertools
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import copier
import jinja2
import yaml
from link import ROOT, TEMPLATES, snapshot

Answers = dict[str, Any]

# One other good answer to each question without choices. A new question fails until it stands here.
OTHER_TEXT = {
    "project_name": 'Émile\'s 2nd "model" 🌱',
    "description": "Braces {{ here }}, a # hash, ${{ a.b }} and a back\\slash: all plain text.",
    "package": "other_name",
    "author_name": 'O"Brien & Sons',
    "author_email": "someone@example.org",
    "repository_url": "https://example.org/owner/name",
}


@functools.cache
def questionnaire() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "copier.yml").read_text("utf-8"))


def asked() -> dict[str, dict[str, Any]]:
    """The questions that a user sees."""
    return {
        name: question
        for name, question in questionnaire().items()
        if not name.startswith("_") and question.get("when") is not False
    }


def choices(name: str) -> list[Any]:
    """The values that a question takes: its choices, or empty/default and one other text."""
    question = asked()[name]
    if question["type"] == "bool":
        return [question["default"], not question["default"]]
    if "choices" in question:
        given = question["choices"]
        return list(given.values() if isinstance(given, dict) else given)
    default = question["default"]
    return [OTHER_TEXT[name]] if "{{" in default else [default, OTHER_TEXT[name]]


def pairwise() -> Iterator[Answers]:
    """Answer sets, few of them, that hold every pair of values of every two questions."""
    names = list(asked())
    rows = (dict(zip(names, row, strict=True)) for row in itertools.product(*map(choices, names)))
    every = [answers for answers in rows if all(map(functools.partial(could, answers), names))]
    missing = set().union(*map(pairs, every))
    while missing:
        best = max(every, key=lambda answers: len(missing & pairs(answers)))
        missing -= pairs(best)
        yield best


def is_asked(name: str, answers: Answers) -> bool:
    """Whether a question is asked, by the answers above it; Copier keeps no answer to another."""
    when = asked()[name].get("when", True)
    return when is True or jinja2.Template(when).render(answers) == "True"


def could(answers: Answers, name: str) -> bool:
    """Whether an answer could be given: that to a question that is not asked is its default."""
    return answers[name] == choices(name)[0] or is_asked(name, answers)


def pairs(answers: Answers) -> set[frozenset[tuple[str, Any]]]:
    return set(map(frozenset, itertools.combinations(answers.items(), 2)))


def layers(answers: Mapping[str, Any]) -> list[Path]:
    """The folders of templates/ that apply to complete answers."""
    environment = jinja2.Environment(autoescape=False)
    return [
        folder
        for folder in sorted(TEMPLATES.iterdir())
        if folder.is_dir()
        and environment.from_string(questionnaire()[folder.name.strip("{}")]["default"]).render(
            answers
        )
    ]


def layer_files(layer: Path) -> list[Path]:
    """What a layer holds, without caches."""
    return [f for f in sorted(layer.rglob("*")) if f.is_file() and "__pycache__" not in f.parts]


def grow(
    template: Path, into: Path, answers: Mapping[str, Any] | None = None, **options: Any
) -> Path:
    """Copy the template into a new folder, defaults for what is not answered."""
    unknown = set(answers or {}) - set(asked())
    assert not unknown, f"answers to no question: {unknown}"  # Copier would take them silently
    copier.run_copy(
        str(template),
        into,
        data=dict(answers or {}),
        defaults=True,
        quiet=True,
        unsafe=False,
        **options,
    )
    return into


def tree(project: Path) -> dict[str, bytes]:
    """Path -> content of every file that git would see, but for the answers file."""
    listing = git(project, "ls-files", "--cached", "--others", "--exclude-standard")
    names = set(listing.splitlines()) - {".copier-answers.yml"}
    return {name: (project / name).read_bytes() for name in names if (project / name).is_file()}


def git(folder: Path, *arguments: str) -> str:
    """Run git with a fixed identity, whatever this machine's configuration says."""
    fixed = [
        "user.name=t",
        "user.email=t@example.org",
        "commit.gpgsign=false",
        "core.quotepath=off",
    ]
    options = [option for setting in fixed for option in ("-c", setting)]
    done = subprocess.run(["git", *options, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def commit_all(folder: Path, message: str, tag: str | None = None) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    if tag:
        git(folder, "tag", tag)


def releases() -> dict[str, str]:
    """Version -> the commit that set it in pyproject.toml, oldest first; no `.dev` versions."""
    found: dict[str, str] = {}
    before = ""
    command = ["git", "log", "--reverse", "--format=%H", "--", "pyproject.toml"]
    log = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    for commit in log.stdout.split():  # nothing in a repository without a commit
        project = tomllib.loads(git(ROOT, "show", f"{commit}:pyproject.toml"))["project"]
        if project["version"] != before and re.fullmatch(r"[0-9.]+", project["version"]):
            found[project["version"]] = commit
        before = project["version"]
    return found


def template_repository(into: Path) -> Path:
    """A clone with its releases tagged, and the working tree on top as version 999.0.0."""
    if releases():
        git(ROOT, "clone", "--quiet", str(ROOT), str(into))
        for version, commit in releases().items():
            git(into, "tag", "--force", f"v{version}", commit)
        for entry in into.iterdir():
            if entry.name == ".git":
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    else:
        into.mkdir()
        git(into, "init", "--quiet")
    snapshot(into)
    commit_all(into, "the working tree", tag="v999.0.0")
    return into
