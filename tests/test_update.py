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
from updating import NEWER, PINNED, adopt, answer_anew, edit, release_next, run_once, update

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


@pytest.mark.parametrize("version", releases())
def test_every_past_release_updates_to_this_tree(
    repository: Path, tmp_path: Path, version: str
) -> None:
    project = adopt(grow(repository, tmp_path / "p", vcs_ref=f"v{version}"))
    run_once(project)
    readme = project / "README.md"
    readme.write_text(readme.read_text("utf-8") + MINE, "utf-8")
    commit_all(project, "My work")

    update(project, PINNED)

    ours = tree(project)
    theirs = tree(adopt(grow(repository, tmp_path / "fresh", vcs_ref=PINNED)))
    assert ours.pop("uv.lock")
    assert ours.pop("README.md") == theirs.pop("README.md") + MINE.encode()
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
    (errors.parent / "bench.py").unlink()  # is there again afterwards
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


def test_an_untracked_lock_makes_copier_refuse_as_the_readme_says(
    repository: Path, tmp_path: Path
) -> None:
    project = adopt(grow(repository, tmp_path / "p", vcs_ref=PINNED))
    (project / "uv.lock").write_text("version = 1\n")
    with pytest.raises(copier.errors.UserMessageError, match="dirty"):
        copier.run_update(str(project), defaults=True, overwrite=True, quiet=True)
    assert "uv.lock" in (project / "README.md").read_text("utf-8")
