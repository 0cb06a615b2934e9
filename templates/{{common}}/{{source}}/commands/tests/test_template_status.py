"""The version report, against a real git history of a project and of its template."""

import subprocess
from pathlib import Path

import pytest

from ...errors import UserError
from ..template_status import crossed_notes, parse, template_status

NOTES = "# Notes\n\n## 0.3.0\n\nthird\n\n## 0.2.0\n\nsecond\n\n## 0.1.0\n\nfirst\n"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def answers(project: Path, version: str, source: Path) -> None:
    (project / ".copier-answers.yml").write_text(f"_commit: {version}\n_src_path: {source}\n")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project rendered at v0.1.0 of a template that has v0.1.0, v0.2.0, v0.3.0 and v0.4.0."""
    template, made = tmp_path / "template", tmp_path / "project"
    for folder in (template, made / "docs"):
        folder.mkdir(parents=True)
    git(template, "init", "-q")
    git(template, "commit", "-q", "--allow-empty", "-m", "all releases")
    for tag in ("v0.1.0", "v0.2.0", "v0.3.0", "v0.4.0", "not-a-release"):
        git(template, "tag", tag)
    answers(made, "v0.1.0", template)
    (made / "model.py").write_text("layers = 1\n")
    (made / "docs" / "template-notes.md").write_text(NOTES)
    git(made, "init", "-q")
    git(made, "add", "-A")
    git(made, "commit", "-q", "-m", "copy")
    return made


def test_a_fresh_project_knows_how_far_it_is_behind(project, capsys) -> None:
    assert template_status(project=project) == 0
    told = capsys.readouterr().out
    assert "version:  v0.1.0" in told
    assert "3 newer, the last is v0.4.0" in told
    assert "last update" not in told
    assert "differ" not in told


@pytest.mark.parametrize("committed", [False, True])
def test_an_update_shows_exactly_the_notes_it_crossed(project, capsys, committed) -> None:
    answers(project, "v0.3.0", project.parent / "template")
    (project / "model.py").write_text("layers = 3\n")  # the template's change
    if committed:
        git(project, "commit", "-q", "-am", "update")
    template_status(project=project)
    told = capsys.readouterr().out
    assert "from v0.1.0 to v0.3.0" in told
    assert "third" in told
    assert "second" in told
    assert "first" not in told
    assert ("differ" in told) is not committed


def test_names_the_template_files_that_the_user_edited(project, capsys) -> None:
    (project / "model.py").write_text("layers = 2\n")
    (project / "mine.py").write_text("")
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "mine")
    template_status(project=project)
    told = capsys.readouterr().out
    assert "model.py" in told
    assert "mine.py" not in told


def test_a_template_out_of_reach_is_no_error(project, capsys) -> None:
    answers(project, "v0.1.0", project / "gone")
    assert template_status(project=project) == 0
    assert "did not answer" in capsys.readouterr().out


def test_a_folder_that_is_no_project_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="copier copy"):
        template_status(project=tmp_path)


def test_versions_and_notes() -> None:
    assert parse("v1.10.0-3-gdeadbee") == parse("1.10.0") > parse("v1.9.7")
    assert parse("1234567") == ()
    assert crossed_notes(NOTES, (0, 3, 0), (0, 3, 0)) == ""
