"""Damaged checkpoints are renamed and the one before is used; those of older code are read."""

import dataclasses
import errno
import logging
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ...errors import Exit, UserError
from ...records import store
from ...run_config import RETIRED, identity
from .. import checkpoint
from ..sink import NpzFiles
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


def spoil_all(folder: Path) -> None:
    for path in (folder / "checkpoints").iterdir():
        flip(largest(path))


def drop_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def drop_all_but_summary(folder: Path) -> None:
    """As a run of release 0.2.0 whose checkpoints are gone."""
    drop_checkpoints(folder)
    (folder / "checkpoints.json").unlink()


def drop_summary_and_spoil_all(folder: Path) -> None:
    """As a run of release 0.2.0 that was stopped, and whose checkpoints are damaged."""
    spoil_all(folder)
    (folder / "checkpoints.json").unlink()
    (folder / "summary.json").unlink()


@pytest.mark.parametrize(
    "lose", [spoil_all, drop_checkpoints, drop_all_but_summary, drop_summary_and_spoil_all]
)
def test_a_run_whose_checkpoints_are_lost_does_not_begin_again(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    go(config_of(tmp_path, 14))
    lose(tmp_path)
    kept = [(tmp_path / name) for name in ("metrics.jsonl", "outputs/00000014-0.npz")]
    before = [path.read_bytes() for path in kept]
    for _ in range(2):  # the second start finds them set aside
        with pytest.raises(UserError, match=r"without a checkpoint that can be used"):
            go(config_of(tmp_path, 16))
    assert [path.read_bytes() for path in kept] == before


def test_a_run_that_was_killed_before_its_first_save_begins_again(tmp_path: Path) -> None:
    go(config_of(tmp_path, 14))
    drop_all_but_summary(tmp_path)
    (tmp_path / "summary.json").unlink()
    assert go(config_of(tmp_path, 3)) == Exit.DONE
    assert len(draws(tmp_path)) == 3


@pytest.mark.parametrize(
    ("reader", "number", "first"),  # the first read of a file that fails
    [
        ("sha256", errno.EIO, 1),
        ("read_json", errno.EMFILE, 1),
        ("read_json", errno.ESTALE, 2),  # of the manifest, whose content one look did not need
    ],
)
def test_what_cannot_be_read_for_a_moment_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, number: int, first: int
) -> None:
    go(config_of(tmp_path, 14))
    read, tries = getattr(store, reader), []

    def read_badly(path: Path) -> object:
        if "00000014" in path.parts:
            tries.append(path)
            if first <= tries.count(path) < first + failures:  # of each file
                raise OSError(number, "of the disk", str(path))
        return read(path)

    monkeypatch.setattr(store, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(store, reader, read_badly)
    failures = 99
    with pytest.raises(OSError, match="of the disk"):
        go(config_of(tmp_path, 16))
    tries.clear()
    failures = 2
    assert go(config_of(tmp_path, 16)) == Exit.DONE
    assert not list(tmp_path.glob("checkpoints/*damaged*"))


def test_a_file_that_no_list_names_is_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go(config_of(tmp_path, 14))
    (tmp_path / "checkpoints" / "00000014" / "state" / "mine").write_text("x")
    (tmp_path / "outputs" / "mine.txt").write_text("x")  # no file of the sink's: left alone
    (tmp_path / "outputs" / "00000099-0.npz").mkdir()
    (tmp_path / "checkpoints" / "00000007" / "state" / ".DS_Store").write_text("of a desktop")
    assert go(config_of(tmp_path, 16)) == Exit.DONE
    assert "mine is in no list" in caplog.text
    assert "DS_Store" not in caplog.text
    assert (tmp_path / "outputs" / "mine.txt").exists()


def test_a_checkpoint_waits_for_the_records_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = store.append

    def full(path: Path, line: str) -> None:
        if path.name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, "no space", str(path))
        append(path, line)

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", full)
        with pytest.raises(UserError, match=r"could not be saved: .*metrics\.jsonl"):
            go(config_of(tmp_path, 7))
    assert not list((tmp_path / "checkpoints").glob("*/files-0.json"))
    assert go(config_of(tmp_path, 7)) == Exit.DONE
    records = store.read_lines(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 8))


def test_a_save_deletes_only_what_it_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = tmp_path / "checkpoints" / "00000007" / "theirs"
    store.write(theirs, "x")

    def appears(cursor: int) -> dict:  # after the start has cleared what was not committed
        if cursor == 0:
            store.write(theirs, "x")
        return {}

    assert go(config_of(tmp_path, 14, keep_checkpoints=0), batch=appears) == Exit.DONE
    assert theirs.read_text() == "x"
    assert "00000007 was NOT saved: [Errno 17]" in caplog.text


@pytest.mark.parametrize("error", [TimeoutError(), MemoryError(), ValueError("\n"), OSError()])
def test_an_error_without_text_is_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(self: object) -> None:
        raise error

    monkeypatch.setattr(NpzFiles, "durable", refuse)
    with pytest.raises(UserError, match=r"the last checkpoint could not be saved: .+"):
        go(config_of(tmp_path, 5))


def test_a_thread_that_dies_is_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(NpzFiles, "durable", lambda self: sys.exit(3))
    with pytest.raises(UserError, match="did not come to its end"):
        go(config_of(tmp_path, 5))


def test_a_save_has_the_time_that_the_setting_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, context = [], checkpoint.ocp.Context

    def noted(**options: Any) -> Any:
        if "async_options" in options:
            seen.append(options["async_options"].timeout_secs)
        return context(**options)

    monkeypatch.setattr(checkpoint.ocp, "Context", noted)
    go(config_of(tmp_path, 5, save_timeout_s=7000.5))
    assert seen == [7001]


def test_half_written_is_cleared(tmp_path: Path) -> None:
    go(config_of(tmp_path, 14))
    (tmp_path / "checkpoints" / "00000014" / "files-0.json").unlink()  # killed before the commit
    assert go(config_of(tmp_path, 15)) == Exit.DONE
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000014", "00000015"]
    assert len(draws(tmp_path)) == 15


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
