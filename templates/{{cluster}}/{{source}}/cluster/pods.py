"""The pods of a rendered JobSet, and their environment as a cluster would hand it to them.

Starts nothing.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..runtime.detect import ADDRESS, detect
from .job import takes_run_dir
from .restarts import JobName, Manifest, jobs

LABEL = re.compile(r"metadata\.(?:labels|annotations)\['jobset\.sigs\.k8s\.io/(.+)'\]")
# Of the launcher that this machine may be part of; XLA_FLAGS may count devices too.
FOREIGN = re.compile(r"(SLURM|OMPI|JOBSET|JOB_COMPLETION)_|JAX_(COORD|NUM_PROC|PROC)|XLA_FLAGS")
OF_TPUS = re.compile(r"(TPU|MEGASCALE)_")  # which are not here
OF_THE_IMAGE = ("LD_LIBRARY_PATH",)  # folders that are not here


@dataclass(frozen=True)
class Pod:
    """A host of the job."""

    number: int
    """Over all Jobs, from 0 on."""
    job: JobName
    host: int
    """In its Job."""
    environ: dict[str, str]
    arguments: list[str]
    devices: int

    @property
    def name(self) -> str:
        return f"{self.job[0]}-{self.job[1]}-{self.host}"


def pods(manifest: Manifest, run_dir: Path, devices: int | None = None) -> list[Pod]:
    """The pods of a JobSet in the order of its hosts; UserError where their places are wrong."""
    found: list[Pod] = []
    for job, spec in jobs(manifest).items():
        container = spec["template"]["spec"]["containers"][0]
        limits = container.get("resources", {}).get("limits", {})
        for host in range(spec["completions"]):
            environ = {
                each["name"]: each["value"] if "value" in each else _told(manifest, job, each)
                for each in container.get("env", ())
            }
            environ["JOB_COMPLETION_INDEX"] = str(host)  # Kubernetes's own
            count = devices or int(next(iter(limits.values()), 1))
            words = _arguments(container.get("args", []), run_dir)
            found.append(Pod(len(found), job, host, environ, words, count))
    for pod in found:
        place = detect({n: v for n, v in pod.environ.items() if not OF_TPUS.match(n)})
        if (place.count, place.index) != (len(found), pod.number):
            raise UserError(
                got=f"{pod.name}, which takes itself for process {place.index} of {place.count}",
                expected=f"process {pod.number} of {len(found)}",
                do="correct the variables of the manifest, or render it with `launch gke`",
            )
    return found


def rehosted(manifest: Manifest, hosts: int) -> Manifest:
    """The manifest for another number of hosts, as if its topology had that many."""
    for each in manifest["spec"]["replicatedJobs"]:
        job, slices = each["template"]["spec"], each.get("replicas", 1)
        if hosts % slices:
            raise UserError(
                got=f"--hosts {hosts} of {slices} slices",
                expected="a multiple of the number of slices",
                do=f"take --hosts {slices * max(1, hosts // slices)}",
            )
        job |= {"completions": hosts // slices, "parallelism": hosts // slices}
        for variable in job["template"]["spec"]["containers"][0].get("env", ()):
            if variable["name"] == "JOBSET_PARALLELISM":
                variable["value"] = str(hosts // slices)
    return manifest


def environment(pod: Pod, port: int, count: int) -> dict[str, str]:
    """The variables of a pod's process here, where the coordinator and all devices are too."""
    environ = {n: v for n, v in os.environ.items() if not FOREIGN.match(n)}
    environ |= {n: v for n, v in pod.environ.items() if n not in OF_THE_IMAGE}
    environ = {n: v for n, v in environ.items() if not OF_TPUS.match(n)}
    environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(pod.devices)}
    return environ | ({ADDRESS: f"127.0.0.1:{port}"} if count > 1 else {})


def _arguments(words: list[str], run_dir: Path) -> list[str]:
    """The container's arguments, with this run folder in the place of theirs."""
    kept = list(words)
    if "--run-dir" in kept:
        del kept[(at := kept.index("--run-dir")) : at + 2]
    elif not takes_run_dir(kept):
        return kept
    return [*kept, "--run-dir", str(run_dir)]


def _told(manifest: Manifest, job: JobName, variable: Manifest) -> str:
    """What the downward API tells a pod of itself."""
    path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
    name, index = job
    replicas = {
        each["name"]: each.get("replicas", 1) for each in manifest["spec"]["replicatedJobs"]
    }
    known = {
        "jobset-name": manifest["metadata"]["name"],
        "replicatedjob-name": name,
        "replicatedjob-replicas": replicas[name],
        "job-index": index,
        "job-global-index": list(jobs(manifest)).index(job),
        "global-replicas": sum(replicas.values()),
    }
    match = LABEL.fullmatch(path)
    if match is None or match[1] not in known:
        raise UserError(
            got=f"the variable {variable['name']} from {path or 'elsewhere'}",
            expected=f"a value, or a label of JobSet: {', '.join(known)}",
            do="render the manifest with `launch gke`",
        )
    return str(known[match[1]])


def grace_s(manifest: Manifest) -> float:
    """Seconds from SIGTERM to SIGKILL."""
    pod = next(iter(jobs(manifest).values()))["template"]["spec"]
    return float(pod.get("terminationGracePeriodSeconds", 30))
