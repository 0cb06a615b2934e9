"""A diffusion model's run, killed and resumed through the command line, bit for bit."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from .. import workload
from ..errors import Exit
from ..records.store import read_lines
from ..runtime.tests.children import Child, command, kill_thrice, optimised, start_two

TINY = (
    "train --data.batch-size 16 --model.width 16 --model.layers 2 --model.patch 4 "
    "--model.mlp-width 16 --model.scan-unroll 1 --model.registers 1 --model.dropout 0.1 "
    "--data.flip --data.augment 0.1 "
    "--data.dequantize --optim.horizon-steps 200 --ema.decays 0.9 --ema.power-stds 0.1 "
    "--sample.ema decay-0.9 --sample.sampler-steps 2 --sample.images 20 "
    "--log-every-steps 1 --eval-every-steps 0 --trackers tensorboard "
)
# Sums in another order; Adam's first steps take the sign of the smallest gradients.
CLOSE = 1e-3


def command_line(tmp_path: Path, name: str, options: str) -> list[str]:
    data = f"--data.prepared-dir {tmp_path.parent / 'digits'}"
    return f"{TINY} {data} --run-dir {tmp_path / name} {options}".split()


def start(
    tmp_path: Path, name: str, options: str, devices: int = 1, run: Callable[..., None] = command
) -> Child:
    argv = command_line(tmp_path, name, options)
    return Child(run, *argv, log=tmp_path / "log", devices=devices)


def unjudged(*argv: str) -> None:
    """As `command`, for a run whose losses alone are looked at."""
    workload.judge = lambda *_, **__: {}
    command(*argv)


def losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_lines(folder / "metrics.jsonl")}


def exported(tmp_path: Path, name: str, average: str) -> dict[str, np.ndarray]:
    """Parameters under the name of an average, as `export` writes them."""
    to = tmp_path / f"{name}-{average}"
    line = f"export --run-dir {tmp_path / name} --to {to} --ema {average}"
    child = Child(command, *line.split(), log=tmp_path / "log")
    assert child.code() == Exit.DONE, child.log.read_text()
    return load_file(to / "model.safetensors")


@pytest.mark.slow
def test_three_kills_change_no_bit(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "killed", tmp_path / "log"
    start_run = partial(start, tmp_path, run=optimised)  # as users' runs are compiled
    steps = 20 + kill_thrice(
        lambda: start_run("killed", "--steps 10000 --save-every-steps 9"), run_dir
    )
    assert start_run("killed", f"--steps {steps}").code() == Exit.DONE, log.read_text()
    assert start_run("calm", f"--steps {steps}").code() == Exit.DONE, log.read_text()
    assert losses(run_dir) == losses(tmp_path / "calm")
    assert list(losses(run_dir)) == list(range(1, steps + 1))
    for average in ("decay-0.9", "power-0.1", "raw"):
        mine, calm = exported(tmp_path, "killed", average), exported(tmp_path, "calm", average)
        for name, tensor in calm.items():
            np.testing.assert_array_equal(mine[name], tensor, err_msg=f"{average} {name}")
    for file in (tmp_path / "calm" / "artifacts").iterdir():
        assert (run_dir / "artifacts" / file.name).read_bytes() == file.read_bytes()
    mine, calm = (
        json.loads((d / "summary.json").read_text()) for d in (run_dir, tmp_path / "calm")
    )
    for name in ("samples", "bits_per_dimension"):
        assert mine[name] == calm[name]


@pytest.mark.slow
def test_eight_devices_then_one(tmp_path: Path) -> None:
    options = "--model.dropout 0"
    for devices, steps, mesh in (
        (8, 6, "--mesh.fsdp 2 --mesh.tensor 2"),
        (1, 12, "--mesh.fsdp 1 --mesh.tensor 1"),  # else that of the run's config.json
    ):
        child = start(tmp_path, "moved", f"--steps {steps} {mesh} {options}", devices, unjudged)
        assert child.code() == Exit.DONE, child.log.read_text()
    child = start(tmp_path, "stayed", f"--steps 12 {options}", run=unjudged)
    assert child.code() == Exit.DONE, child.log.read_text()
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "stayed"), rel=CLOSE)


@pytest.mark.slow
def test_two_processes_train_and_judge_as_one(tmp_path: Path) -> None:
    options = "--steps 8 --eval-every-steps 4 --mesh.fsdp 2 --model.dropout 0"
    argv = command_line(tmp_path, "two", options)
    pair = start_two(command, argv, argv, folder=tmp_path)
    codes = [child.code() for child in pair]
    assert codes == [Exit.DONE] * 2, "\n".join(child.log.read_text() for child in pair)
    alone = start(tmp_path, "one", options.replace("--mesh.fsdp 2", ""))
    assert alone.code() == Exit.DONE, alone.log.read_text()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=CLOSE)
    two, one = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("two", "one"))
    assert two["heldout_loss"] == pytest.approx(one["heldout_loss"], rel=CLOSE)
    for name in ("heldout", "train"):
        assert two["bits_per_dimension"][name] == pytest.approx(
            one["bits_per_dimension"][name], rel=CLOSE
        )
    assert two["floor"] == one["floor"]
