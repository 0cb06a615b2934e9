"""From where a job of several hosts goes on when some of their local copies are gone."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ...records import store
from ...run_config import MeshConfig
from .. import local_copies
from ..distributed import barrier
from ..sharding import make_mesh
from ..sink import read_outputs
from ..start import start_processes
from .children import start_job
from .test_local_copies import COPIED, SAVED, begun, break_off, calm_draws, local_config
from .workloads import go

PROCESSES = 4


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
