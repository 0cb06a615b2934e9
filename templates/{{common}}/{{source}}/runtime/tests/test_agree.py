"""What process 0 sees or fails at is the same in all; a last upload may fail where all is saved."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from ...errors import Exit
from ...records import objects, store
from ...records.mirror import Mirror
from .. import agree, shelf
from .workloads import config_of, go

WRITTEN = [f"state/ocdbt.process_{index}/d/0a" for index in range(2)]  # as Orbax names them


def in_job(monkeypatch: pytest.MonkeyPatch, process: int, said: dict[str, str]) -> None:
    """This process as one of a job whose store is `said`."""

    def exchange(name: str, text: str) -> dict[int, str]:
        if process == 0:
            said[name] = text
        return {0: said[name], process: text}

    monkeypatch.setattr(agree, "job", lambda: SimpleNamespace(client="any", process_id=process))
    monkeypatch.setattr(agree, "exchange", exchange)


@pytest.mark.parametrize(
    "error",
    [
        None,
        OSError(errno.ESTALE, "of the disk"),
        FileNotFoundError(errno.ENOENT, "gone"),
        OSError("of the store"),
        ValueError("no JSON"),
    ],
    ids=repr,
)
def test_all_have_what_process_0_has(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    said: dict[str, str] = {}

    def make() -> dict[str, int]:
        if error is not None:
            raise error
        return {"a": 1}

    def seen(process: int, make: Callable[[], Any]) -> object:
        in_job(monkeypatch, process, said)
        try:
            return agree.from_first("name", make)
        except (OSError, ValueError) as found:
            return type(found), getattr(found, "errno", None), str(found)

    first = seen(0, make)
    assert seen(1, lambda: pytest.fail("process 1 looked for itself")) == first
    if error is None:
        assert first == {"a": 1}
    else:
        assert first[0] is type(error)
        assert str(error) in first[2]


def test_one_process_lists_a_bucket_and_each_commits_what_it_wrote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: dict[str, str] = {}
    files = {name: f"md5Hash {name}" for name in ("manifest.json", "files-0.json", *WRITTEN)}
    folder = store.place("gs://bucket/run/checkpoints")
    bucket = shelf.Shelf(folder, folder)
    found: dict[int, dict[str, str]] = {}
    for process in range(2):
        in_job(monkeypatch, process, said)
        monkeypatch.setattr(jax, "process_index", lambda index=process: index)
        listed = (lambda path: files) if process == 0 else (lambda path: pytest.fail("it asked"))
        monkeypatch.setattr(objects, "found", listed)
        assert bucket.asks_others
        found[process] = bucket.hash("00000001", bucket.written("00000001"), "save 1")
    assert set(found[0]) == {"manifest.json", WRITTEN[0]}
    assert found[1] == {WRITTEN[1]: files[WRITTEN[1]]}


def test_what_is_sent_after_the_last_save_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(*_: object) -> None:
        raise OSError(errno.EIO, "503")

    mirror = Mirror("s3://bucket/run")
    monkeypatch.setattr(mirror, "send", down)
    with caplog.at_level(logging.WARNING):
        mirror.send_rest(required=False)  # a run that was stopped has been saved: 42
    assert "503" in caplog.text
    with pytest.raises(OSError, match="503"):
        mirror.send_rest(required=True)


def test_a_run_that_is_not_done_does_not_need_its_last_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(Mirror, "fetch", lambda mirror: setattr(mirror, "is_current", True))
    monkeypatch.setattr(Mirror, "send_rest", lambda mirror, *, required: asked.append(required))
    assert go(config_of(tmp_path / "done", 2)) == Exit.DONE
    with pytest.raises(ZeroDivisionError):
        go(config_of(tmp_path / "broken", 2), evaluate=lambda state, beat: {"a": 1 / 0})
    assert asked == [True, False]


def test_a_call_is_tried_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, tries = [0.0], []

    def slow(*_: object) -> None:
        tries.append(now_s[0])
        now_s[0] += 20.0  # until the client gives up
        raise OSError("no route to the store")

    monkeypatch.setattr(objects, "_filesystem", lambda path: SimpleNamespace(cat_file=slow))
    monkeypatch.setattr(objects.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(objects.time, "sleep", lambda s: now_s.append(now_s.pop() + s))
    with pytest.raises(OSError, match="no route"):
        objects.read(store.place("s3://bucket/object"))
    assert len(tries) == 3
    assert tries[-1] <= objects.PATIENCE_S
