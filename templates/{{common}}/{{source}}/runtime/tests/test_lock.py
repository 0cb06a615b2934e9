"""One run a folder: the second is refused with who holds it; a dead holder is in nobody's way."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from ...contract import Beat, State
from ...errors import Exit, UserError
from ...records.store import read_lines
from .. import lock
from .children import Child, steps_of, train_sampler
from .test_loop import config_of, go


def test_the_second_is_refused_and_the_first_keeps_all(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = Child(train_sampler, run_dir, 100_000, 5, 0.01, log=tmp_path / "first")
    first.wait_for(lambda: any(run_dir.glob("checkpoints/*/files-0.json")))
    second = Child(train_sampler, run_dir, 100_000, 5, log=tmp_path / "second")
    assert second.code() == Exit.USER, second.log.read_text()
    assert f"process {first.process.pid} on" in second.log.read_text()
    first.wait_for(lambda: steps_of(run_dir)[-1] > 20)
    first.process.kill()
    first.process.join()
    assert Child(train_sampler, run_dir, 60, 5, log=tmp_path / "third").code() == Exit.DONE
    assert steps_of(run_dir) == list(range(1, 61))


@pytest.fixture
def held_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the count of a holder on another machine; waiting takes no time."""
    monkeypatch.setattr(lock, "WATCH_S", 0.0)
    count_file = tmp_path / "lock.json"
    last = {"machine": "another", "holder": "process 7 on beta", "count": 3}
    count_file.write_text(json.dumps(last))
    return count_file


def test_a_holder_on_another_machine_that_counts_is_obeyed(
    tmp_path: Path, held_elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts(seconds: float) -> None:
        held_elsewhere.write_text(held_elsewhere.read_text().replace("3", "4"))

    monkeypatch.setattr(lock.time, "sleep", counts)
    with pytest.raises(UserError, match="process 7 on beta"), lock.only_run_in(tmp_path):
        pass
    assert json.loads(held_elsewhere.read_text())["count"] == 4


def test_a_holder_on_another_machine_that_counts_no_more_is_gone(
    tmp_path: Path, held_elsewhere: Path
) -> None:
    with lock.only_run_in(tmp_path):
        pass
    assert not held_elsewhere.exists()


def test_a_holder_that_died_on_this_machine_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = {"machine": lock._machine(), "holder": "process 7 here", "count": 3}
    (tmp_path / "lock.json").write_text(json.dumps(last))
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: pytest.fail("it waited"))
    with lock.only_run_in(tmp_path):
        pass


def test_of_two_on_machines_without_common_locks_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(lock, "COUNT_S", 0.01)
    monkeypatch.setattr(lock, "end_together", lambda code, reason: ended.set() or sys.exit(code))
    with lock.only_run_in(tmp_path):
        end_s = time.monotonic() + 10
        while not ended.wait(0.05):  # each may overwrite the other's for a while
            assert time.monotonic() < end_s
            (tmp_path / "lock.json").write_text(json.dumps({"token": "another", "count": 0}))
    assert "another" in (tmp_path / "lock.json").read_text(), "it belongs to the other one"


def cut_off(run_dir: Path) -> None:
    """A run whose folder another one takes at step 3, which it does not look at by itself."""
    lock.COUNT_S = 1000.0

    def taken(state: State, beat: Beat) -> dict[str, float]:
        while not (run_dir / "checkpoints" / "00000002" / "files-0.json").exists():
            time.sleep(0.01)
        (run_dir / "lock.json").write_text(json.dumps({"token": "another"}))
        return {}

    go(config_of(run_dir, 6, save_every_steps=2, eval_every_steps=3), evaluate=taken)


def test_a_holder_that_was_cut_off_commits_nothing_more(tmp_path: Path) -> None:
    child = Child(cut_off, tmp_path / "run", log=tmp_path / "log")
    assert child.code() == Exit.USER, child.log.read_text()
    assert "another process has taken" in child.log.read_text()
    assert [path.parent.name for path in tmp_path.rglob("files-0.json")] == ["00000002"]


def test_one_who_waits_gets_the_folder_when_the_holder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = {"machine": "another", "holder": "process 7 on beta", "count": 3}
    (tmp_path / "lock.json").write_text(json.dumps(last))
    waited: list[str] = []

    def counts_twice(seconds: float) -> None:
        if len(waited) < 2:
            count = {"count": 4 + len(waited)}
            (tmp_path / "lock.json").write_text(json.dumps(last | count))

    monkeypatch.setattr(lock.time, "sleep", counts_twice)
    with lock.held(tmp_path, tmp_path, waited.append) as confirm:
        assert waited == ["process 7 on beta"] * 2
        confirm()


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / "config.json.0a.part").write_text("{")
    with lock.only_run_in(tmp_path):
        assert not (tmp_path / "config.json.0a.part").exists()


def test_a_run_leaves_no_count_behind(tmp_path: Path) -> None:
    go(config_of(tmp_path, 3))
    assert not (tmp_path / "lock.json").exists()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 3
