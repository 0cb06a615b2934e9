"""What several hosts cost, and what a job keeps when they fail, with processes of this machine.

    sh hooks/uv.sh run python benchmarks/hosts.py [soak] [saves] [processes] [--rounds 3]

soak: the emitted `simulate` of two hosts, struck ten times, with checkpoints alone and with local
copies between them; steps that were lost beside those since the newest save. saves: how long a save
holds up the steps, and how long it takes, by bytes of state, one process. processes: a step of the
demo on a mesh of four CPU devices, of 1, 2 and 4 processes, started in turn, by rows of a batch.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from statistics import median

from grown import describe_machine, grow_project, ratio, table

STEPS, SAVED, COPIED = 600, 60, 10  # in all; between two checkpoints; between two local copies
# A kill, a machine that is gone and a preemption in turn, never at a multiple of a save.
FAULTS = [("kill", 1, 85), ("term", 0, 137), ("gone", 1, 193), ("kill", 0, 244), ("term", 1, 295)]
FAULTS += [("hang", 1, 349), ("gone", 0, 398), ("kill", 1, 447), ("term", 0, 497), ("kill", 0, 553)]
SIZES_MB = (16, 128, 1024)
BATCHES = {16: 100, 256: 25}  # rows of a batch -> steps

SAVES = """
import json, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from acorn.run_config import MeshConfig, RunConfig
from acorn.runtime.checkpoint import Checkpoints
from acorn.runtime.shelf import shelf_of
from acorn.runtime.compiled import with_shardings
from acorn.runtime.sharding import make_mesh, named
from acorn.runtime.tiers import Tiers
from jax.sharding import PartitionSpec as P

folder, megabytes, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = RunConfig(run_dir=str(folder), local_folder="/dev/shm/acorn-saves")
specs = {"w": P("fsdp"), "step": P()}
mesh = make_mesh(MeshConfig(data=1, fsdp=4))
shardings = named(specs, mesh)
noise = lambda: jax.random.normal(jax.random.key(0), (megabytes * 250, 1000))
make = jax.jit(lambda: {"w": noise(), "step": jnp.int32(0)}, out_shardings=shardings)
state = jax.block_until_ready(make())
abstract = with_shardings(jax.eval_shape(make), shardings)
folder.mkdir(parents=True)
tiers = Tiers(folder, Checkpoints(shelf_of(str(folder)), config), abstract, config)
found = []
for number in range(2 * rounds):
    planned, began = number % 2 == 0, time.perf_counter()
    tiers.save(number, state, {}, lambda: None, planned=planned, copied=not planned, rotate=True)
    blocked = time.perf_counter() - began
    error = tiers.wait()
    assert error is None, error
    found.append((planned, blocked, time.perf_counter() - began))
tiers.end()
print(json.dumps(found))
"""


def in_project(project, *command, **environment):
    """What a command of the project prints; ends this script where it fails."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(
        [str(project / ".venv/bin" / command[0]), *command[1:]],
        cwd=project,
        env=env | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


def soak(project):
    """Ten faults, with checkpoints alone and with copies between them."""
    rows = []
    for name, every in (("checkpoints", SAVED), ("with local copies", COPIED)):
        run_dir = project / "runs" / f"soak-{every}"
        shutil.rmtree(run_dir, ignore_errors=True)
        command = f"train demo --steps {STEPS} --save-every-steps {SAVED} --hang-timeout-s 20"
        command += " --log-every-steps 5 --eval-every-steps 0 --prefetch-workers 1"
        if every == COPIED:
            command += f" --local-folder /dev/shm/acorn-soak --local-every-steps {COPIED}"
        job = project / "build-job.toml"
        text = (project / "launch/job.toml").read_text()
        job.write_text(re.sub(r'(?m)^command = ".*?"', f'command = "{command}"', text))
        struck = [word for kind, host, at in FAULTS for word in (f"--{kind}", f"{host}@step{at}")]
        words = ["simulate", "--job", str(job), "--hosts", "2", "--devices-per-host", "1"]
        answer = in_project(project, "acorn", *words, "--run-dir", str(run_dir), *joined(struck))
        told = json.loads((run_dir / "simulated/summary.json").read_text())
        # What nobody could have kept: the steps since the newest save. A preemption saves.
        ideal = sum(
            each["step"] % every for each in told["faults"] if not each["fault"].startswith("term")
        )
        spent = re.search(r"goodput ([\d.]+%).*", answer)
        ended, again = ([each[k] for each in told["faults"]] for k in ("ended_s", "next_s"))
        kept = STEPS / (STEPS + told["lost_steps"])
        best = STEPS / (STEPS + ideal)
        rows.append(
            [
                name,
                f"{sum(t is not None for t in again)} of {len(FAULTS)}",
                told["lost_steps"],
                ideal,
                f"{kept / best:.1%}",
                f"{median(filter(None, ended)):.1f}",
                f"{median(filter(None, again)):.1f}",
                spent[0] if spent else "?",
            ]
        )
    heads = ["saved by", "recovered", "steps lost", "since the newest save", "of the ideal"]
    heads += ["all ended after, s (median)", "next step after, s", "the ledger"]
    table(heads, rows)


def joined(words):
    """Options that are given several times take all their values at once."""
    found = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        found.setdefault(name, []).append(value)
    return [word for name, values in found.items() for word in (name, *values)]


def saves(project, rounds):
    """How long a checkpoint and a local copy hold up the steps."""
    rows = []
    for megabytes in SIZES_MB:
        with tempfile.TemporaryDirectory(dir=project) as folder:
            words = [f"{folder}/run", str(megabytes), str(rounds + 1)]
            answer = in_project(project, "python", "-c", SAVES, *words, JAX_NUM_CPU_DEVICES="4")
        found = json.loads(answer.splitlines()[-1])[2:]  # the first of each also imports
        for name, planned in (("checkpoint", True), ("local copy, in memory", False)):
            times = [
                (blocked, whole) for is_planned, blocked, whole in found if is_planned == planned
            ]
            blocked, whole = (1e3 * median(column) for column in zip(*times, strict=True))
            rows.append([f"{megabytes} MB", name, f"{blocked:.0f}", f"{whole:.0f}"])
    table(["state", "saved as", "steps wait, ms", "until it counts, ms"], rows)


def processes(project, rounds):
    """A step of the demo on four devices, by the number of processes that have them."""
    rows = []
    for batch, steps in BATCHES.items():
        step_ms = {count: [] for count in (1, 2, 4)}
        for number in range(rounds):
            for count, times in step_ms.items():
                run_dir = project / "runs" / f"processes-{count}-{number}"
                shutil.rmtree(run_dir, ignore_errors=True)
                times.append(step_of(project, run_dir, count, batch, steps))
        rows += [
            [batch, count, 4 // count, f"{median(times):.0f}", f"{ratio(times, step_ms[1]):.2f}"]
            for count, times in step_ms.items()
        ]
    heads = ["rows a step", "processes", "devices of each", "a step, ms", "beside one process"]
    table(heads, rows)


def step_of(project, run_dir, count, batch, steps):
    """Milliseconds of a step, the median of the records of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(4 // count)}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    words = f"train demo --steps {steps} --data.batch-size {batch} --eval-every-steps 0"
    words += " --save-every-steps 0 --log-every-steps 5"
    started = [
        subprocess.Popen(
            [project / ".venv/bin/acorn", *words.split(), "--run-dir", str(run_dir)],
            cwd=project,
            env=env | ({"JAX_PROCESS_ID": str(index)} if count > 1 else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for index in range(count)
    ]
    if codes := [code for each in started if (code := each.wait())]:
        raise SystemExit(f"{count} processes ended with {codes}")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return median(row["step_ms"] for row in records if row["step"] > 10 and "step_ms" in row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["processes", "saves", "soak"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    project = Path(grow_project("tpu"))
    for part in options.parts:
        print(f"\n{part}: {describe_machine()}\n", flush=True)
        {"soak": lambda: soak(project), "saves": lambda: saves(project, options.rounds)}.get(
            part, lambda: processes(project, options.rounds)
        )()
