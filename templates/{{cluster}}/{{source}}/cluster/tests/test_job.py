"""A job file is read whole, or refused with the key that is wrong and what it should be."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ...errors import UserError
from ..job import Job, read_job, takes_run_dir
from ..rendered import render
from ..targets import UNUSED, check_filled, check_target
from .jobs import IMAGE, job_of

EMITTED = Path(__file__).parents[4] / "launch" / "job.toml"


def test_what_is_read(tmp_path: Path) -> None:
    env = {"A": "it's 1e3", "B": ""}
    job = job_of(tmp_path, slices=2, spot=True, env=env, command="train demo --local-folder 'a b'")
    assert job.command == ("train", "demo", "--local-folder", "a b")
    assert job.arguments[-2:] == ["--run-dir", "gs://acme/runs/acorn"]
    assert (job.slices, job.spot, job.hosts, job.slice.chips) == (2, True, 4, 16)
    assert job.env == env
    assert job_of(tmp_path, accelerator="cpu", topology="3").hosts == 3
    assert job_of(tmp_path, health_check=True).arguments[:3] == ["health", "--", "train"]


@pytest.mark.parametrize(
    ("command", "expected"), [("bench", True), ("report", True), ("doctor", False), ("plan", True)]
)
def test_a_run_folder_is_for_commands_that_take_one(
    tmp_path: Path, command: str, expected: bool
) -> None:
    assert ("--run-dir" in job_of(tmp_path, command=command).arguments) is expected
    assert takes_run_dir(["health", "--", command]) is expected
    assert not takes_run_dir(["health"])


@pytest.mark.parametrize(
    ("changes", "backends"),
    [
        ({}, "tpu,cpu"),
        ({"accelerator": "h100", "topology": "2"}, "cuda,cpu"),
        ({"accelerator": "cpu", "topology": "2"}, "cpu"),
        ({"env": {"JAX_PLATFORMS": "proxy"}}, "proxy"),
    ],
)
def test_a_missing_backend_is_no_run_on_the_cpu(
    tmp_path: Path, changes: dict[str, Any], backends: str
) -> None:
    assert job_of(tmp_path, **changes).environ == {"JAX_PLATFORMS": backends}


def test_a_command_is_read_as_the_console_script_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    job_of(tmp_path, command="train demo --config elsewhere.json")  # a file that the hosts have
    for command, words in {
        "train demo --sede 3": "options of `train`: .*--sede",
        "train --help": "a command that does something",
        "train dmeo": r".*did you mean demo\?\) instead of preset 'dmeo'",
    }.items():
        with pytest.raises(UserError, match=rf"command = .*\nexpected: {words}"):
            job_of(tmp_path, command=command)
    assert capsys.readouterr() == ("", "")
    assert not caplog.text, "settings, as if it began"


def test_the_emitted_file_is_a_job_that_only_lacks_your_names(tmp_path: Path) -> None:
    job = read_job(EMITTED)
    check_target(job, "gke")
    with pytest.raises(UserError, match=r"--apply: (run_dir|image)"):
        check_filled(job)
    for value in (
        {"command": "train --local-folder /mnt/BUCKET/x"},
        {"env": {"A": "PROJECT"}},
    ):
        with pytest.raises(UserError, match=rf"--apply: {next(iter(value))}"):
            check_filled(job_of(tmp_path, **value))
    check_filled(job_of(tmp_path))
    keys = set(re.findall(r"^(?:# )?(\w+) = ", EMITTED.read_text("utf-8"), re.MULTILINE))
    assert keys - {f.name for f in fields(Job)} == {"JAX_COMPILATION_CACHE_DIR"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"retires": 3}, r"retires = 3\nexpected: a key such as retries"),
        ({"name": None}, r"no name\nexpected: this key"),
        ({"name": "Acorn_1"}, "lower-case letters"),
        ({"name": "acorn\nx"}, "lower-case letters"),
        ({"name": "a" * 48, "slices": 10}, r"1 letters less: pods are called a+-slice-9-3-xxxxx"),
        ({"accelerator": "v5litepod"}, "write v5e"),
        ({"topology": "4x5"}, "4x4"),
        ({"accelerator": "cpu", "topology": "2x2"}, "a number of nodes"),
        ({"slices": 0}, "1 to 1024"),
        ({"slices": True}, "a whole number"),
        ({"slices": "2"}, "a whole number"),
        ({"spot": "yes"}, "true or false"),
        ({"spot": True, "reservation": "mine"}, "not both"),
        ({"retries": -1}, "0 to 10000"),
        ({"grace_s": 0}, "1 to 3600"),
        ({"image": "acorn:latest"}, "NAME@sha256:DIGEST, since a tag may move"),
        ({"image": IMAGE[:-1]}, "NAME@sha256:DIGEST"),
        ({"command": "tarin demo"}, "did you mean train"),
        ({"command": "train dmeo"}, "did you mean demo"),
        ({"command": "train demo --sede 3"}, "--sede"),
        ({"command": "train demo --steps many"}, "many"),
        ({"command": "train demo --steps 0"}, "--steps 0"),
        ({"command": "train demo -- report"}, "one command"),
        ({"command": "train 'demo"}, "words of a shell: No closing quotation"),
        ({"command": ""}, "a command of this project"),
        ({"command": "train --run-dir x"}, "no --run-dir: it is the key run_dir"),
        ({"command": "train --run_dir=x"}, "no --run-dir"),
        ({"run_dir": "gs://a/b\n"}, "one line"),
        ({"queue": "a b"}, "letters, digits"),
        ({"queue": "x\n#SBATCH --uid=0"}, "letters, digits"),
        ({"service_account": "a;b"}, "a name"),
        ({"volume": "claim"}, "CLAIM:/FOLDER"),
        ({"env": {"JAX_PROCESS_ID": "0"}}, "no JAX_PROCESS_ID: the launcher sets it"),
        ({"env": {"TPU_WORKER_ID": "0"}}, "no TPU_WORKER_ID"),
        ({"env": {"A": 3}}, 'A = "one line of text"'),
        ({"env": {"A": "x\ny"}}, 'A = "one line of text"'),
        ({"env": {'"a-b"': "x"}}, "names of variables, not 'a-b'"),
        ({"env": "x"}, r"a table \[env\]"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        job_of(tmp_path, **changes)


@pytest.mark.parametrize("content", [b"name = \xff", b"name = ", b"a = 1\na = 2", None])
def test_a_file_that_is_no_job(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "job.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"job.toml: .*\nexpected: a job file in TOML"):
        read_job(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="no name"):
        read_job(path)


GPUS = {"accelerator": "h100", "topology": "2"}
CPUS = {"accelerator": "cpu", "topology": "2"}
VMS = {"zone": "us-central2-b"}
V5P = {"accelerator": "v5p", "topology": "4x8x8"}


@pytest.mark.parametrize(
    ("target", "changes", "words"),
    [
        ("gke", {}, ""),
        ("gke", GPUS, ""),
        ("gke", {"image": None}, "image = ''"),
        ("gke", {"run_dir": "runs/a"}, "the disk of a host goes with it"),
        ("gke", {"run_dir": "/mnt/a", "volume": "claim:/mnt"}, ""),
        ("gke", {"run_dir": "/mntx/a", "volume": "claim:/mnt"}, "run_dir = '/mntx/a'"),
        ("gke", {"run_dir": None}, "run_dir = ''"),
        ("gke", {"run_dir": None, "command": "doctor"}, ""),
        ("gke", {"run_dir": "runs/a", "command": "doctor"}, ""),
        ("gke", CPUS, "accelerator 'cpu'"),
        ("gke", {"local_disk": "/dev/shm", "volume": "claim:/mnt"}, ""),
        ("gke", {"local_disk": "/mnt/", "volume": "claim:/mnt"}, "volume = 'claim:/mnt'"),
        ("gke", {"volume": "claim:/dev//shm"}, "other than /dev/shm"),
        ("gke", {"service_account": "a@b.iam"}, "service_account = 'a@b.iam'"),
        ("gke", {"queue": "Team_A"}, "queue = 'Team_A'"),
        ("gke", {"priority": "High"}, "a Kubernetes name"),
        ("slurm", GPUS | {"run_dir": "runs/a", "image": None}, ""),
        ("slurm", CPUS, ""),
        ("slurm", {}, "GPUs or cpu"),
        ("slurm", CPUS | {"queue": "Team_A"}, ""),
        ("queued", VMS | {"slices": 2, "reservation": "mine", "service_account": "a@b.iam"}, ""),
        ("queued", {}, "zone = ''"),
        ("queued", VMS | {"run_dir": "s3://acme/a"}, "gs://BUCKET/FOLDER"),
        ("queued", VMS | {"accelerator": "tpu7x", "topology": "2x2x1"}, "that the TPU API has"),
        ("queued", VMS | GPUS, "one that the TPU API has"),
        ("skypilot", {"image": None}, ""),
        ("skypilot", GPUS | {"slices": 2}, ""),
        ("skypilot", {"slices": 2}, "joins no TPU slices"),
        ("skypilot", {"run_dir": "runs/a"}, "the disk of a host"),
        ("skypilot", {"accelerator": "tpu7x", "topology": "2x2x1"}, "one that SkyPilot knows"),
        ("skypilot", {"accelerator": "gb200", "topology": "2"}, "one that SkyPilot knows"),
        ("skypilot", V5P, ""),
        ("skypilot", V5P | {"topology": "4x4x16"}, "4x8x8: SkyPilot asks for chips alone"),
    ],
)
def test_what_a_target_cannot_run(
    tmp_path: Path, target: str, changes: dict[str, Any], words: str
) -> None:
    job = job_of(tmp_path, **changes)
    if not words:
        check_target(job, target)
        return
    with pytest.raises(UserError, match=words):
        check_target(job, target)


ASKED: dict[str, Any] = {
    "spot": True,
    "reservation": "mine",
    "queue": "team",
    "priority": "high",
    "namespace": "team",
    "project": "acme",
    "zone": "europe-west4-b",
    "service_account": "trainer",
    "volume": "claim:/mnt",
    "local_disk": "/mnt/disks/ssd",
    "limit_min": 90,
    "host_network": True,
    "privileged": True,
}


@pytest.mark.parametrize("target", UNUSED)
def test_a_key_that_a_target_would_not_use_is_refused_and_no_other(
    tmp_path: Path, target: str
) -> None:
    base = {"slurm": CPUS, "queued": VMS}.get(target, {})
    for name, value in ASKED.items():
        job = job_of(tmp_path, **base | {name: value})
        if name in UNUSED[target].split():
            with pytest.raises(UserError, match=rf"{target}: {name} = .*\nexpected: no {name}"):
                check_target(job, target)
        else:
            check_target(job, target)
            assert render(job, target, tmp_path).text != (
                render(job_of(tmp_path, **base), target, tmp_path).text
            ), f"{name} is not used, and not refused"
