"""`simulate`: the rendered job on this machine, with its restarts and with faults. No JAX."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..cluster import ledger
from ..cluster.faults import STRIKES, Fault, parse
from ..cluster.job import read_job
from ..cluster.jobset import jobset
from ..cluster.pods import rehosted
from ..cluster.restarts import Manifest, jobs
from ..cluster.simulated import Outcome, Simulation
from ..errors import UserError
from ..records import objects, store
from ..records.progress import show
from ..run_config import Bounds

MOST_HOSTS = 8  # unless it is asked for: each takes a gigabyte

type Hosts = Annotated[int, Bounds(least=0)]
type Seconds = Annotated[float, Bounds(least=0)]


def simulate(
    *,
    target: Annotated[Literal["gke"], tyro.conf.Positional] = "gke",
    job: Path = Path("launch/job.toml"),
    run_dir: str = "runs/simulated",
    hosts: Hosts = 0,
    devices_per_host: Hosts = 0,
    grace_s: Seconds = 0.0,
    kill: tuple[str, ...] = (),
    gone: tuple[str, ...] = (),
    term: tuple[str, ...] = (),
    hang: tuple[str, ...] = (),
    slow: tuple[str, ...] = (),
    fail: Annotated[tuple[str, ...], tyro.conf.arg(name="raise")] = (),
    full: tuple[str, ...] = (),
) -> int:
    """Run the job as its manifest says, as processes of this machine; exit code: that of the job.

    A fault is HOST@SECONDSs, since the first start, or HOST@stepSTEP: --kill 2@30s 0@step40.

    Args:
        target: whose manifest is rendered and run
        job: the job file
        run_dir: the folder of the run, in the place of that of the job file
        hosts: processes, in the place of those of the topology; 0 = as many
        devices_per_host: of the CPU, in the place of the chips; 0 = as many
        grace_s: from SIGTERM to SIGKILL; 0 = as the job file says
        kill: the process is killed, as when it is out of memory
        gone: the machine vanishes: its peers see it first, and the cluster last
        term: the host is taken away: SIGTERM to it alone, and SIGKILL after the grace
        hang: the host stops, and answers nobody
        slow: the host works a fifth of the time from then on
        fail: an exception in the host
        full: the host can write no more large files
    """
    if objects.is_url(run_dir):
        raise UserError(
            got=f"--run-dir {run_dir}",
            expected="a folder of this machine",
            do="leave it out, or name a folder; `launch` sends the job to the bucket of its file",
        )
    manifest, own_devices = _manifest(job, hosts)
    count = sum(each["completions"] for each in jobs(manifest).values())
    if count > MOST_HOSTS and not hosts:
        raise UserError(
            got=f"{job}, a job of {count} hosts",
            expected=f"{MOST_HOSTS} processes at most, or a number that you name",
            do="add --hosts 4, with --devices-per-host 1 on a small machine",
        )
    given = {"kill": kill, "gone": gone, "term": term, "hang": hang, "slow": slow}
    given |= {"raise": fail, "full": full}
    faults = [each for kind in STRIKES for each in parse(kind, given[kind], count)]
    seconds, devices = grace_s or None, devices_per_host or own_devices
    outcome = Simulation(manifest, Path(run_dir), faults, devices=devices, grace=seconds).run()
    _summarise(Path(run_dir), outcome, faults)
    return outcome.code


def _manifest(job: Path, hosts: int) -> tuple[Manifest, int | None]:
    """What is run, and the devices of a host; None = as many as it has chips."""
    found, devices = read_job(job), None
    if found.accelerator == "cpu":  # of Slurm: as many nodes, in a manifest that has rules for them
        found, devices = replace(found, accelerator="h100"), 1
    manifest = jobset(found)
    return rehosted(manifest, hosts) if hosts else manifest, devices


def _summarise(run_dir: Path, outcome: Outcome, faults: list[Fault]) -> None:
    """Print what happened and what it cost, and keep it in DIR/simulated/summary.json."""
    attempts = ledger.attempts(store.read_lines(run_dir / "attempts.jsonl"))
    if attempts:
        ledger.show(attempts)
    met = [_facts(fault) for fault in faults]
    for each in met:
        told = [
            f"{words} {show('_s', each[name])}"
            for name, words in (("ended_s", "all ended after"), ("next_s", "next step after"))
            if each[name] is not None
        ]
        at = "" if each["struck_s"] is None else f" struck at {each['struck_s']:.1f} s, step "
        print(f"{each['fault']}:{at}{each['step'] if at else ' never struck'}", *told, sep=", ")
    print(f"{len(outcome.attempts)} attempts, ended with {outcome.code}: {outcome.why}")
    whole: dict[str, Any] = {"code": outcome.code, "why": outcome.why, "faults": met}
    whole |= {"attempts": outcome.attempts, "lost_steps": sum(each.lost for each in attempts)}
    store.write_json(run_dir / "simulated" / "summary.json", whole)


def _facts(fault: Fault) -> dict[str, Any]:
    return {
        "fault": fault.words,
        "struck_s": fault.struck_s,
        "step": fault.struck_step,
        "ended_s": fault.ended_s,
        "next_s": fault.next_s,
    }
