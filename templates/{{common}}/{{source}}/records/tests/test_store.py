"""A file appears whole or not at all; a kill during an append costs one line at most."""

import errno
import hashlib
import json
import subprocess
import sys
import threading

import pytest

from .. import store


def test_write_makes_folders_and_takes_bytes_text_or_a_function(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for content in (b"caf\xc3\xa9", "café", lambda file: file.write("café".encode())):
        path.unlink(missing_ok=True)
        store.write(path, content)
        assert store.read(path) == "café".encode()
        assert store.names(path.parent) == ["file"]


@pytest.mark.parametrize("sync", [True, False])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, sync):
    path = tmp_path / "file"
    store.write(path, "old")

    def fill(file):
        file.write(b"half of the n")
        assert store.read(path) == b"old"  # nothing is in its place before the end
        raise error

    for error in (OSError("No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            store.write(path, fill, sync=sync)
    assert store.read(path) == b"old"
    assert store.names(tmp_path) == ["file"]


def test_two_writers_of_one_file_do_not_share_a_half_of_it(tmp_path):
    def fill(file):
        file.write(b"one, ")
        store.write(tmp_path / "file", "the other")
        file.write(b"whole")

    store.write(tmp_path / "file", fill)
    assert store.read(tmp_path / "file") == b"one, whole"
    assert store.names(tmp_path) == ["file"]


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("process 7 on another", file=file, end="", flush=True)
print(flush=True)
time.sleep(600)
"""


class RefusedError(Exception):
    pass


def refuse(holder):
    raise RefusedError(holder)


def test_a_lock_says_who_holds_it_and_is_free_when_that_one_is_killed(tmp_path):
    path = tmp_path / "folder" / "lock"
    with store.locked(path, refuse):
        pass
    assert store.read(path) == b""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        for _ in range(2):
            with (
                pytest.raises(RefusedError, match="process 7 on another"),
                store.locked(path, refuse),
            ):
                pass
        with store.locked(path, lambda holder_says: holder.kill()):
            assert holder.wait() < 0
            assert b"process 7 on another" not in store.read(path)
            with pytest.raises(RefusedError, match=r"process \d+ on ."), store.locked(path, refuse):
                pass
    with pytest.raises(RefusedError), store.locked(path, refuse):
        raise RefusedError  # an error inside frees it too
    with store.locked(path, refuse):
        pass


def test_a_lock_whose_file_is_deleted_meanwhile_is_taken_anew(tmp_path):
    path, waits = tmp_path / "lock", threading.Event()

    def hold(held):
        with store.locked(path, refuse):
            held.set()
            waits.wait(60)
            path.unlink()

    held = threading.Event()
    holder = threading.Thread(target=hold, args=(held,))
    holder.start()
    held.wait(60)
    with (
        store.locked(path, lambda _: waits.set()),
        pytest.raises(RefusedError),
        store.locked(path, refuse),
    ):
        pass
    holder.join()


@pytest.mark.parametrize(("code", "goes_on"), [(errno.ENOSYS, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog, code, goes_on):
    def flock(file, how):
        raise OSError(code, "no")

    monkeypatch.setattr(store.fcntl, "flock", flock)
    try:
        with store.locked(tmp_path / "lock", refuse):
            assert goes_on
            assert "cannot be locked" in caplog.text
    except OSError:
        assert not goes_on


def test_sync_waits_for_the_disk_before_the_rename(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    monkeypatch.setattr(store.os, "fsync", lambda fd: seen.append(path.exists()))
    store.write(path, "x", sync=False)
    assert seen == []
    path.unlink()
    store.write(path, "x")
    assert seen == [False]


def test_json_and_lines_come_back(tmp_path):
    value = {"a": [1, 2.5, None], "b": {"c": "é"}}
    store.write_json(tmp_path / "x.json", value)
    assert store.read_json(tmp_path / "x.json") == value
    rows = [{"step": 1, "loss": 1 / 3}, {"step": 2}]
    store.write_lines(tmp_path / "x.jsonl", rows)
    store.append(tmp_path / "x.jsonl", json.dumps({"step": 3}))
    assert store.read_lines(tmp_path / "x.jsonl") == [*rows, {"step": 3}]
    assert store.read(tmp_path / "x.jsonl").count(b"\n") == 3
    assert store.read_lines(tmp_path / "missing.jsonl") == []
    with pytest.raises(OSError, match="missing"):
        store.read_json(tmp_path / "missing.json")


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b"\xff", b"[1]", b"7"])
def test_append_after_a_torn_line_keeps_both_sides(tmp_path, torn):
    path = tmp_path / "x.jsonl"
    store.append(path, '{"step": 1}')
    path.write_bytes(path.read_bytes() + torn)
    store.append(path, '{"step": 3}')
    assert store.read_lines(path) == [{"step": 1}, {"step": 3}]
    assert path.read_bytes() == b'{"step": 1}\n' + torn + b'\n{"step": 3}\n'


def test_names_rename_and_remove(tmp_path):
    assert store.names(tmp_path / "missing") == []
    for name in ("b", "a"):
        store.write(tmp_path / "folder" / name, name)
    assert store.names(tmp_path / "folder") == ["a", "b"]
    store.rename(tmp_path / "folder", tmp_path / "other")
    assert store.names(tmp_path) == ["other"]
    store.remove(tmp_path / "other" / "a")
    assert store.names(tmp_path / "other") == ["b"]
    store.remove(tmp_path / "other")
    store.remove(tmp_path / "other")
    assert store.names(tmp_path) == []


def test_sha256_is_that_of_the_content(tmp_path):
    content = bytes(range(256)) * 5000
    store.write(tmp_path / "file", content)
    assert store.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_plain_names_stay_in_their_folder(tmp_path):
    assert store.plain_name("heldout_loss-1.5é") == "heldout_loss-1.5é"
    assert "/" not in store.plain_name("../../etc/<passwd>\n")


def test_what_cannot_be_told_is_no_absence(tmp_path, monkeypatch):
    def broken(path, **_):
        raise OSError(errno.EIO, "Input/output error", str(path))

    assert not store.exists(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert not store.exists(tmp_path / "file" / "below")
    monkeypatch.setattr(type(tmp_path), "stat", broken)
    with pytest.raises(OSError, match="Input/output"):
        store.exists(tmp_path / "file")
