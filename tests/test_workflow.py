"""The emitted template-update workflow: its last step against a bare remote and a fake `gh`."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from growing import commit_all, git

# Notes its arguments; the file `opened` holds the head commits of the pull requests it knows.
GH = """#!/bin/sh
echo "$@" >> "$RUNNER_TEMP/calls"
case "$*" in
*headRefOid*) cat "$RUNNER_TEMP/opened" ;;
"pr list"*) wc -l < "$RUNNER_TEMP/opened" ;;
"pr create"*) git rev-parse HEAD > "$RUNNER_TEMP/opened" ;;
esac
"""


class Weeks:
    """A project's remote, where the step runs week after week."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder, self.script, self.remote = folder, script, folder / "remote.git"
        (folder / "gh").write_text(GH)
        (folder / "gh").chmod(0o755)
        (folder / "opened").touch()
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(self.remote))
        self.push("layers = 1\n", "main")

    def push(self, text: str, branch: str) -> None:
        """Someone commits to a branch of the remote."""
        work = self.folder / branch
        git(self.folder, "clone", "--quiet", str(self.remote), branch)
        if branch != "main":  # where a clone of an empty repository is
            git(work, "switch", "--quiet", branch)
        (work / "model.py").write_text(text)
        commit_all(work, "Mine")
        git(work, "push", "--quiet", "origin", branch)

    def update(self, text: str, lock: str = "success") -> str:
        """A week in which the template says `text`: the calls of `gh`."""
        work = self.folder / "main"
        git(work, "checkout", "--quiet", "--force", "main")
        if git(work, "branch", "--list", "template-update"):
            git(work, "branch", "--quiet", "-D", "template-update")
        git(work, "fetch", "--quiet")
        (work / "model.py").write_text(text)
        (self.folder / "calls").write_text("")
        environment = {"RUNNER_TEMP": str(self.folder), "LOCK": lock}
        environment["PATH"] = f"{self.folder}:{os.environ['PATH']}"
        command = ["bash", "-e", "-c", self.script]
        subprocess.run(command, cwd=work, env=os.environ | environment, check=True)
        return (self.folder / "calls").read_text()

    def pushed(self) -> str:
        return git(self.remote, "show", "template-update:model.py")


@pytest.fixture
def weeks(tmp_path: Path, project: Path) -> Weeks:
    workflow = project / ".github" / "workflows" / "template-update.yml"
    steps = yaml.safe_load(workflow.read_text("utf-8"))["jobs"]["update"]["steps"]
    with_token = [step["name"] for step in steps if "GH_TOKEN" in step.get("env", {})]
    assert with_token == ["Update", steps[-1]["name"]], "uv lock builds packages: no token there"
    return Weeks(tmp_path, steps[-1]["run"])


def test_an_update_is_opened_once_and_refreshed(weeks: Weeks) -> None:
    assert not weeks.update("layers = 1\n"), "nothing new, nothing to call"
    assert "pr create" in weeks.update("layers = 2\n")
    (weeks.folder / "opened").write_text("")
    assert "pr create" in weeks.update("layers = 2\n"), "pushed, but it could not be opened"
    assert "pr create" not in (calls := weeks.update("layers = 2\n"))
    assert "pr edit" not in calls
    assert "pr edit" in weeks.update("layers = 3\n", lock="failure")
    assert weeks.pushed() == "layers = 3\n"
    assert "`uv lock` failed" in (weeks.folder / "body.md").read_text()


def test_what_someone_pushed_to_the_branch_stays(weeks: Weeks) -> None:
    weeks.update("layers = 2\n")
    weeks.push("layers = 2 # settled\n", "template-update")
    assert "pr " not in weeks.update("layers = 3\n")
    assert weeks.pushed() == "layers = 2 # settled\n"
