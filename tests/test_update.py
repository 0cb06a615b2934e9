"""`copier update`: brings the template's changes, keeps the user's, never asks for trust.

Copier exits 0 and loses edits silently in some cases, so every test looks at the files themselves.
"""

import re
import tomllib
from pathlib import Path

import copier
import pytest
import yaml
from growing import commit_all, git, grow, releases, template_repository, tree
from link import ROOT
from updating import (
    MOVED_IN,
    NEWER,
    PINNED,
    adopt,
    answer_anew,
    documented,
    edit,
    follow,
    follow_releases,
    release_next,
    run_once,
    update,
)

MINE = "\n# my note, far from any change of the template\n"
MARKER = r"# --- .*below this line\.? ---"
# Every marked place, in the order of the file: a line of the template's above it, one of the user's
# below it.
MARKED = {
    "pyproject.toml": [
        ('    "its>=1",', '    "mine>=1",'),
        ('its = ["its>=1"]', 'mine = ["mine>=1"]'),
        ('Its = "https://example.org/its"', 'Mine = "https://example.org/mine"'),
        ('    "its-tool>=1",', '    "my-tool>=1",'),
        ("native-tls = true", 'exclude-newer-package = { mine = "2027-01-31T00:00:00Z" }'),
    ],
    ".gitignore": [("/its/", "/mine/")],
    ".dockerignore": [("its", "mine")],
    ".pre-commit-config.yaml": [("  - repo: meta # its", "  - repo: meta # mine")],
}


@pytest.fixture
def moving(tmp_path: Path) -> Path:
    """A template repository of this test's own, to release from."""
    return template_repository(tmp_path / "flaxseed")


def test_an_update_right_after_a_run_is_clean_and_keeps_every_edit(
    moving: Path, tmp_path: Path
) -> None:
    project = adopt(grow(moving, tmp_path / "p", vcs_ref=PINNED))
    run_once(project)
    edited = {
        "pyproject.toml": (
            "go below this line. ---\n]\n\n[project.opt",
            'go below this line. ---\n    "httpx>=0.28",\n]\n\n[project.opt',
        ),
        ".gitignore": (
            "# --- yours below this line ---\n",
            "# --- yours below this line ---\n/mine/\n",
        ),
    }
    for name, (old, new) in edited.items():
        edit(project / name, old, new)
    errors = project / "src" / "acorn" / "errors.py"
    errors.write_text(errors.read_text("utf-8") + MINE, "utf-8")
    (project / "src" / "acorn" / "mine.py").write_text("MINE = 1\n")
    commit_all(project, "My work")

    release_next(moving)
    update(project, NEWER)

    fresh = adopt(grow(moving, tmp_path / "fresh", vcs_ref=NEWER))
    ours, theirs = tree(project), tree(fresh)
    mine = {"uv.lock", "src/acorn/mine.py", "src/acorn/errors.py", *edited}
    assert {n: t for n, t in ours.items() if n not in mine} == {
        n: t for n, t in theirs.items() if n not in mine
    }
    assert ours["src/acorn/errors.py"] == theirs["src/acorn/errors.py"] + MINE.encode()
    for name, (old, new) in edited.items():
        assert ours[name].decode() == theirs[name].decode().replace(old, new)
    assert "1000.0.0" in (project / "docs" / "template-notes.md").read_text("utf-8")
    assert (project / "src" / "acorn" / "brand_new.py").is_file()
    for name in ("runs/demo/metrics.jsonl", "data/stdlib/manifest.json"):
        assert (project / name).read_text() == "written by a run\n"
    answers = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))
    assert answers["_commit"] == NEWER

    commit_all(project, "Update from the template")
    update(project, NEWER)
    assert not git(project, "status", "--porcelain"), "a second update changed something"


def test_both_sides_may_append_at_every_marked_place(moving: Path, tmp_path: Path) -> None:
    project = adopt(grow(moving, tmp_path / "p", vcs_ref=PINNED))
    found = {name for name, text in tree(project).items() if re.search(MARKER, text.decode())}
    assert found - {"README.md"} == set(MARKED)
    for name, lines in MARKED.items():
        source = next((moving / "templates" / "{{common}}").glob(f"{name}*"))
        for file in (project / name, source):
            parts = re.split(f"( *{MARKER}\n)", file.read_text("utf-8"))
            assert len(parts) == 2 * len(lines) + 1, f"{name} has another number of marked places"
            for i, (its, mine) in enumerate(lines):
                marker = parts[2 * i + 1]
                parts[2 * i + 1] = f"{its}\n{marker}" if file is source else f"{marker}{mine}\n"
            file.write_text("".join(parts), "utf-8")
    commit_all(project, "My lines")
    commit_all(moving, "Release", tag=NEWER)

    update(project, NEWER)

    for name, lines in MARKED.items():
        text = (project / name).read_text("utf-8")
        for its, mine in lines:
            assert re.search(f"^{re.escape(its)}\n *{MARKER}\n{re.escape(mine)}$", text, re.M), name
    tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    yaml.safe_load((project / ".pre-commit-config.yaml").read_text("utf-8"))


# Files of 0.1.0 that someone edited, and the rooms they stand in since 0.2.0.
EDITED = {
    "attention.py": "attention.py",
    "checkpoint.py": "runtime/checkpoint.py",
    "corpus.py": "text/corpus.py",
    "distributed.py": "runtime/distributed.py",
    "doctor.py": "commands/doctor.py",
    "model.py": "model.py",
    "optim.py": "training/optim.py",
    "plots.py": "records/plots.py",
    "sharding.py": "runtime/sharding.py",
    "telemetry.py": "records/telemetry.py",
    "template_status.py": "commands/template_status.py",
    "tests/test_optim.py": "training/tests/test_optim.py",
    "tokenizer.py": "text/tokenizer.py",
}
BEGINNING, PLAIN, ANY = "How to update", "If edits are gone", "How to update where the first commit"
ANY += " is not the copy alone"


def my_line(name: str, i: int) -> str:
    return f"# mine in {name}, line {i}"


def work_on(project: Path) -> None:
    """Edits at the end of files and between two of their functions; a module; a file deleted."""
    package = project / "src" / "acorn"
    for name in EDITED:
        text = (package / name).read_text("utf-8")
        head, between, tail = text.rpartition("\n\n\n")
        assert between
        text = f"{head}\n\n\n{my_line(name, 1)}\n\n\n{tail}\n\n{my_line(name, 2)}\n"
        (package / name).write_text(text, "utf-8")
    (package / "mine.py").write_text("from .loop import run\n\nMINE = run\n")
    with (project / ".gitignore").open("a") as file:
        file.write("/mine/\n")
    (project / "mine").mkdir()
    (project / "mine" / "large").write_text("not for git, and not ignored in the first commit")
    (package / "tests" / "test_mine.py").write_text("def test_mine() -> None:\n    pass\n")
    (package / "tests" / "test_hardware.py").unlink()
    edit(project / "pyproject.toml", "]\n\n[project.opt", '    "httpx>=0.28",\n]\n\n[project.opt')
    commit_all(project, "My work")


def update_plainly(project: Path) -> None:
    """What the notes warn of; may leave conflicts in files that did not move."""
    copier.run_update(
        str(project), vcs_ref=PINNED, defaults=True, overwrite=True, quiet=True, unsafe=False
    )


def begun_at(repository: Path, project: Path, case: str) -> list[str]:
    """A project of release 0.1.0 with work in it, and the documented commands of its case."""
    grow(repository, project, vcs_ref="v0.1.0")
    if case == "a first commit with work in it, other answers since":
        git(project, "init", "--quiet")
        work_on(project)
        run_once(project)
        answer_anew(project, description="Another sentence")
        commit_all(project, "Another description")
        return documented(ANY)
    adopt(project)
    run_once(project)
    work_on(project)
    if case == "updated the plain way":
        update_plainly(project)
        commit_all(project, "Update from the template")
        assert "mine in" not in (project / "src/acorn/text/corpus.py").read_text("utf-8")
        return documented(PLAIN)[1:] + documented(BEGINNING)
    if case == "the plain way, not committed":
        update_plainly(project)
        return documented(PLAIN)[:1] + documented(BEGINNING)
    return documented(BEGINNING)


@pytest.mark.parametrize(
    "case",
    [
        "a first commit with the copy alone",
        "a first commit with work in it, other answers since",
        "updated the plain way",
        "the plain way, not committed",
    ],
)
def test_a_release_that_moves_files_keeps_every_edit(
    repository: Path, tmp_path: Path, case: str
) -> None:
    project = tmp_path / "p"
    follow(begun_at(repository, project, case), project)
    check_edits(project, MOVED_IN)
    conflicts = set(git(project, "diff", "--name-only", "--diff-filter=U").split())
    deleted = "records/tests/test_hardware.py"  # here; moved there
    assert conflicts <= {f"src/acorn/{name}" for name in (*EDITED.values(), deleted)}
    assert len(conflicts) - 1 <= len(EDITED) // 2, "most edits are far from any change"
    for name in conflicts:  # both sides of each
        if (project / name).exists():
            text = (project / name).read_text("utf-8")
            (project / name).write_text(re.sub(r"^[<=>]{7}.*\n", "", text, flags=re.M), "utf-8")
    commit_all(project, "Merge")

    update_plainly(project)  # to the working tree; edits that it changed too are conflicts
    check_edits(project, PINNED)


def check_edits(project: Path, version: str) -> None:
    package = project / "src" / "acorn"
    for old, new in EDITED.items():
        text = (package / new).read_text("utf-8")
        assert my_line(old, 1) in text, f"the first edit of {old} is not in {new}"
        assert my_line(old, 2) in text, f"the second edit of {old} is not in {new}"
        assert old == new or not (package / old).exists()
    added = {"src/acorn/mine.py", "src/acorn/tests/test_mine.py"}
    assert added <= set(git(project, "ls-files").split())
    assert "mine/large" not in git(project, "ls-files")
    assert "httpx" in (project / "pyproject.toml").read_text("utf-8")
    answers = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))
    assert answers["_commit"] == version


def test_a_plain_update_over_the_move_says_how_to_go_back(repository: Path, tmp_path: Path) -> None:
    project = adopt(grow(repository, tmp_path / "p", vcs_ref="v0.1.0"))
    told = follow([f"copier update --vcs-ref {PINNED} --defaults"], project)
    for command in (*documented(BEGINNING), *documented(PLAIN)[:1]):
        assert f"    {command}\n" in told, f"Copier does not show {command}"


def test_the_docs_give_the_same_commands() -> None:
    page = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert "\n".join(f"    {command}" for command in documented(BEGINNING)) in page


@pytest.mark.parametrize("version", releases())
def test_every_past_release_updates_to_this_tree(
    repository: Path, tmp_path: Path, version: str
) -> None:
    project = adopt(grow(repository, tmp_path / "p", vcs_ref=f"v{version}"))
    run_once(project)
    licence = project / "LICENSE"  # no release changes it, so that nothing can conflict
    licence.write_text(licence.read_text("utf-8") + MINE, "utf-8")
    commit_all(project, "My work")

    follow_releases(project, version)

    ours = tree(project)
    theirs = tree(adopt(grow(repository, tmp_path / "fresh", vcs_ref=PINNED)))
    assert ours.pop("uv.lock")
    assert ours.pop("LICENSE") == theirs.pop("LICENSE") + MINE.encode()
    assert ours == theirs


def test_answers_can_change_in_an_update(repository: Path, tmp_path: Path) -> None:
    project = adopt(grow(repository, tmp_path / "p", vcs_ref=PINNED))
    answer_anew(project, ci="gitlab")
    assert (project / ".gitlab-ci.yml").is_file()
    assert not (project / ".github").exists()
    commit_all(project, "To GitLab")
    fresh = adopt(grow(repository, tmp_path / "fresh", {"ci": "gitlab"}, vcs_ref=PINNED))
    assert tree(project) == tree(fresh)


@pytest.mark.parametrize("moved", [True, False], ids=["git mv first", "the answer alone"])
def test_a_package_is_renamed_as_the_docs_say(
    repository: Path, tmp_path: Path, moved: bool
) -> None:
    project = adopt(grow(repository, tmp_path / "p", vcs_ref=PINNED))
    errors = project / "src" / "acorn" / "errors.py"
    errors.write_text(errors.read_text("utf-8") + MINE, "utf-8")
    (errors.parent / "mine.py").write_text("MINE = 1\n")
    (errors.parent / "commands" / "bench.py").unlink()  # is there again afterwards
    commit_all(project, "My work")
    if moved:
        git(project, "mv", "src/acorn", "src/oak")
        commit_all(project, "Rename the package")
    answer_anew(project, package="oak")
    if not moved:  # why the docs ask for the move
        assert (project / "src" / "acorn" / "mine.py").is_file()
        assert MINE not in (project / "src" / "oak" / "errors.py").read_text("utf-8")
        return
    git(project, "checkout", "--ours", "--", "src/oak")
    commit_all(project, "Update from the template")
    ours = tree(project)
    theirs = tree(adopt(grow(repository, tmp_path / "q", {"package": "oak"}, vcs_ref=PINNED)))
    assert ours.pop("src/oak/mine.py")
    assert ours.pop("src/oak/errors.py") == theirs.pop("src/oak/errors.py") + MINE.encode()
    assert ours == theirs


def test_an_update_says_what_to_do_next(
    repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = {"accelerator": "cuda12"}
    project = adopt(grow(repository, tmp_path / "p", answers, vcs_ref=PINNED))
    copier.run_update(str(project), vcs_ref=PINNED, defaults=True, overwrite=True)
    told = capfd.readouterr().err
    assert "uv sync --extra cuda12 &&" in told, "a plain sync would drop CUDA"
    assert "uv run acorn template-status" in told
    assert "git reset" not in told, "no file moved since"


def test_an_untracked_lock_makes_copier_refuse_as_the_readme_says(
    repository: Path, tmp_path: Path
) -> None:
    project = adopt(grow(repository, tmp_path / "p", vcs_ref=PINNED))
    (project / "uv.lock").write_text("version = 1\n")
    with pytest.raises(copier.errors.UserMessageError, match="dirty"):
        copier.run_update(str(project), defaults=True, overwrite=True, quiet=True)
    assert "uv.lock" in (project / "README.md").read_text("utf-8")


def test_an_update_says_its_version_though_nothing_is_newer_and_skips_what_was_answered(
    moving: Path, tmp_path: Path
) -> None:
    project = adopt(grow(moving, tmp_path / "p", vcs_ref=PINNED))
    readme = (project / "README.md").read_text("utf-8")
    (command,) = set(re.findall(r"`(uvx copier update --.*?)`", readme))
    told = follow([f"{command} </dev/null"], project)  # a question would fail there
    assert f"Acorn follows version {PINNED} of the template" in told
