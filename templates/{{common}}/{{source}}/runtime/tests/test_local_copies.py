"""Local copies: what they hold, and from where a job goes on when some of them are gone."""

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ...errors import UserError
from ...records import store
from ...records.store import read_lines
from ...run_config import MeshConfig
from .. import local_copies
from ..checkpoint import Checkpoints
from ..distributed import barrier
from ..parts import array_of, names_of_parts, parts_of
from ..sharding import make_mesh
from ..sink import read_outputs
from ..start import start_processes
from .children import Child, start_job, steps_of
from .workloads import SamplerConfig, config_of, go

COPIED, SAVED, ENDED, STEPS = 25, 20, 27, 40  # the newest of each when a job breaks off, and all
PROCESSES = 4


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


@pytest.mark.parametrize("spec", [P(), P("data"), P(("data", "fsdp")), P(None, "fsdp")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8", "bool"])
def test_an_array_comes_back_from_its_parts(spec: P, dtype: str) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    values = np.arange(8 * 12).reshape(8, 12) % 7
    like = jax.ShapeDtypeStruct((8, 12), dtype, sharding=NamedSharding(mesh, spec))
    array = jax.device_put(values.astype(dtype), like.sharding)
    parts = parts_of(array, like)
    held = {str(place) for place in like.sharding.devices_indices_map((8, 12)).values()}
    assert len(parts) == len(held), "each part is kept once"
    back = array_of(parts, like)
    assert back.sharding == array.sharding
    np.testing.assert_array_equal(np.asarray(back), np.asarray(array))


def test_numbers_and_keys_come_back_and_copies_share_no_memory() -> None:
    mesh = make_mesh(MeshConfig())
    for spec, array in (
        (P(), jnp.float32(3.5)),
        (P(), jax.random.key(7)),
        (P("data"), jax.random.split(jax.random.key(7, impl="rbg"), 8)),
    ):
        like = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))
        array = jax.device_put(array, like.sharding)
        parts = parts_of(array, like)
        back = array_of(parts, like)
        assert (back.dtype, back.sharding) == (array.dtype, array.sharding)
        bits = (
            jax.random.key_data if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else jnp.asarray
        )
        np.testing.assert_array_equal(bits(back), bits(array))
        assert all(part.flags.owndata or part.base.flags.owndata for part in parts.values())


def test_parts_are_named_by_what_they_are() -> None:
    def names(spec: P, size: int = 8, **mesh: int) -> set[str]:
        sharding = NamedSharding(make_mesh(MeshConfig(**mesh)), spec)
        like = jax.ShapeDtypeStruct((size,), "float32", sharding=sharding)
        return {*names_of_parts({"w": like}).values()}

    assert names(P("data")) == names(P(("data", "fsdp")), data=2, fsdp=4)
    assert len({*names(P("data")), *names(P()), *names(P("data"), 16)}) == 3


def test_every_process_gets_its_parts_in_the_fewest_rounds() -> None:
    sources = {0: 1, 1: 1, 2: 1, 3: 0, 4: 3}
    rounds = local_copies._rounds(sources)
    assert sorted(pair for pairs in rounds for pair in pairs) == [(0, 3), (1, 0), (1, 2), (3, 4)]
    assert len(rounds) == 2
    for pairs in rounds:
        senders, takers = zip(*pairs, strict=True)
        assert len({*senders}) == len({*takers}) == len(pairs)


@pytest.mark.parametrize("disks", ["aabb", "abab", "abc", "aab", "aaaabbbbcccc"])
def test_a_neighbour_has_another_disk(monkeypatch: pytest.MonkeyPatch, disks: str) -> None:
    """Processes that share one lose it together."""
    monkeypatch.setattr(local_copies, "exchange", lambda name, own: dict(enumerate(disks)))
    copies = object.__new__(local_copies.LocalCopies)
    like = jax.ShapeDtypeStruct((8,), "f4", sharding=NamedSharding(make_mesh(MeshConfig()), P()))
    copies.__dict__ |= {"_abstract": {"w": like}, "_place": Path("disk"), "_process": 0}
    copies.__dict__["_names"] = dict(enumerate("abcdefghijkl"[: len(disks)]))
    found = copies._neighbours()
    assert {*found} == {*found.values()} == {*range(len(disks))}
    same = sum(disks[one] == disks[to] for one, to in found.items())
    assert same == (1 if disks == "aab" else 0), "two of three on one disk: one has no other"
    copies.__dict__["_names"] = dict.fromkeys(range(len(disks)), "replicas")
    assert copies._neighbours() == {}


# ---- a job of four hosts ----


def lose(*hosts: int) -> Callable[[Path], None]:
    def act(disks: Path) -> None:
        for host in hosts:
            shutil.rmtree(disks / str(host))

    return act


def damage(disks: Path) -> None:
    (own, _) = sorted((disks / "1").rglob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(own.read_bytes())
    data[len(data) // 2] ^= 1
    own.write_bytes(data)


def swap(disks: Path) -> None:
    for host in range(PROCESSES):
        (disks / str(host)).rename(disks / f"was-{host}")
    for host in range(PROCESSES):
        (disks / f"was-{host}").rename(disks / str((host + 1) % PROCESSES))


def forget(disks: Path) -> None:
    (disks.parent / "run" / local_copies.TOKEN).unlink()


# What has happened to the disks -> whether each host keeps its neighbour's copy too, and the step
# from which the job goes on.
CASES: list[tuple[str, Callable[[Path], None], bool, int]] = [
    ("nothing", lambda disks: None, False, COPIED),
    ("hosts in another order", swap, False, COPIED),
    ("one lost", lose(1), False, SAVED),
    ("one lost, mirrored", lose(1), True, COPIED),
    ("the first lost, mirrored", lose(0), True, COPIED),
    ("one damaged, mirrored", damage, True, COPIED),
    ("neighbours lost, mirrored", lose(1, 2), True, SAVED),
    ("all lost", lose(0, 1, 2), True, SAVED),
    ("of another run", forget, True, SAVED),
]


def try_cases(index: int, folder: Path) -> None:
    """Break off a run, and go on with it after each of CASES; notes from where, and the end."""
    os.environ["DISK"] = str(folder / "disks" / str(index))
    start_processes()
    found = {}
    for mirror in (False, True):
        config = local_config(folder / "run", local_mirror=mirror)
        break_off(config)
        barrier("broken off")
        if index == 0:
            for name in ("run", "disks"):
                shutil.move(folder / name, folder / f"kept-{name}")
        for name, act, with_mirror, _ in CASES:
            if with_mirror != mirror:
                continue
            if index == 0:
                for part in ("run", "disks"):
                    shutil.rmtree(folder / part, ignore_errors=True)
                    shutil.copytree(folder / f"kept-{part}", folder / part)
                act(folder / "disks")
            barrier(name)
            go(config)
            barrier(f"{name} has ended")
            if index == 0:
                draws = read_outputs(folder / "run" / "outputs")["draws"]
                left = [str(path) for path in (folder / "disks").rglob("*.npz")]
                first = begun(folder / "run")[-1]
                found[name] = {"first": first, "draws": draws.tolist(), "left": left}
        barrier("tried")
        if index == 0:
            for name in ("run", "disks"):
                shutil.rmtree(folder / name)
                shutil.rmtree(folder / f"kept-{name}")
        barrier("cleared")
    if index == 0:
        store.write_json(folder / "found.json", found)


def test_a_job_goes_on_from_local_copies_where_they_are_whole(tmp_path: Path) -> None:
    args = [(index, tmp_path) for index in range(PROCESSES)]
    job = start_job(try_cases, *args, folder=tmp_path, devices=1)
    codes = [child.code() for child in job]
    assert codes == [0] * PROCESSES, "\n".join(child.log.read_text() for child in job)
    found = store.read_json(tmp_path / "found.json")
    assert {name: each["first"] for name, each in found.items()} == {
        name: step for name, _, _, step in CASES
    }
    calm = calm_draws(tmp_path)
    for name, each in found.items():
        np.testing.assert_array_equal(np.asarray(each["draws"], np.float32), calm, err_msg=name)
        assert each["left"] == [], "a run that has ended needs no copies"


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


def test_who_deletes_a_checkpoint_goes_back_to_the_one_before(alone: Alone) -> None:
    break_off(alone.config())
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
    assert not [*alone.disk.rglob("*.npz")]


def test_a_stop_has_no_time_for_a_copy(alone: Alone) -> None:
    def batch(cursor: int) -> dict[str, jax.Array]:
        if cursor == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    assert go(alone.config(local_every_steps=1), batch=batch) == 42
    (copied,) = {int(path.parent.name) for path in alone.disk.rglob("*.npz")}
    assert copied == max(steps_of(alone.run_dir)) - 1


def test_runs_of_other_folders_keep_their_copies(alone: Alone) -> None:
    break_off(alone.config())
    other = alone.run_dir.with_name("other")
    break_off(local_config(other))
    go(local_config(Path(f"{alone.run_dir}/../run")))  # the same folder by another name
    assert begun(alone.run_dir) == [0, COPIED]


def test_a_copy_that_cannot_be_written_costs_a_warning(
    alone: Alone, caplog: pytest.LogCaptureFixture
) -> None:
    alone.disk.write_bytes(b"")  # a file where the folder should be made
    assert go(alone.config(12)) == 0
    assert "no local copy of step 5" in caplog.text


@pytest.mark.parametrize("folder", ["$NOWHERE/copies", "gs://bucket/copies"])
def test_a_folder_that_no_host_has_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UserError, match="each host"):
        go(local_config(tmp_path / "run", local_folder=folder))


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
    assert local_copies._read(path)
    # Of the parts, and of the tables that say where they are.
    for at in (*range(0, len(whole), len(whole) // 40), *range(len(whole) - 400, len(whole), 7)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        copy = local_copies._read(path)
        if copy:  # what nothing reads, such as a date
            kept = [copy[key].tobytes() for key in copy.files]
            path.write_bytes(whole)
            was = local_copies._read(path)
            assert kept == [was[key].tobytes() for key in was.files]
