"""A run whose folder is in a bucket: killed, damaged, refused, without its store for a while."""

import contextlib
import errno
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from orbax.checkpoint.experimental.v1._src.saving import execution

from ...errors import Exit, UserError
from ...records import objects, store
from ...records.mirror import Mirror, local
from .. import agree, lock
from ..lock import only_run_in
from ..shelf import Shelf
from ..sink import read_outputs
from .buckets import bucket, variables
from .children import Child, start_two, steps_of, train_sampler

__all__ = ["bucket"]  # a fixture
STEPS = 30


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the copies of folders in buckets."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sampler_in(folder: Path, url: str, *options: object) -> None:
    """`train_sampler` as on a host of its own: from another working folder."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    lock.COUNT_S, lock.BUCKET_WATCH_S = 0.5, 3.0
    # Two hosts have the same paths on two disks. Here they are two paths on one.
    agree.check_same_place = lambda folder: None
    execution._check_directory_consistency = lambda path: None
    train_sampler(url, *options)


def begin(folder: Path, url: str, *options: object, name: str = "log") -> Child:
    log = folder.parent / f"{folder.name}-{name}"
    return Child(sampler_in, folder, url, *options, log=log, **variables())


def draws_of(url: str) -> np.ndarray:
    """Outputs of a run, read from the bucket alone."""
    mirror = Mirror(url, reader=True)
    mirror.fetch()
    return read_outputs(mirror.local / "outputs")["draws"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Outputs of a run on a disk that nothing disturbs."""
    folder = tmp_path_factory.mktemp("calm")
    child = Child(train_sampler, str(folder / "run"), STEPS, 5, log=folder / "log")
    assert child.code() == Exit.DONE, child.log.read_text()
    return read_outputs(folder / "run" / "outputs")["draws"]


def test_killed_and_gone_on_with_elsewhere_it_is_bit_equal(
    bucket: str, here: Path, calm: np.ndarray
) -> None:
    url, steps = f"{bucket}/killed/run", STEPS
    first = begin(here / "one", url, steps, 5, 0.05)
    copy = here / "one" / local(url)
    first.wait_for(lambda: max(steps_of(copy), default=0) > 12)
    first.process.kill()
    first.process.join()
    # The copy of the first host is not there, so that all comes from the bucket.
    again = begin(here / "two", url, steps, 5)
    assert again.code() == Exit.DONE, again.log.read_text()
    assert "resumed at step" in again.log.read_text()
    assert np.array_equal(draws_of(url), calm)
    found = objects.found(store.place(url))
    for name in ("config.json", "metrics.jsonl", "summary.json", "report.html"):
        assert name in found
    assert not [name for name in found if name.startswith("lock") or store.PART in name]
    assert steps_of(local(url, reader=True)) == list(range(1, steps + 1))
    done = begin(here / "three", url, steps, 5)
    assert done.code() == Exit.DONE
    assert "nothing to do" in done.log.read_text()


def test_a_damaged_object_is_set_aside_and_its_step_is_saved_again(
    bucket: str, here: Path, calm: np.ndarray
) -> None:
    url = f"{bucket}/damaged/run"
    assert begin(here / "one", url, 10, 5).code() == Exit.DONE
    newest = store.place(url) / "checkpoints" / "00000010"
    name = max(
        (n for n in objects.found(newest) if n.startswith("state/")),
        key=lambda n: len(objects.read(newest / n)),
    )
    content = bytearray(objects.read(newest / name))
    content[len(content) // 2] ^= 1
    objects.write(newest / name, bytes(content))
    again = begin(here / "two", url, 15, 5)
    assert again.code() == Exit.DONE, again.log.read_text()
    assert "is damaged" in again.log.read_text()
    assert "resumed at step 5" in again.log.read_text().replace("\n", " ")
    assert store.names(newest.parent) == ["00000010", "00000015"]
    assert np.array_equal(draws_of(url), calm[:15])


def test_a_second_start_is_refused_and_changes_nothing(bucket: str, here: Path) -> None:
    url = f"{bucket}/twice/run"
    first = begin(here / "one", url, 100_000, 0, 0.01)
    first.wait_for(lambda: len(steps_of(here / "one" / local(url))) > 3)
    second = begin(here / "two", url, 5, 5)
    assert second.code() == Exit.USER, second.log.read_text()
    assert "one run at a time" in second.log.read_text()
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.code() == Exit.PREEMPTED, first.log.read_text()
    assert not store.exists(store.place(url) / "lock.json")


def test_of_two_that_begin_at_once_one_holds_the_lock(
    bucket: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store.place(f"{bucket}/at-once/run")
    there: set[str] = set()

    def create(path: object, content: bytes) -> bool:  # the emulator of gs has no such condition
        is_new = str(path) not in there
        there.add(str(path))
        return is_new

    monkeypatch.setattr(objects, "create", create)
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_run_in(here / "one", url))
        store.remove(url / "lock.json")  # as if neither had seen the other's
        with pytest.raises(Exception, match="one run at a time"):
            stack.enter_context(only_run_in(here / "two", url))


def test_a_bucket_that_is_not_there_is_named(bucket: str, here: Path) -> None:
    child = begin(here / "one", f"{bucket}-of-nobody/run", 5, 5)
    assert child.code() == Exit.USER, child.log.read_text()
    assert "no such bucket" in child.log.read_text()
    assert "Traceback" not in child.log.read_text()


def test_objects_of_a_console_and_of_an_unanswered_call(bucket: str, here: Path) -> None:
    folder = store.place(f"{bucket}/marked")
    for name in ("", "sub/"):  # as "create folder" of a web console leaves them
        objects._filesystem(folder).pipe_file(f"{folder}/{name}", b"")
    store.write_json(folder / "config.json", {})
    assert list(objects.found(folder)) == ["config.json"]
    assert objects.names(folder) in (["config.json"], ["config.json", "sub"])
    assert objects.create(folder / "lock", b"ours")
    assert objects.create(folder / "lock", b"ours")  # the client asked again
    if bucket.startswith("s3:"):  # the emulator of gs has no such condition
        assert not objects.create(folder / "lock", b"theirs")


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (OSError("Forbidden: the account may not"), errno.EACCES),
        (type("NoCredentialsError", (Exception,), {})("none were found"), errno.EACCES),
        (OSError(errno.ENOSPC, "no room for the local copy"), errno.ENOSPC),
    ],
)
def test_what_another_try_cannot_change_is_raised_at_once(
    raised: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(objects, "_filesystem", lambda path: SimpleNamespace(cat_file=fail))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("tried again"))
    with pytest.raises(OSError, match=str(raised).split("] ")[-1]) as seen:
        objects.read(store.place("s3://bucket/object"))
    assert seen.value.errno == code


def test_a_checkpoint_of_another_kind_of_store_is_not_called_damaged(tmp_path: Path) -> None:
    store.write_json(tmp_path / "00000001" / "file", {})
    shelf = Shelf(tmp_path, tmp_path)
    with pytest.raises(UserError, match="another kind of store: md5Hash"):
        shelf.complaint("00000001", {"file": "md5Hash YQ=="}, shelf.listed("00000001"))
    bucket = store.place("gs://bucket/run/checkpoints")
    with pytest.raises(UserError, match="md5Hash, where crc32c can be had"):  # a composite upload
        Shelf(bucket, bucket).complaint("1", {"file": "md5Hash YQ=="}, {"file": "crc32c YQ=="})
    said = Shelf(bucket, bucket).complaint("1", {"file": "crc32c YQ=="}, {"file": "crc32c Yg=="})
    assert "expected crc32c YQ==" in str(said)


def test_two_processes_share_a_bucket_and_no_disk(
    bucket: str, here: Path, calm: np.ndarray
) -> None:
    url = f"{bucket}/two/run"
    args = [(here / f"host{i}", url, 10, 5) for i in range(2)]
    children = start_two(sampler_in, *args, folder=here, **variables())
    codes = [child.code() for child in children]
    assert codes == [Exit.DONE] * 2, "\n".join(child.log.read_text() for child in children)
    alone = begin(here / "alone", url, 15, 5)
    assert alone.code() == Exit.DONE, alone.log.read_text()
    assert "resumed at step 10" in alone.log.read_text()
    again = start_two(sampler_in, *[(a[0], url, 20, 5) for a in args], folder=here, **variables())
    codes = [child.code() for child in again]
    assert codes == [Exit.DONE] * 2, "\n".join(child.log.read_text() for child in again)
    assert np.array_equal(draws_of(url), calm[:20])


def test_a_store_that_answers_503_for_ten_seconds_is_waited_for(
    bucket: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.place(f"{bucket}/busy/object")
    store.write(path, "there")
    began_s, tries = time.monotonic(), []
    real = objects._filesystem(path).cat_file

    def busy(*args: object) -> bytes:
        tries.append(args)
        if time.monotonic() - began_s < 10:
            raise OSError("503 Service Unavailable")
        return real(*args)

    monkeypatch.setattr(objects._filesystem(path), "cat_file", busy, raising=False)
    assert store.read(path) == b"there"
    assert len(tries) == len([wait_s for wait_s in objects.RETRY_S if wait_s <= 8]) + 1
