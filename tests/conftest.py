"""Template snapshots that many tests share. Grows nothing itself."""

from pathlib import Path

import pytest
from growing import grow, template_repository
from link import snapshot


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
