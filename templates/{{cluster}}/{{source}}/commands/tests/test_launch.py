"""`launch` prints what it would run, runs exactly what it prints, and sends nothing unasked."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ... import cli
from ...cluster.job import PACKAGE
from ...cluster.simulated import Outcome, Simulation
from ...cluster.tests.jobs import written
from ...errors import Exit, UserError

SENDS = {"gke": "kubectl", "slurm": "sbatch", "queued": "bash", "skypilot": "sky"}


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with commands that only write down how they were called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in SENDS.values():
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/called\nexit $CODE\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("CODE", "0")
    return tmp_path


def launched(folder: Path, *words: str, **changes: Any) -> int:
    if words[0] == "slurm":
        changes = {"accelerator": "h100", "topology": "2"} | changes
    if words[0] == "queued":
        changes = {"zone": "us-central2-b"} | changes
    return cli.run(["launch", *words, "--job", str(written(folder, **changes))])[0]


def called(folder: Path) -> list[str]:
    path = folder / "called"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("target", SENDS)
def test_what_is_printed_is_what_runs(
    cluster: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launched(cluster, target) == launched(cluster, target, "--dry-run") == Exit.DONE
    first, second = capsys.readouterr().out.split("# --apply runs:\n")[:2]
    assert not called(cluster)
    assert not (cluster / "build").exists()
    assert launched(cluster, target, "--apply") == Exit.DONE
    out = capsys.readouterr().out
    commands = out.split("# run:\n")[1]
    assert second.startswith(commands)
    assert called(cluster) == [
        line for line in commands.splitlines() if line.startswith(SENDS[target])
    ]
    (file,) = (cluster / "build" / "launch").iterdir()
    assert first.startswith(file.read_text())
    assert str(file.relative_to(cluster)) in commands


def test_the_file_goes_where_it_is_asked_to(cluster: Path) -> None:
    out = cluster / "my job.yaml"
    assert launched(cluster, "gke", "--out", str(out)) == Exit.DONE
    assert yaml.safe_load(out.read_text())["kind"] == "JobSet"
    assert not called(cluster)


def test_a_command_that_fails_or_is_missing(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CODE", "3")
    assert launched(cluster, "gke", "--apply") == Exit.USER
    assert (
        "kubectl create --validate=strict --filename build/launch/acorn.gke.yaml ended with 3"
        in (capsys.readouterr().err)
    )
    os.rename(cluster / "bin" / "kubectl", cluster / "bin" / "gone")
    monkeypatch.setenv("PATH", f"{cluster}/bin")
    assert launched(cluster, "gke", "--apply") == Exit.USER
    assert "no command kubectl" in capsys.readouterr().err
    assert len(called(cluster)) == 1


def test_what_is_refused_before_anything_runs(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = "REGION-docker.pkg.dev/PROJECT/REPOSITORY/acorn@sha256:" + "0" * 64
    assert launched(cluster, "gke", image=image) == Exit.DONE
    for words, changes, said in (
        (["gke", "--apply"], {"image": image}, "your own instead of the words in capitals"),
        (["gke", "--apply"], {"run_dir": "runs/a"}, "the disk of a host goes with it"),
        (["gke", "--apply", "--dry-run"], {}, "one of them"),
        (["slurm"], {"topology": "4x4", "accelerator": "v5e"}, "GPUs or cpu"),
    ):
        assert launched(cluster, *words, **changes) == Exit.USER
        assert said in capsys.readouterr().err
    assert launched(cluster, "gek") == Exit.USER
    assert not called(cluster)
    with pytest.raises(UserError, match="a job file in TOML"):
        cli.parse(["launch", "gke", "--job", str(cluster / "no.toml")])()


@pytest.mark.parametrize(
    ("called_as", "shown"),
    [
        ("acorn", "acorn"),
        ("{bin}/sbatch", "sbatch"),  # PATH has it
        ("/elsewhere/acorn", "/elsewhere/acorn"),
        ("/src/acorn/__main__.py", f"python -m {PACKAGE}"),
    ],
)
def test_local_is_simulated(
    cluster: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    called_as: str,
    shown: str,
) -> None:
    monkeypatch.setattr(sys, "argv", [called_as.format(bin=cluster / "bin")])
    assert launched(cluster, "local", run_dir="runs/a", image=None) == Exit.DONE
    assert f"\n{shown} simulate --job {cluster}/job.toml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("accelerator", "topology", "words", "devices"),
    [
        ("cpu", "3", [], [1, 1, 1]),
        ("cpu", "2", ["--devices-per-host", "4"], [4, 4]),
        ("v5e", "2x4", [], [8]),
    ],
)
def test_any_job_is_simulated_by_as_many_hosts(
    cluster: Path,
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str,
    topology: str,
    words: list[str],
    devices: list[int],
) -> None:
    found: list[int] = []

    def run(simulation: Simulation) -> Outcome:
        found.extend(pod.devices for pod in simulation._pods)
        return Outcome(0, "not run")

    monkeypatch.setattr(Simulation, "run", run)
    (cluster / "runs" / "simulated" / "simulated").mkdir(parents=True)
    job = written(cluster, accelerator=accelerator, topology=topology, image=None)
    assert cli.run(["simulate", "--job", str(job), *words])[0] == Exit.DONE
    assert found == devices
