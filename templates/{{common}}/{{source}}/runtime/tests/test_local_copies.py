"""Local copies of one process: from where a run goes on, and what makes them void."""

import dataclasses
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ...errors import UserError
from ...records.store import read_lines
from ...run_config import MeshConfig
from .. import local_copies
from ..checkpoint import Checkpoints
from ..sink import read_outputs
from ..tiers import Tiers
from .children import Child, steps_of
from .workloads import SamplerConfig, config_of, go

COPIED, SAVED, ENDED, STEPS = 25, 20, 27, 40  # the newest of each when a job breaks off, and all


def local_config(folder: Path, steps: int = STEPS, **run: object) -> SamplerConfig:
    options = {"save_every_steps": 10, "local_folder": "$DISK", "local_every_steps": 5}
    return config_of(folder, steps, **(options | run))


class Broken(Exception):
    """Breaks off a run in all processes at once."""


def break_off(config: SamplerConfig, at: int = ENDED) -> None:
    """Run until that step is done."""

    def batch(cursor: int) -> dict[str, jax.Array]:
        if cursor >= at:
            raise Broken
        return {}

    with pytest.raises(Broken):
        go(config, batch=batch)


@dataclasses.dataclass(frozen=True)
class Alone:
    """A run of this process alone, and its disk."""

    run_dir: Path
    disk: Path

    def config(self, steps: int = STEPS, **run: object) -> SamplerConfig:
        return local_config(self.run_dir, steps, **run)

    def draws(self) -> np.ndarray:
        return read_outputs(self.run_dir / "outputs")["draws"]


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    return Alone(tmp_path / "run", tmp_path / "disk")


def calm_draws(folder: Path) -> np.ndarray:
    """Of a run that nothing happens to."""
    go(config_of(folder / "calm", STEPS))
    return read_outputs(folder / "calm" / "outputs")["draws"]


def test_killed_after_a_copy_it_goes_on_from_there(alone: Alone, tmp_path: Path) -> None:
    def copies() -> list[str]:
        return sorted(path.parent.name for path in alone.disk.rglob("*.npz"))

    run_dir, devices = alone.run_dir, jax.device_count()
    child = Child(
        train_slowly, run_dir, log=tmp_path / "log", devices=devices, DISK=str(alone.disk)
    )
    child.wait_for(lambda: max(steps_of(run_dir), default=0) > 17)
    os.kill(child.process.pid, signal.SIGKILL)
    assert child.code() == -signal.SIGKILL
    assert int(max(copies())) >= 15
    assert not any((run_dir / "checkpoints").glob("[0-9]*"))
    go(local_config(run_dir, save_every_steps=0))
    assert begun(run_dir)[-1] >= 15
    assert steps_of(run_dir) == list(range(1, STEPS + 1))
    np.testing.assert_array_equal(alone.draws(), calm_draws(tmp_path))


def train_slowly(run_dir: Path) -> None:
    """Without checkpoints but the last."""

    def batch(cursor: int) -> dict[str, jax.Array]:
        signal.sigtimedwait([], 0.05)
        return {}

    go(local_config(run_dir, save_every_steps=0), batch=batch)


def begun(run_dir: Path) -> list[int]:
    return [row["first_step"] for row in read_lines(run_dir / "attempts.jsonl")]


def test_a_start_without_copies_makes_older_ones_void(alone: Alone) -> None:
    break_off(alone.config())
    with pytest.raises(UserError, match=r"run\.seed"):  # a start that is refused changes nothing
        go(alone.config(local_folder="", seed=3))
    break_off(alone.config(local_folder=""))
    go(alone.config())
    assert begun(alone.run_dir) == [0, SAVED, SAVED]


def test_copies_that_were_passed_over_stay_passed_over(alone: Alone) -> None:
    """A disk that comes back: what followed its copies was cut, and made anew."""
    break_off(alone.config())
    alone.disk.rename(alone.disk.with_name("away"))
    break_off(alone.config(local_every_steps=100), at=SAVED + 3)
    shutil.rmtree(alone.disk, ignore_errors=True)
    alone.disk.with_name("away").rename(alone.disk)
    go(alone.config())
    assert begun(alone.run_dir) == [0, SAVED, SAVED]
    assert steps_of(alone.run_dir) == list(range(1, STEPS + 1))
    np.testing.assert_array_equal(alone.draws(), calm_draws(alone.run_dir.parent))


def test_a_checkpoint_that_is_newer_comes_first(alone: Alone) -> None:
    break_off(alone.config(local_every_steps=25), at=37)
    go(alone.config())
    assert begun(alone.run_dir) == [0, 30]


def test_a_damaged_checkpoint_is_no_deleted_one(alone: Alone) -> None:
    break_off(alone.config())
    checkpoints = alone.run_dir / "checkpoints"
    (checkpoints / f"{SAVED:08d}").rename(checkpoints / f"{SAVED:08d}.damaged-1")
    go(alone.config())
    assert begun(alone.run_dir) == [0, COPIED]


def test_nothing_is_copied_while_steps_are_skipped() -> None:
    """The copy before may be what is wanted."""
    copied: list[int] = []
    tiers = object.__new__(Tiers)
    keep = SimpleNamespace(save=lambda step, *_: copied.append(step))
    tiers.__dict__ |= {"_copies": keep, "_one": threading.Lock()}
    for step, rotate in ((5, True), (10, False)):
        tiers.save(step, {}, {}, lambda: None, planned=False, copied=True, rotate=rotate)
    assert copied == [5]


def test_who_deletes_a_checkpoint_goes_back_to_the_one_before(alone: Alone) -> None:
    break_off(alone.config())
    (alone.run_dir / "checkpoints" / "00000007.damaged-1").mkdir()  # of long ago
    shutil.rmtree(alone.run_dir / "checkpoints" / f"{SAVED:08d}")
    go(alone.config())
    assert begun(alone.run_dir) == [0, SAVED - 10]


@pytest.mark.parametrize("last", [30, 28])
def test_the_last_step_from_copies_is_saved(
    alone: Alone, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint failed, or was never due."""
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError("No space left on device")

        save = Checkpoints.save

        def fails(self: Checkpoints, step: int, *args: object, **options: object) -> None:
            save(self, step, *args, **options)  # type: ignore[arg-type]
            if step == last:
                shutil.rmtree(alone.run_dir / "checkpoints" / f"{step:08d}", ignore_errors=True)
                patch.setattr(self, "_hash", full)

        patch.setattr(Checkpoints, "save", fails)
        with pytest.raises(UserError, match="could not be saved"):
            go(alone.config(last, local_every_steps=last))
    assert go(alone.config(last, local_every_steps=last)) == 0
    assert begun(alone.run_dir) == [0, last]
    assert (alone.run_dir / "checkpoints" / f"{last:08d}" / "files-0.json").exists()
    assert not [*alone.disk.iterdir()]


def test_a_stop_has_no_time_for_a_copy(alone: Alone) -> None:
    def batch(cursor: int) -> dict[str, jax.Array]:
        if cursor == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    assert go(alone.config(local_every_steps=1), batch=batch) == 42
    (copied,) = {int(path.parent.name) for path in alone.disk.rglob("*.npz")}
    assert copied == max(steps_of(alone.run_dir)) - 1


def test_runs_of_other_folders_keep_their_copies(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(alone.config())
    other = alone.run_dir.with_name("other")
    break_off(local_config(other))
    monkeypatch.setenv("HOME", str(alone.disk.parent))
    again = Path(f"{alone.run_dir}/../run")  # both folders by other names
    go(local_config(again, local_folder="~/disk"))
    assert begun(alone.run_dir) == [0, COPIED]


def test_a_copy_that_cannot_be_written_costs_a_warning(
    alone: Alone, caplog: pytest.LogCaptureFixture
) -> None:
    alone.disk.write_bytes(b"")  # a file where the folder should be made
    assert go(alone.config(12)) == 0
    assert "no local copy of step 5" in caplog.text
    assert str(alone.disk) in caplog.text


@pytest.mark.parametrize("folder", ["$NOWHERE/copies", "gs://bucket/copies"])
def test_a_folder_that_no_host_has_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UserError, match="each host"):
        go(local_config(tmp_path / "run", local_folder=folder))


def test_a_mirror_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--local-mirror without --local-folder"):
        go(local_config(tmp_path / "run", local_folder="", local_mirror=True))


def test_another_mesh_goes_on_from_the_checkpoint(alone: Alone) -> None:
    break_off(alone.config())
    break_off(dataclasses.replace(alone.config(), mesh=MeshConfig(data=1, tensor=8)), at=COPIED + 1)
    assert begun(alone.run_dir) == [0, SAVED]
    # What it copied of step COPIED is not mixed with what the other mesh had left there.
    go(alone.config())
    assert begun(alone.run_dir) == [0, SAVED, SAVED]


def test_bits_that_flip_are_seen(alone: Alone) -> None:
    break_off(alone.config())
    (path,) = alone.disk.rglob("*.npz")
    whole = path.read_bytes()
    copy = local_copies._read(path)
    was = {key: copy[key].tobytes() for key in copy.files}
    # Of the parts; and of the tables at the end that say what there is, every one.
    flips = [(at, at % 8) for at in range(0, len(whole), len(whole) // 40)]
    flips += [(len(whole) - back, bit) for back in range(1, 400) for bit in range(8)]
    for at, bit in flips:
        data = bytearray(whole)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        if copy := local_copies._read(path):  # what nothing reads, such as a date
            assert {key: copy[key].tobytes() for key in copy.files} == was, (at, bit)
