"""Whatever stands in `workload.py`: killed, moved to other hosts and devices, it trains on alike.

A workload of your own is held to the same; `small.py` has the options that make it small.
"""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from .. import workload
from ..errors import Exit
from ..records.store import read_lines
from ..runtime.tests.children import Child, command, kill_thrice, optimised, start_job
from .small import JOB, write_text

# Sums in another order; the first steps of an optimizer may take the sign of small gradients.
CLOSE = 1e-3


def command_line(tmp_path: Path, name: str, options: str) -> list[str]:
    (tmp_path / "text").mkdir(exist_ok=True)
    text = write_text(tmp_path / "text")
    return f"{JOB} --data.paths {text} --run-dir {tmp_path / name} {options}".split()


def start(
    tmp_path: Path,
    name: str,
    options: str,
    hosts: int = 1,
    devices: int = 1,
    run: Callable[..., None] = command,
) -> list[Child]:
    argv = command_line(tmp_path, name, options)
    if hosts > 1:
        return start_job(run, *[tuple(argv)] * hosts, folder=tmp_path, devices=devices)
    return [Child(run, *argv, log=tmp_path / "log0", devices=devices)]


def train(tmp_path: Path, *args: Any, **kwargs: Any) -> None:
    children = start(tmp_path, *args, **kwargs)
    codes = [child.code() for child in children]
    assert codes == [Exit.DONE] * len(codes), "\n".join(c.log.read_text() for c in children)


def losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_lines(folder / "metrics.jsonl")}


def noting_batches(folder: str, *argv: str) -> None:
    """As `command`; a file for each batch, of what this host has of it."""
    make = workload.make_workload

    def noted(*args: Any) -> Any:
        made = make(*args)

        def batch(cursor: int) -> Any:
            found = made.batch(cursor)
            held = [
                (leaf.shape, [(shard.index, np.asarray(shard.data)) for shard in shards])
                for leaf in jax.tree.leaves(found)
                for shards in [leaf.addressable_shards]
            ]
            file = Path(folder) / f"{cursor}-{jax.process_index()}"
            file.with_suffix(".part").write_bytes(pickle.dumps(held))
            file.with_suffix(".part").rename(file)
            return found

        return replace(made, batch=batch)

    workload.make_workload = noted
    command(*argv)


def forget_batches(folder: Path, cursor: int) -> None:
    """Remove the notes of batches from a cursor on, which were made ahead and not trained on."""
    for file in folder.glob("*-[0-9]"):
        if int(file.name.split("-")[0]) >= cursor:
            file.unlink()


def batch_of(folder: Path, cursor: int) -> list[np.ndarray]:
    """A batch put together of what its hosts had, flat; every number is there."""
    whole: list[np.ndarray] = []
    for file in sorted(folder.glob(f"{cursor}-[0-9]")):
        for i, (shape, shards) in enumerate(pickle.loads(file.read_bytes())):
            if len(whole) <= i:
                whole.append(np.full(shape, np.nan))
            for index, data in shards:
                whole[i][index] = data
    assert whole
    assert not any(np.isnan(leaf).any() for leaf in whole)
    return [leaf.ravel() for leaf in whole]


def test_three_kills_change_no_bit(tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    begin = partial(start, tmp_path, run=optimised)  # as users' runs are compiled
    steps = 20 + kill_thrice(
        lambda: begin("killed", "--steps 10000 --save-every-steps 9")[0], run_dir
    )
    for name in ("killed", "calm"):
        train(tmp_path, name, f"--steps {steps}", run=optimised)
    assert losses(run_dir) == losses(tmp_path / "calm")
    assert list(losses(run_dir)) == list(range(1, steps + 1))


def test_other_hosts_and_devices_take_the_same_batches_and_train_on_alike(tmp_path: Path) -> None:
    size = "--data.batch-size 24"
    layouts = [(3, 2, "--mesh.fsdp 2"), (2, 4, "--mesh.fsdp 4"), (1, 1, "--mesh.fsdp 1")]
    for (hosts, devices, mesh), steps in zip(layouts, (4, 8, 12), strict=True):
        forget_batches(tmp_path, (steps - 4) * 24)
        noting = partial(noting_batches, str(tmp_path))
        options = f"--steps {steps} {mesh} {size}"
        train(tmp_path, "moved", options, hosts=hosts, devices=devices, run=noting)
    moved = [batch_of(tmp_path, step * 24) for step in range(12)]
    forget_batches(tmp_path, 0)
    train(tmp_path, "stayed", f"--steps 12 {size}", run=partial(noting_batches, str(tmp_path)))
    stayed = [batch_of(tmp_path, step * 24) for step in range(12)]
    jax.tree.map(np.testing.assert_array_equal, moved, stayed)
    assert any((a != b).any() for a, b in zip(moved[0], moved[1], strict=True))
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "stayed"), rel=CLOSE)


def test_two_hosts_stopped_and_started_change_no_bit(tmp_path: Path) -> None:
    two = {"hosts": 2, "devices": 2}
    for name, steps in (("parts", 5), ("parts", 9), ("whole", 9)):
        train(tmp_path, name, f"--steps {steps} --mesh.fsdp 2 --eval-every-steps 3", **two)
    parts, whole = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("parts", "whole"))
    timed = ("_per_s", "_ms", "_s")
    plain = lambda r: {k: v for k, v in r.items() if not k.endswith(timed)}  # noqa: E731
    assert {r["step"]: plain(r) for r in parts if r["step"] != 5} == {
        r["step"]: plain(r) for r in whole if r["step"] != 5
    }
