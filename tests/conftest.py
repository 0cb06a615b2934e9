"""Template snapshots and renders that many tests share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from growing import asked, grow, template_repository
from link import snapshot
from pytest_copie.plugin import Copie

Render = Callable[..., Path]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree of the template, without history."""
    return snapshot(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template in git, releases tagged, the working tree as v999.0.0. Not to be changed."""
    return template_repository(tmp_path_factory.mktemp("repository") / "flaxseed")


@pytest.fixture(scope="session")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project for which Enter was pressed everywhere. Not to be changed."""
    return grow(template, tmp_path_factory.mktemp("project") / "acorn")


@pytest.fixture(scope="session")
def render(copie_session: Copie, template: Path) -> Render:
    """Render the template, or another one, into a new folder, by pytest-copie.

    It trusts every template, takes answers as defaults of the user, unknown ones too, and keeps
    an exception to itself. What is about trust, answers or updates therefore goes through `grow`.
    """

    def render(answers: Mapping[str, Any] | None = None, source: Path = template) -> Path:
        unknown = set(answers or {}) - set(asked())
        assert not unknown, f"answers to no question: {unknown}"
        result = copie_session.copy(extra_answers=dict(answers or {}), template_dir=source)
        if result.exception is not None:
            raise result.exception
        assert result.project_dir is not None
        return result.project_dir

    return render
