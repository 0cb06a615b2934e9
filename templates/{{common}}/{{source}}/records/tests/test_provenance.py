"""Provenance follows the state of the code and names no machine."""

import json
import platform
import subprocess

from .. import provenance


def test_lower_bounds_are_read_from_the_metadata(monkeypatch):
    declared = [
        "jax>=0.11.1",
        "numpy<3,>=2.0",
        "rich",
        "wandb>=0.20; extra == 'wandb'",
        "tomli>=2; python_version < '3.11'",
    ]
    monkeypatch.setattr(provenance.metadata, "requires", lambda name: declared)
    assert provenance.requirements() == {"jax": "0.11.1", "numpy": "2.0", "rich": "", "tomli": "2"}


def test_provenance_follows_the_code(tmp_path, monkeypatch):
    def git(*command):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=tmp_path, check=True
        )

    package = tmp_path / "src" / "pkg" / "records"
    package.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    found = provenance.collect()
    assert (found["template"], found["git_commit"], found["git_dirty"]) == (None, None, None)

    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".copier-answers.yml").write_text(
        "# kept by Copier\n_commit: v0.3.1\n_src_path: /home/me\n"
    )
    git("init", "-q")
    git("commit", "-qm", "empty", "--allow-empty")
    assert provenance.collect()["git_commit"] is None  # a folder of somebody else's repository
    git("add", ".")
    git("commit", "-qm", "first")
    found = provenance.collect()
    assert (found["template"], len(found["git_commit"]), found["git_dirty"]) == (
        "v0.3.1",
        40,
        False,
    )
    (tmp_path / "new.py").touch()
    assert provenance.collect()["git_dirty"] is True
    text = json.dumps(found)
    assert found["packages"]["jax"]
    assert platform.node() not in text
    assert "/home/me" not in text
