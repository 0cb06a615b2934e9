"""What a target can run of a job: refuses what it would drop or lose. Renders nothing."""

import dataclasses
import posixpath
import re

from ..run_config import BUCKET
from .job import Job, takes_run_dir, wrong

PLACEHOLDERS = re.compile(r"\b(BUCKET|PROJECT|REGION|REPOSITORY)\b|@sha256:0{64}$")
DNS_NAME = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?"
SHM = "/dev/shm"  # in every pod a folder of its own, if it is not that of the node
_OF_GKE = "namespace volume local_disk host_network privileged"
# Target -> keys that nothing there would act on. `image` is not among them: the emitted job file
# has one. Nor are `grace_s` and `retries`, which SkyPilot does not know: the documents say so.
UNUSED = {
    "gke": "limit_min project zone",
    "slurm": f"spot project zone service_account {_OF_GKE}",
    "queued": f"queue priority limit_min {_OF_GKE}",
    "skypilot": f"queue priority limit_min reservation project service_account {_OF_GKE}",
}


def check_target(job: Job, target: str) -> None:
    """Refuse a job that a target cannot run, or would run without what a key asks for."""
    defaults = {f.name: f.default for f in dataclasses.fields(Job)}
    for name in UNUSED[target].split():
        if (value := getattr(job, name)) != defaults[name]:
            raise wrong(target, name, value, f"no {name}: {target} would not use it")
    if target == "slurm":
        if job.accelerator != "cpu" and job.slice.is_tpu:
            raise wrong(target, "accelerator", job.accelerator, "GPUs or cpu")
        return
    is_tpu = job.slice.is_tpu  # refuses cpu
    if target in ("gke", "queued") and not job.image:
        raise wrong(target, "image", job.image, "NAME@sha256:DIGEST, what the hosts run")
    _check_run_dir(job, target)
    if target == "gke":
        _check_gke(job)
    elif target == "queued":
        if not job.slice.api_type:
            raise wrong(target, "accelerator", job.accelerator, "one that the TPU API has")
        if not job.zone:
            raise wrong(target, "zone", job.zone, "a zone such as us-central2-b")
    elif not job.slice.sky_type:
        raise wrong(target, "accelerator", job.accelerator, "one that SkyPilot knows")
    elif is_tpu and job.slices > 1:
        raise wrong(target, "slices", job.slices, "1: SkyPilot joins no TPU slices")
    elif is_tpu and job.topology != (shape := job.slice.most_compact):
        raise wrong(target, "topology", job.topology, f"{shape}: SkyPilot asks for chips alone")


def check_filled(job: Job) -> None:
    """Refuse words of the template that are still to be filled in."""
    for name, value in dataclasses.asdict(job).items():
        if PLACEHOLDERS.search(str(value)):
            raise wrong("--apply", name, value, "your own instead of the words in capitals")


def _check_run_dir(job: Job, target: str) -> None:
    """A run folder on the disk of a host goes with it: a restart would find nothing again."""
    claim, _, mount = job.volume.partition(":")
    shared = BUCKET.fullmatch(job.run_dir) or (
        claim and f"{job.run_dir}/".startswith(f"{mount.rstrip('/')}/")
    )
    has_run = takes_run_dir(job.command) and (job.run_dir or job.command[0] == "train")
    if has_run and not shared:
        expected = "gs://BUCKET/FOLDER or s3://BUCKET/FOLDER: the disk of a host goes with it"
        if target == "gke":
            expected += "; or a folder below that of `volume`"
        raise wrong(target, "run_dir", job.run_dir, expected)
    if target == "queued" and not job.run_dir.startswith("gs://"):
        raise wrong(target, "run_dir", job.run_dir, "gs://BUCKET/FOLDER: VMs have gcloud")


def _check_gke(job: Job) -> None:
    for name in ("service_account", "queue", "priority"):
        if not re.fullmatch(DNS_NAME, value := getattr(job, name)):
            raise wrong(
                "gke", name, value, "lower-case letters, digits, - and .: a Kubernetes name"
            )
    mount = posixpath.normpath(job.volume.partition(":")[2]) if job.volume else ""
    if mount and mount in (SHM, posixpath.normpath(job.local_disk)):
        expected = f"a folder other than {SHM} and that of local_disk"
        raise wrong("gke", "volume", job.volume, expected)
