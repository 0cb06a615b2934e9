"""A job file is read whole, or refused with the key that is wrong and what it should be."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ...errors import UserError
from ..job import Job, check_filled, check_target, read_job
from .jobs import IMAGE, job_of

EMITTED = Path(__file__).parents[4] / "launch" / "job.toml"


def test_what_is_read(tmp_path: Path) -> None:
    env = {"A": "it's 1e3", "B": ""}
    job = job_of(tmp_path, slices=2, spot=True, env=env, command="train demo --data.paths 'a b'")
    assert job.command == ("train", "demo", "--data.paths", "a b")
    assert job.arguments[-2:] == ["--run-dir", "gs://acme/runs/acorn"]
    assert (job.slices, job.spot, job.hosts, job.slice.chips) == (2, True, 4, 16)
    assert job.env == env
    assert job_of(tmp_path, accelerator="cpu", topology="3").hosts == 3
    assert job_of(tmp_path, health_check=True).arguments[:3] == ["health", "--", "train"]


def test_the_emitted_file_is_a_job_that_only_lacks_your_names(tmp_path: Path) -> None:
    job = read_job(EMITTED)
    check_target(job, "gke")
    with pytest.raises(UserError, match=r"--apply: (run_dir|image)"):
        check_filled(job)
    for value in (
        {"command": "train --data.prepared-dir gs://BUCKET/x"},
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
        ({"command": "tarin demo"}, "such as train"),
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
        ("gke", CPUS, "accelerator 'cpu'"),
        ("slurm", GPUS | {"run_dir": "runs/a", "image": None}, ""),
        ("slurm", CPUS, ""),
        ("slurm", {}, "GPUs or cpu"),
        ("queued", {"slices": 2}, ""),
        ("queued", {"zone": None}, "zone = ''"),
        ("queued", {"run_dir": "s3://acme/a"}, "gs://BUCKET/FOLDER"),
        ("queued", {"accelerator": "tpu7x", "topology": "2x2x1"}, "one that the TPU API has"),
        ("queued", GPUS, "one that the TPU API has"),
        ("skypilot", {"image": None}, ""),
        ("skypilot", GPUS | {"slices": 2}, ""),
        ("skypilot", {"slices": 2}, "joins no TPU slices"),
        ("skypilot", {"run_dir": "runs/a"}, "the disk of a host"),
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
