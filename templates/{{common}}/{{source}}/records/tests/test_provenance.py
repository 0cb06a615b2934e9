"""Provenance follows the state of the code and names no machine."""

import ast
import json
import platform
import subprocess
from pathlib import Path

import pytest

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


SOURCES = {
    "workload.py": "from .config import C\nfrom .parts.step import f\n"
    "from .parts import more, settings\n",
    "config.py": "from .parts.settings import D\nC = 1\n",
    "parts/settings.py": "D = 1\n",
    "contract.py": "X = 1\n",
    "hub.py": "from .workload import f\n",
    "parts/__init__.py": "",
    "parts/step.py": "from ..runtime.loop import run\nfrom ..contract import X\n"
    "\ndef f(x):\n    return x\n",
    "parts/more.py": "import os\nimport PACKAGE.mine\nfrom PACKAGE.own import layers, NOTHING\n",
    "mine.py": "",
    "own/__init__.py": "NOTHING = None\n",
    "own/layers.py": "",
    "parts/unused.py": "Y = 2\n",
    "runtime/loop.py": "from ..parts.unused import Y\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("PACKAGE", tmp_path.name))
    return tmp_path


def test_sources_are_what_the_workload_imports_outside_of_the_rooms_of_every_kind(package):
    expected = ["contract.py", "mine.py", "own/__init__.py", "own/layers.py", "parts/__init__.py"]
    expected += ["parts/more.py", "parts/step.py", "workload.py"]
    assert list(provenance.sources(package)) == expected


@pytest.mark.parametrize(
    ("body", "same"),
    [
        ('    """Says."""\n    return x  # why\n', True),
        ("    return (\n        x\n    )\n", True),
        ('    return x\n    """Of nothing."""\n', True),
        ("    return -x\n", False),
        ("    return x or None\n", False),
        ('    return "x"\n', False),
        ("    return\n", False),
    ],
)
def test_code_counts_and_words_do_not(package, body, same):
    before = provenance.sources(package)
    step = package / "parts" / "step.py"
    step.write_text(step.read_text().replace("    return x\n", body))
    after = provenance.sources(package)
    assert [name for name in before if before[name] != after[name]] == (
        [] if same else ["parts/step.py"]
    )


def test_code_is_plain_in_the_same_way_in_every_python():
    """Python 3.12 shows empty fields in `ast.dump`, 3.13 leaves them out."""
    argument = ("arg", [("arg", "'x'")])
    function = [("name", "'f'"), ("args", ("arguments", [("args", [argument])]))]
    function += [("body", [("Return", [("value", ("Constant", [("value", "1")]))])])]
    plain = provenance._plain(ast.parse('def f(x):\n    """Says."""\n    return 1'))
    assert plain == ("Module", [("body", [("FunctionDef", function)])])


def test_words_for_where_code_comes_from():
    known = {"git_commit": "0123456789abcdef", "git_dirty": True, "template": "v1.0.0"}
    assert provenance.origin(known) == "git commit 0123456789ab with edits, template v1.0.0"
    assert provenance.origin({"git_commit": None, "template": None}) == "no git commit"
