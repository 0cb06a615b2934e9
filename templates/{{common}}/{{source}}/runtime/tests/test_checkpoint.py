"""Damaged checkpoints are renamed and the one before is used; those of older code are read."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from ...errors import Exit, UserError
from ...run_config import RETIRED, identity
from .. import checkpoint
from .test_loop import config_of, draws, go
from .workloads import SamplerConfig


def largest(checkpoint: Path) -> Path:
    return max(
        (p for p in checkpoint.glob("state/**/*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "name", "says"),
    [
        (flip, None, "has SHA-256"),
        (truncate, None, "has SHA-256"),
        (Path.unlink, None, "is missing"),
        (flip, "manifest.json", "manifest.json"),
        (flip, "files-0.json", ""),
    ],
)
def test_damaged_newest_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage, name: str | None, says: str
) -> None:
    config = config_of(tmp_path, 14)
    go(config)
    newest = tmp_path / "checkpoints" / "00000014"
    damage(newest / name if name else largest(newest))
    with caplog.at_level(logging.WARNING):
        assert go(config_of(tmp_path, 16)) == Exit.DONE
    assert "00000014 is damaged" in caplog.text
    assert says in caplog.text
    names = sorted(p.name for p in newest.parent.iterdir())
    assert len([n for n in names if n.startswith("00000014.damaged-")]) == 1
    # Step 14 was done and saved again, and counts: keep_checkpoints is 2.
    assert [n for n in names if n.isdigit()] == ["00000014", "00000016"]
    assert len(draws(tmp_path)) == 16
    if name is None:
        go(config_of(tmp_path / "whole", 16))
        np.testing.assert_array_equal(draws(tmp_path), draws(tmp_path / "whole"))


def test_half_written_is_cleared(tmp_path: Path) -> None:
    go(config_of(tmp_path, 14))
    (tmp_path / "checkpoints" / "00000014" / "files-0.json").unlink()  # killed before the commit
    assert go(config_of(tmp_path, 15)) == Exit.DONE
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000014", "00000015"]
    assert len(draws(tmp_path)) == 15


@pytest.mark.parametrize(("keep", "left"), [(1, [20]), (3, [12, 16, 20]), (0, [4, 8, 12, 16, 20])])
def test_keeps_as_many_as_asked(tmp_path: Path, keep: int, left: list[int]) -> None:
    go(config_of(tmp_path, 20, keep_checkpoints=keep, save_every_steps=4))
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == left


@dataclasses.dataclass(frozen=True)
class GrownConfig(SamplerConfig):
    """The sampler's settings after a release that added one."""

    thinning: int = identity(1)


def grown(folder: Path, steps: int, thinning: int = 1) -> GrownConfig:
    return GrownConfig(run=config_of(folder, steps).run, thinning=thinning)


def test_checkpoint_older_than_a_setting_counts_as_its_default(tmp_path: Path) -> None:
    go(config_of(tmp_path, 5))
    with pytest.raises(UserError, match=r"got: +thinning=2\nexpected: thinning=1, as in"):
        go(grown(tmp_path, 9, thinning=2))
    # Of a new fact beside the configuration nobody knows what it was.
    assert go(grown(tmp_path, 9), identity={"corpus_sha256": "beef"}) == Exit.DONE
    with pytest.raises(UserError, match="corpus_sha256=dead"):
        go(grown(tmp_path, 12), identity={"corpus_sha256": "dead"})


def test_a_refusal_names_options_where_they_are_the_cure(tmp_path: Path) -> None:
    trained_on = {"corpus_sha256": "beef", "data.packing": "segments"}
    go(config_of(tmp_path, 5), identity=trained_on)
    with pytest.raises(UserError, match=r"run with --data.packing segments, or"):
        go(config_of(tmp_path, 9), identity=trained_on | {"data.packing": "documents"})
    with pytest.raises(UserError, match=r"run with the data and the code that it began with, or"):
        go(config_of(tmp_path, 9, seed=1), identity=trained_on | {"corpus_sha256": "dead"})


def test_setting_that_is_gone_is_refused_unless_retired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(grown(tmp_path, 5, thinning=2))
    with pytest.raises(UserError, match=r"thinning=gone.*RETIRED.*\nexpected: thinning=2"):
        go(config_of(tmp_path, 9))
    monkeypatch.setitem(RETIRED, "thinning", 1)
    refused = r"got: +thinning=1\nexpected: thinning=2.*\n.*run with the data and the code"
    with pytest.raises(UserError, match=refused):
        go(config_of(tmp_path, 9))
    monkeypatch.setitem(RETIRED, "thinning", 2)
    assert go(config_of(tmp_path, 9)) == Exit.DONE


def test_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        go(config_of(tmp_path, 5))
    with pytest.raises(UserError, match=r"00000005 in format 2\nexpected: format 1 or older"):
        go(config_of(tmp_path, 9))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000005"]
