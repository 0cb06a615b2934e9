"""Runs of an emitted project in object stores, which speak their protocols on this machine."""

from pathlib import Path

import pytest
from growing import grow, template_repository
from installed import uv
from updating import PINNED

pytestmark = pytest.mark.slow


def test_runs_in_buckets_lose_nothing(tmp_path: Path) -> None:
    template = template_repository(tmp_path / "flaxseed")
    project = grow(template, tmp_path / "acorn", vcs_ref=PINNED)
    servers = ["--extra", "gcs", "--extra", "s3", "--group", "buckets"]
    files = ["runtime/tests/test_buckets.py", "tests/test_llm_buckets.py"]
    said = uv(project, "run", *servers, "pytest", "-q", *(f"src/acorn/{name}" for name in files))
    assert "skipped" not in said, said
