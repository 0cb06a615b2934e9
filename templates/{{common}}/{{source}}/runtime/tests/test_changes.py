"""A resume lists what it changes, and changed code wants a word of its owner."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ...errors import Exit, UserError
from ...records import provenance, store
from ...run_config import from_dict
from ..saved import find_saved
from .workloads import SamplerConfig, config_of, go

OLD, NEW = {"a.py": "1", "b.py": "2", "gone.py": "3"}, {"a.py": "1", "b.py": "4", "new.py": "5"}
FILES = "b.py, gone.py, new.py"


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the project is made of, as a run sees it: `sources`, and facts of its provenance."""
    now: dict[str, Any] = {"sources": OLD, "template": "v1.0.0", "git_commit": "0123456789abcd"}
    real = provenance.collect
    monkeypatch.setattr(provenance, "sources", lambda: now["sources"])
    monkeypatch.setattr(
        provenance,
        "collect",
        lambda: real() | {name: value for name, value in now.items() if name != "sources"},
    )
    return now


def changes(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "config.json").read_text())["changes"]


def test_changed_code_is_refused_until_it_is_accepted_once(
    tmp_path: Path, code: dict[str, Any]
) -> None:
    go(config_of(tmp_path, 5))
    code["sources"] = NEW
    refused = rf"got: .*step 5 with other code in {FILES}\nexpected: .*0123456789ab(.|\n)*"
    with pytest.raises(UserError, match=refused + "--accept-changed-code"):
        go(config_of(tmp_path, 9))
    assert go(config_of(tmp_path, 9, accept_changed_code=True)) == Exit.DONE
    steps, change = changes(tmp_path)
    assert steps["setting"] == "run.steps"
    assert (change["step"], change["setting"]) == (5, f"code of {FILES}")
    assert change["from"] != change["to"].split(",")[0]
    assert change["to"].endswith(", --accept-changed-code")
    assert FILES in (tmp_path / "report.html").read_text()
    # Read back from the folder, as `--run-dir` alone does, the settings accept no further change.
    stored = json.loads((tmp_path / "config.json").read_text())["config"]
    again = from_dict(SamplerConfig(), stored)
    again = dataclasses.replace(again, run=dataclasses.replace(again.run, steps=12))
    code["sources"] = OLD
    with pytest.raises(UserError, match="other code"):
        go(again)
    code["sources"] = NEW  # which is the code of the run now
    assert go(again) == Exit.DONE
    assert len(changes(tmp_path)) == 3


def test_code_that_an_update_of_the_template_brought_is_listed(
    tmp_path: Path, code: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    go(config_of(tmp_path, 5))
    code |= {"sources": NEW, "template": "v1.1.0"}
    with caplog.at_level(logging.INFO):
        assert go(config_of(tmp_path, 9)) == Exit.DONE
    assert changes(tmp_path)[1]["to"].endswith(", template v1.1.0")
    (said,) = [m for m in caplog.messages if m.startswith(f"from here on, code of {FILES} is ")]
    assert "keeps" not in said, "no option brings code back"
    code["sources"] = OLD  # and of one's own again
    with pytest.raises(UserError, match="other code"):
        go(config_of(tmp_path, 12))


def test_a_checkpoint_from_before_hashes_were_kept_goes_on(
    tmp_path: Path, code: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    code["sources"] = {}
    go(config_of(tmp_path, 5))
    code["sources"] = NEW
    assert go(config_of(tmp_path, 9)) == Exit.DONE
    find_saved(tmp_path, SamplerConfig())
    assert "code" not in "".join(f"{change}" for change in changes(tmp_path))
    assert "other code" not in caplog.text


def test_a_reader_warns_in_one_line(
    tmp_path: Path, code: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    go(config_of(tmp_path, 5))
    find_saved(tmp_path, SamplerConfig())
    assert "other code" not in caplog.text
    code["sources"] = NEW
    find_saved(tmp_path, SamplerConfig())
    (said,) = (r.getMessage() for r in caplog.records if "other code" in r.getMessage())
    assert said.endswith(FILES)


def test_nothing_is_refused_where_there_is_nothing_to_do(
    tmp_path: Path, code: dict[str, Any]
) -> None:
    go(config_of(tmp_path, 5))
    code["sources"] = NEW
    assert go(config_of(tmp_path, 5)) == Exit.DONE


def test_other_packages_are_listed_and_every_attempt_keeps_its_own(
    tmp_path: Path, code: dict[str, Any]
) -> None:
    code |= {"packages": {"jax": "1", "numpy": "2"}, "python": "3.12.1"}
    go(config_of(tmp_path, 5))
    code |= {
        "packages": {"jax": "1.1", "numpy": "2", "flax": "9"},
        "git_commit": "feedfacefeedface",
    }
    go(config_of(tmp_path, 5, log_every_steps=2))
    go(config_of(tmp_path, 9))
    assert changes(tmp_path)[1:] == [
        {"step": 5, "setting": "package jax", "from": "1", "to": "1.1"}
    ]
    rows = store.read_lines(tmp_path / "attempts.jsonl")
    assert [row["provenance"]["packages"]["jax"] for row in rows] == ["1", "1.1"]
    assert all(row["command"] for row in rows)
    page = (tmp_path / "report.html").read_text().partition("Provenance</summary>")[2]
    assert "git commit 0123456789ab" in page
    assert "packages.jax 1.1" in page
    assert "feedfacefeed" in page
