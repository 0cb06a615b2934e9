"""`make slurm`: a rendered sbatch script in a real Slurm of two nodes on this machine, preempted.

A job of the kind tpu, sent by its own `launch slurm --apply`, loses its nodes to one of higher
priority, saves, exits with 42, is put back, and goes on. Its losses must be those of a run that
nobody disturbed, to the last bit. Takes about six minutes, two of them Slurm's own wait before a
requeued job. Installs Debian's packages where they are missing, as root; says so where it cannot.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "build" / "link" / "tpu"
PACKAGES = ("slurm-wlm", "munge")
NODES = {"flaxseed-n0": 17001, "flaxseed-n1": 17002}  # name -> port of its slurmd
HOSTS = Path("/etc/hosts")
STEPS, PREEMPT_AFTER = 120, 30
OPTIONS = (
    f"train demo --steps {STEPS} --log-every-steps 1 --save-every-steps 1000 --eval-every-steps 0"
)
CONF = """
ClusterName=flaxseed
SlurmctldHost=localhost
SlurmctldPort=17000
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def install() -> str:
    """Have the packages; the reason why they cannot be had, or ""."""
    if all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "needs root and apt-get to install " + " and ".join(PACKAGES)
    for words in (["update"], ["install", "--yes", *PACKAGES]):
        quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True}
        done = subprocess.run(["apt-get", "--quiet", *words], text=True, **quiet)  # type: ignore
        if done.returncode:
            return f"apt-get {' '.join(words)}: {done.stderr.strip().splitlines()[-1:]}"
    return ""


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Two nodes and a controller, which other commands find by SLURM_CONF; ended with the block."""
    nodes = "\n".join(
        f"NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=1000"
        for name, port in NODES.items()
    )
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, nodes=nodes))
    os.environ["SLURM_CONF"] = str(conf)
    shutil.rmtree(PROJECT / "build" / "launch", ignore_errors=True)  # jobs are counted from 1
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o600)
    before = HOSTS.read_text()
    HOSTS.write_text(before + "".join(f"127.0.0.1 {name}\n" for name in NODES))
    munge = [f"--{what}-file={folder}/munge.{what}" for what in ("key", "log", "pid", "seed")]
    commands = [["munged", "--force", "--foreground", f"--socket={folder}/munge.socket", *munge]]
    commands += [["slurmctld", "-D", "-f", str(conf)]]
    commands += [["slurmd", "-D", "-f", str(conf), "-N", name] for name in NODES]
    daemons = []
    try:
        for number, command in enumerate(commands):
            log = (folder / f"{command[0]}-{number}.log").open("w")
            daemons.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
            time.sleep(2)
        states = ("sinfo", "--noheader", "--Node", "--partition=low", "--format=%t")
        wait_for(lambda: told(*states).split() == ["idle"] * len(NODES), 60)
        yield
    finally:
        HOSTS.write_text(before)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def told(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_for(holds: Callable[[], bool], limit_s: float, job: str = "") -> None:
    """Ask every second; a job that has failed ends the wait at once."""
    end_s = time.monotonic() + limit_s
    while not holds():
        if job and state(job)["JobState"] in ("FAILED", "CANCELLED", "TIMEOUT"):
            raise AssertionError(log_of(job)[-4000:])
        assert time.monotonic() < end_s, f"not within {limit_s} s"
        time.sleep(1)


def log_of(job: str) -> str:
    """What a job, or the attempts of it, have said."""
    path = next((PROJECT / "build" / "launch").glob(f"*-{job}.log"), None)
    return path.read_text() if path else ""


def submit(folder: Path, name: str) -> tuple[str, Path]:
    """Send a run by the project's own command: the number of its job, and its run folder."""
    run = folder / name
    job = folder / f"{name}.toml"
    job.write_text(
        f'name = "{name}"\ncommand = "{OPTIONS}"\nrun_dir = "{run}"\n'
        'accelerator = "cpu"\ntopology = "2"\nqueue = "low"\ngrace_s = 60\n'
    )
    program = str(PROJECT / ".venv" / "bin" / "acorn-tpu")
    text = subprocess.run(
        [program, "launch", "slurm", "--job", str(job), "--apply"],
        cwd=PROJECT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return text.rsplit("Submitted batch job ", 1)[1].strip(), run


def losses(run: Path) -> dict[int, float]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def state(job: str) -> dict[str, str]:
    """What Slurm says of a job: JobState, Restarts, ExitCode and more."""
    words = told("scontrol", "--oneliner", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def main() -> int:
    if reason := install():
        print(f"SKIPPED: {reason}")
        return 0
    uv = [os.environ.get("UV", "uv"), "sync", "--quiet"]
    environ = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    subprocess.run(uv, cwd=PROJECT, env=environ, check=True)
    with tempfile.TemporaryDirectory(prefix="flaxseed-slurm-") as scratch, slurm(Path(scratch)):
        folder = Path(scratch)
        job, run = submit(folder, "preempted")
        wait_for(lambda: max(losses(run), default=0) >= PREEMPT_AFTER, 300, job)
        begun_s = time.monotonic()
        told("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 5")
        wait_for(lambda: state(job)["JobState"] == "PENDING", 120)
        saved = max(losses(run))
        gone_s = time.monotonic() - begun_s
        print(f"preempted: saved at step {saved}, back in the queue in {gone_s:.0f} s")
        assert PREEMPT_AFTER <= saved < STEPS
        wait_for(lambda: state(job)["JobState"] == "RUNNING", 400, job)
        print(f"running again after {time.monotonic() - begun_s:.0f} s")
        wait_for(lambda: state(job)["JobState"] == "COMPLETED", 300, job)
        assert state(job)["Restarts"] == "1"
        log = log_of(job)
        assert "ended with 42, faults before: 0 of 10, again: yes" in log, log
        assert "ended with 0" in log, log
        other, undisturbed = submit(folder, "undisturbed")
        wait_for(lambda: state(other)["JobState"] == "COMPLETED", 300, other)
        assert losses(run) == losses(undisturbed), (losses(run), losses(undisturbed))
        assert [*losses(run)] == [*range(1, STEPS + 1)]
        print(f"the loss of step {STEPS} is {losses(run)[STEPS]!r} in both runs, and all before it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
