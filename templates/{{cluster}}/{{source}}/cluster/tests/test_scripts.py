"""The scripts for Slurm and TPU VMs, run for real in bash with commands that only pretend."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..job import FAULTS, FINAL
from ..queued import queued
from ..rendered import render, to_yaml
from ..skypilot import task
from ..slurm import LOGS, sbatch
from .jobs import job_of, tool

CPUS = {"accelerator": "cpu", "topology": "2", "run_dir": "runs/it's"}
ODD_DIR = 'gs://acme/it\'s a "run" of $HOME'
ODD = {"A": "it's $(touch oops) 1", "B": '`touch oops` \\ "', "C": "é *"}


@pytest.mark.parametrize("target", ["slurm", "queued", "skypilot"])
def test_scripts_are_clean_and_render_twice_the_same(tmp_path: Path, target: str) -> None:
    changes: dict[str, Any] = {"env": ODD, "slices": 1 if target == "skypilot" else 2}
    job = job_of(tmp_path, **changes | (CPUS if target == "slurm" else {"spot": True}))
    text, again = (render(job, target, tmp_path).text for _ in range(2))
    assert text == again
    scripts = [text]
    if target == "skypilot":
        scripts = [f"#!/bin/bash\n{yaml.safe_load(text)[key]}" for key in ("setup", "run")]
    if target == "queued":
        scripts.append(
            "#!/bin/bash\nended=x\n" + text.split("<<'STARTUP'\n")[1].split("STARTUP\n")[0]
        )
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        if shellcheck := tool("shellcheck"):
            # SC2016: a $ in single quotes is meant.
            command = [shellcheck, "--shell=bash", "--exclude=SC2016", "-"]
            done = subprocess.run(command, input=script, text=True, capture_output=True)
            assert done.returncode == 0, done.stdout


class Machine:
    """A folder of commands that pretend, and a shell that finds them first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.told = folder, folder / "bin", folder / "told"
        self.bin.mkdir()
        self.command("sleep", "")

    def command(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.told}"\n{body}\n')
        path.chmod(0o755)

    def bash(self, script: str) -> int:
        environ = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        environ |= {"SLURM_JOB_NAME": "acorn", "SLURM_JOB_ID": "7"}
        return subprocess.run(
            ["bash"], input=script, text=True, cwd=self.folder, env=environ, timeout=60
        ).returncode

    def heard(self, start: str) -> list[str]:
        """The command lines that began so, and forgets all."""
        lines = self.told.read_text().splitlines() if self.told.exists() else []
        self.told.unlink(missing_ok=True)
        return [line for line in lines if line.startswith(start)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_slurm_job_comes_back_after_a_fault_and_not_after_a_bug(machine: Machine) -> None:
    (machine.folder / LOGS).mkdir(parents=True)
    machine.command("scontrol", "")
    script = sbatch(job_of(machine.folder, retries=2, env=ODD, **CPUS))

    def ends(code: int) -> bool:
        machine.command("srun", f"env >environ; exit {code}")
        assert machine.bash(script) == code
        return machine.heard("scontrol") == ["scontrol requeue 7"]

    assert not any(ends(code) for code in (0, *FINAL, 127))
    # A preemption is free; faults are counted over all attempts.
    assert [ends(code) for code in (42, 43, 42, 42, 44, 42, 137, 42)] == [True] * 6 + [False, True]
    assert "A=it's $(touch oops) 1" in (machine.folder / "environ").read_text()
    assert not (machine.folder / "oops").exists()
    (machine.folder / LOGS / "acorn-7.faults").unlink()
    assert all(ends(code) for code in FAULTS[:2])
    machine.command("scontrol", "exit 1")  # such as of a job that was cancelled
    machine.command("srun", "exit 42")
    assert machine.bash(script) == 42


def test_srun_gets_the_command_word_by_word(machine: Machine) -> None:
    machine.command("srun", "printf '%s\\n' \"$@\" >words")
    command = "train demo --trackers 'a b' '$HOME'"
    machine.bash(sbatch(job_of(machine.folder, **CPUS | {"command": command})))
    words = (machine.folder / "words").read_text().splitlines()
    package = __package__.partition(".")[0]
    given = ["train", "demo", "--trackers", "a b", "$HOME", "--run-dir", "runs/it's"]
    assert {"--kill-on-bad-exit=0", "--wait=600"} <= {*words}  # who is frozen holds no node
    assert words[-10:] == [".venv/bin/python", "-m", package, *given]


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        (CPUS, {"--nodes=2", "--job-name=acorn", "--signal=TERM@120", "--requeue"}),
        (
            CPUS | {"slices": 3, "queue": "long", "limit_min": 90},
            {"--nodes=6", "--partition=long", "--time=90"},
        ),
        (
            {"accelerator": "h100", "topology": "2", "priority": "q"},
            {"--gpus-per-node=8", "--qos=q"},
        ),
    ],
)
def test_what_slurm_is_asked_for(
    tmp_path: Path, changes: dict[str, Any], options: set[str]
) -> None:
    lines = sbatch(job_of(tmp_path, **changes)).splitlines()
    found = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert options <= found
    assert ("--gpus-per-node=8" in found) == (changes["accelerator"] != "cpu")


GCLOUD = """
case "$*" in
*create*)
  last=${!#}; cp "${last#*startup-script=}" startup
  read -r code <create; sed -i 1d create; exit "${code:-0}" ;;
*delete*) exit 0 ;;
*describe*) head -n1 states; sed -i 1d states ;;
"storage cat"*) if [ -s states ]; then exit 1; else cat code; fi ;;
esac
"""


def vms(machine: Machine, states: str, code: int = 0, create: str = "") -> tuple[int, list[str]]:
    """The exit code of the script, and what it does with resources, as words.

    create: a line each, with what it ends; 0 from then on.
    """
    for name, content in (("states", states), ("code", code), ("create", create)):
        (machine.folder / name).write_text(f"{content}\n" if content != "" else "")
    machine.command("gcloud", GCLOUD)
    job = job_of(machine.folder, spot=True, slices=2, run_dir=ODD_DIR)
    ended = machine.bash(queued(job))
    words = [line.split()[4] for line in machine.heard("gcloud compute")]
    return ended, [word for word in words if word != "describe"]


def test_tpu_vms_are_asked_for_again_and_never_left_behind(machine: Machine) -> None:
    assert vms(machine, "WAITING_FOR_RESOURCES\nACTIVE") == (0, ["create", "delete"])
    assert vms(machine, "ACTIVE", code=1) == (1, ["create", "delete"])
    taken = vms(machine, "ACTIVE\nSUSPENDING\nACTIVE\nSUSPENDED\nACTIVE", code=2)
    assert taken == (2, ["create", "delete"] * 3)
    assert vms(machine, "FAILED\nACTIVE") == (1, ["create", "delete"])
    # Started twice: what the first one made is not deleted by the second.
    assert vms(machine, "ACTIVE", create="1") == (1, ["create"])
    # Once it is ours, a create that fails, such as for a quota, is tried again.
    assert vms(machine, "SUSPENDED\nACTIVE", create="0\n1\n1") == (
        0,
        ["create", "delete", "create", "create", "create", "delete"],
    )


def test_the_hosts_and_the_script_mean_the_same_place(machine: Machine) -> None:
    machine.command("gcloud", GCLOUD)
    for name in ("states", "create"):
        (machine.folder / name).write_text("")
    (machine.folder / "code").write_text("0")
    assert machine.bash(queued(job_of(machine.folder, run_dir=ODD_DIR))) == 0
    (asked,) = machine.heard("gcloud storage cat")
    startup = (machine.folder / "startup").read_text()
    place = startup.partition("\nset -u\n")[0] + '\necho "gcloud storage cat $ended" >>told'
    assert machine.bash(place) == 0
    assert machine.heard("gcloud") == [asked]
    assert asked.startswith(f"gcloud storage cat {ODD_DIR}.ended/")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["--accelerator-type=v5litepod-16"]),
        ({"accelerator": "v5p", "topology": "4x4x16"}, ["--type=v5p", "--topology=4x4x16"]),
        ({"accelerator": "v4", "topology": "2x2x4"}, ["--type=v4", "--topology=2x2x4"]),
        ({"reservation": "mine"}, ["gcloud alpha compute", "--reservation=mine"]),
        ({"spot": True}, ["  gcloud compute tpus queued-resources create", "--spot"]),
    ],
)
def test_what_a_queued_resource_is_asked_for(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    create = queued(job_of(tmp_path, **changes)).partition("create() {")[2].partition("\n}")[0]
    assert all(word in create for word in words), create
    assert ("--accelerator-type" in create) != ("--type" in create)
    assert "--reserved" not in create


def test_a_tpu_vm_starts_again_after_a_fault_and_tells_the_last_code(machine: Machine) -> None:
    script = queued(job_of(machine.folder, retries=2, env=ODD))
    startup = "ended=gs://acme/x\n" + script.split("<<'STARTUP'\n")[1].split("STARTUP\n")[0]
    machine.command(
        "gcloud", 'case "$*" in "storage cp"*) cat >last ;; "storage cat"*) cat theirs ;; esac'
    )
    machine.command("docker", 'head -n1 codes >now; sed -i 1d codes; exit "$(cat now)"')
    for worker, codes, runs, theirs, last in (
        (0, "0", 1, "", "0"),
        (0, "42\n42\n42\n43\n44\n1\n", 6, "", "1"),
        (0, "43\n137\n42\n44\n0\n", 4, "", "44"),
        (0, "125\n0\n", 2, "", "0"),
        (1, "2\n", 1, "2", None),
        (1, "43\n44\n44\n", 3, "", "44"),  # the first one is frozen
    ):
        (machine.folder / "theirs").unlink(missing_ok=True)
        if theirs:
            (machine.folder / "theirs").write_text(theirs)
        (machine.folder / "codes").write_text(codes)
        (machine.folder / "last").unlink(missing_ok=True)
        machine.command("curl", f"echo {worker}")
        machine.bash(startup)
        told = (machine.folder / "told").read_text().splitlines()
        assert ("sleep 600" in told) == (worker != 0)
        started = machine.heard("docker run")
        assert len(started) == runs
        assert "--volume=/dev/shm:/dev/shm" in started[0]  # its copies outlive it
        assert "--env=JAX_PLATFORMS=tpu,cpu" in started[0]
        told = machine.folder / "last"
        assert (told.read_text().strip() if told.exists() else None) == last


def test_skypilot_recovers_faults_and_preemptions_alone(tmp_path: Path) -> None:
    wanted = task(job_of(tmp_path, spot=True))
    recovery = wanted["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == sorted([42, *FAULTS])
    assert not {*FINAL} & {*recovery["recover_on_exit_codes"]}
    assert recovery["max_restarts_on_errors"] == 0
    assert wanted["resources"]["accelerators"] == "tpu-v5litepod-16"
    assert wanted["num_nodes"] == 1
    gpus = task(job_of(tmp_path, accelerator="h100", topology="2", slices=2, run_dir="s3://a/b"))
    assert (gpus["num_nodes"], gpus["resources"]["accelerators"]) == (4, "H100-MEGA:8")
    assert "--extra cuda12 --extra s3" in gpus["setup"]


def test_a_host_of_skypilot_knows_its_place(machine: Machine) -> None:
    wanted = task(job_of(machine.folder))
    machine.command("python", "env >environ")
    script = wanted["run"].replace(".venv/bin/python", "python")
    script = "export SKYPILOT_NODE_RANK=1 SKYPILOT_NODE_IPS=$'10.0.0.1\\n10.0.0.2'\n" + script
    assert machine.bash(script) == 0
    environ = (machine.folder / "environ").read_text().splitlines()
    assert {"JAX_COORDINATOR_ADDRESS=10.0.0.1:8476", "JAX_NUM_PROCESSES=2"} <= {*environ}
    assert "JAX_PROCESS_ID=1" in environ


def test_skypilot_reads_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sky = pytest.importorskip("sky", reason="optional: no skypilot")
    for changes in ({}, {"accelerator": "h100", "topology": "2", "env": ODD}):
        wanted = task(job_of(tmp_path, **changes))
        path = tmp_path / "task.yaml"
        path.write_text(to_yaml(wanted))
        read = sky.Task.from_yaml(str(path))
        assert (read.name, read.num_nodes, read.envs) == (
            "acorn",
            wanted["num_nodes"],
            wanted["envs"],
        )
        path.write_text(to_yaml(wanted | {"num_node": 2}))
        with pytest.raises(ValueError, match="num_node"):
            sky.Task.from_yaml(str(path))
