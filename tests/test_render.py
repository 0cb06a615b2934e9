"""Every kind and option renders to a complete, clean project. Installs nothing."""

import ast
import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Render
from growing import (
    Answers,
    asked,
    choices,
    could,
    git,
    is_asked,
    layer_files,
    layers,
    pairs,
    pairwise,
    tree,
)
from link import destination

COVER = list(pairwise())
PARSERS: dict[str, Callable[[str], object]] = {
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".py": ast.parse,
}
PARSERS |= dict.fromkeys((".yml", ".yaml"), yaml.safe_load)


def read(file: Path) -> str:
    return file.read_bytes().decode("utf-8")


def emitted(project: Path) -> list[Path]:
    return [file for file in sorted(project.rglob("*")) if file.is_file()]


def tool(name: str) -> str:
    """A program of the environment that these tests run in."""
    return str(Path(sys.executable).parent / name)


def traces_of_jinja(project: Path) -> list[str]:
    """Where a tag of ours was left; an f-string's `{{` and GitHub's `${{` are none."""
    ours = re.compile(r"(?<!\$)\{\{\s*(" + "|".join(asked()) + r"|command|_copier)\b")
    tag = re.compile(r"(?<!\$)\{\{|\{%|\{#")
    own_answers = (
        ".copier-answers.yml",
        "pyproject.toml",
        "README.md",
        "AGENTS.md",
        "devcontainer.json",
    )
    return [
        f"{file.relative_to(project)}: {line}"
        for file in emitted(project)
        for line in read(file).splitlines()
        if (ours if file.suffix == ".py" or file.name in own_answers else tag).search(line)
    ]


def test_the_cover_holds_every_pair_of_values() -> None:
    usual = {name: choices(name)[0] for name in asked()}
    wanted = {
        frozenset({(a, x), (b, y)})
        for a, b in itertools.combinations(asked(), 2)
        for x in choices(a)
        for y in choices(b)
        if could(usual | {a: x, b: y}, a) and could(usual | {a: x, b: y}, b)
    }
    assert set().union(*map(pairs, COVER)) == wanted
    assert len(COVER) <= 40


def name_of(answers: Answers) -> str:
    words = [str(v) for n, v in answers.items() if "choices" in asked()[n]]
    return "-".join([*words, *["several"] * answers["several_hosts"]])


@pytest.fixture(scope="module", params=COVER, ids=name_of)
def grown(render: Render, request: pytest.FixtureRequest) -> tuple[Path, Answers]:
    """A project for one answer set of the cover."""
    return render(request.param), request.param


def test_every_file_parses_and_none_shows_a_tag(grown: tuple[Path, Answers]) -> None:
    project, _ = grown
    for file in emitted(project):
        PARSERS.get(file.suffix, str)(read(file))
        assert read(file).endswith("\n") or not read(file), f"{file.name} ends without a line break"
    assert traces_of_jinja(project) == []


def test_the_answers_are_kept(grown: tuple[Path, Answers], template: Path) -> None:
    project, answers = grown
    kept = yaml.safe_load(read(project / ".copier-answers.yml"))
    given = {name: value for name, value in answers.items() if is_asked(name, answers)}
    assert kept == {"_src_path": str(template)} | given


def test_the_emitted_python_is_clean(grown: tuple[Path, Answers]) -> None:
    project, _ = grown
    for command in (["format", "--check"], ["check"]):
        ruff = [tool("ruff"), *command, "--no-cache", "--quiet", "."]
        done = subprocess.run(ruff, cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_exactly_the_files_of_the_active_layers_are_emitted(grown: tuple[Path, Answers]) -> None:
    project, answers = grown
    licence = "LICENSE" if answers["licence"] != "proprietary" else ""
    expected = {
        str(destination(file, answers["package"]))
        .removesuffix(".jinja")
        .replace("{{licence_file}}", licence)
        for layer in layers(answers)
        for file in layer_files(layer)
    }
    found = {str(file.relative_to(project)) for file in emitted(project)}
    assert found == {name for name in expected if name} | {".copier-answers.yml"}


def test_each_option_brings_its_own_files_only(grown: tuple[Path, Answers]) -> None:
    project, answers = grown
    several = answers["kind"] == "tpu" or answers["several_hosts"]
    assert (project / "launch").exists() == several
    assert (project / ".github").exists() == (answers["ci"] == "github")
    assert (project / ".gitlab-ci.yml").exists() == (answers["ci"] == "gitlab")
    assert (project / "LICENSE").exists() == (answers["licence"] != "proprietary")
    dockerfile = read(project / "Dockerfile")
    wanted = answers["accelerator"]
    if several and wanted == "cpu":
        wanted = "tpu"  # the one of `launch/job.toml`
    assert f"ARG ACCELERATOR={wanted}\n" in dockerfile
    assert f"ARG STORE={'gcs' if several else ''}\n" in dockerfile
    users = re.findall(r"^USER (.*)", dockerfile, re.MULTILINE)
    assert users
    assert not users[-1].startswith(("0", "root"))


def test_two_layers_that_meet_share_no_path() -> None:
    for answers in COVER:
        for one, two in itertools.combinations(layers(answers), 2):
            shared = {f.relative_to(one) for f in layer_files(one)} & {
                f.relative_to(two) for f in layer_files(two)
            }
            assert not shared, f"{one.name} and {two.name} both emit {shared}"


def test_droppings_of_tools_are_not_emitted(template: Path, render: Render, tmp_path: Path) -> None:
    littered = shutil.copytree(template, tmp_path / "template")
    package = littered / "templates" / "{{common}}" / "{{source}}"
    litter = ("__pycache__/x", "x.pyc", ".DS_Store", ".ruff_cache/x", "~x")
    for name in litter:
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("x")
    project = render(source=littered)
    assert not [name for name in litter if (project / "src" / "acorn" / name).exists()]


def test_rendering_is_deterministic(render: Render) -> None:
    one, two = render(), render()
    for project in (one, two):
        git(project, "init", "--quiet")
    assert tree(one) == tree(two)
    assert read(one / ".copier-answers.yml") == read(two / ".copier-answers.yml")


def test_a_copy_says_what_to_do_next(render: Render, capfd: pytest.CaptureFixture[str]) -> None:
    for accelerator, sync in {"cpu": "uv sync ", "tpu": "uv sync --extra tpu "}.items():
        project = render({"accelerator": accelerator})
        told = capfd.readouterr().err
        assert "uv run acorn train" in told
        assert sync in told
        assert str(project) in told


def test_workflows_container_and_renovate_pass_their_linters(render: Render) -> None:
    hub = render({"ci": "github"})
    lab = render({"ci": "gitlab", "accelerator": "cuda12"})
    audit = ["--offline", "--quiet", "--persona", "pedantic", "--min-severity", "low"]
    schema: list[str | Path] = [tool("check-jsonschema"), "--builtin-schema"]
    commands: list[list[str | Path]] = [
        [tool("zizmor"), *audit, hub / ".github"],
        [*schema, "vendor.github-workflows", *(hub / ".github" / "workflows").iterdir()],
        [*schema, "vendor.gitlab-ci", lab / ".gitlab-ci.yml"],
        [*schema, "vendor.renovate", hub / "renovate.json", lab / "renovate.json"],
        [tool("hadolint"), "--failure-threshold", "info", hub / "Dockerfile", lab / "Dockerfile"],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_actions_are_pinned_by_hash_and_permissions_start_at_none(project: Path) -> None:
    for file in (project / ".github" / "workflows").iterdir():
        used = re.findall(r"uses: *(.*)", read(file))
        assert used
        for action in used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
        assert yaml.safe_load(read(file))["permissions"] == {}


def test_gitlab_jobs_have_git(render: Render) -> None:
    config = yaml.safe_load(read(render({"ci": "gitlab"}) / ".gitlab-ci.yml"))
    for job in ("check", "test"):
        assert config[job]["image"] == "python:$PYTHON-bookworm", "a slim image has no git"


def test_the_image_takes_what_is_locked(project: Path) -> None:
    commands = re.findall(r"^RUN (.*?[^\\])$", read(project / "Dockerfile"), re.M | re.S)
    syncs = [command for command in commands if "uv sync" in command]
    assert len(syncs) == 2
    for command in syncs:
        assert "if [ -f uv.lock ]; then export UV_LOCKED=1; fi" in command
        assert command.endswith('--extra "$ACCELERATOR" ${STORE:+--extra "$STORE"}')


def test_the_file_map_names_every_module(grown: tuple[Path, Answers]) -> None:
    project, answers = grown
    table = read(project / "README.md").partition("## Files")[2].partition("\n## ")[0]
    named, alike = [], ["no room"]
    for first, second in re.findall(r"^\| ([^|]*) \| ([^|]*) \|$", table, re.MULTILINE):
        room = re.match(r"`(\w+/)`", first)  # its files are in the second cell
        files = re.findall(r"`(\w+\.py)`", second if room else first)
        named += [(room[1] if room else "") + name for name in files]
        if room and not files:  # a user adds files to it
            alike.append(room[1])
    package = project / "src" / answers["package"]
    modules = {file.relative_to(package).as_posix() for file in package.rglob("*.py")}
    unnamed = re.compile(r"(.*/)?tests/.*|(.*/)?__(init|main)__\.py|conftest\.py")
    modules = {m for m in modules if not (unnamed.fullmatch(m) or m.startswith(tuple(alike)))}
    assert sorted(named) == sorted(modules)


def test_renovate_leaves_alone_what_the_template_keeps(render: Render) -> None:
    for ci in choices("ci"):
        project = render({"ci": ci})
        (rule,) = json.loads(read(project / "renovate.json"))["packageRules"]
        assert rule["enabled"] is False
        pinned = [*project.glob(".github/workflows/*"), *project.glob(".gitlab-ci.yml")]
        pinned += [project / "Dockerfile", project / ".python-version"]
        assert set(rule["matchFileNames"]) == {str(f.relative_to(project)) for f in pinned}
