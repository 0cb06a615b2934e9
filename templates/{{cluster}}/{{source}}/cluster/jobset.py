"""A job as a JobSet for Kubernetes: one Job a slice, one pod a host. Sends nothing.

What restarts and what does not, in the words of the two controllers (Kubernetes 1.31, JobSet 0.10):

- `backoffLimit` 0 and `restartPolicy` Never: any pod that fails fails its Job, because the other
  hosts of a collective cannot go on without it. The JobSet then makes all Jobs again.
- A Job that fails by a rule of its `podFailurePolicy` has the reason PodFailurePolicy whatever the
  rule, so the reason alone cannot tell a preemption from a bug. Its message can: it ends with
  "has condition DisruptionTarget matching FailJob rule ..." or "failed with exit code 42 matching
  FailJob rule ...", and rules of a JobSet match messages by `onJobFailureMessagePatterns`. An older
  JobSet does not know that field, and kubectl refuses the manifest then.
- DisruptionTarget comes first: what a pod says while it is evicted is no bug.
- Rules of a JobSet are asked in order over all Jobs that have failed, and ended, by then. A bug in
  any slice comes first, since the other slices lose a peer by it; then preemptions, which do not
  count as restarts; then faults, 43 and signals among them, which no rule of the pods names, so
  that their Job fails by its `backoffLimit`: they count towards `maxRestarts`.
- On spot capacity 44 is free, after faults: a machine that vanishes without notice is seen by its
  peers only, and its own pod is told as gone minutes later. Elsewhere 44 is a fault.
- A race remains on spot: a slice that has lost a peer may have ended, and be judged alone, before
  the slice of that peer has. The fault there is then a free restart too.

No flags of XLA or libtpu are set: none was measured to pay, and a hang is ended by the run's own
watch. `[env]` of the job file takes yours.
"""

import posixpath
from typing import Any

from ..errors import Exit
from ..records.hardware import Slice
from .job import FINAL, SLICE_NAME, Job
from .targets import SHM

NODE_POOL = "cloud.google.com/gke-nodepool"
# Where GKE mounts the driver of a node's GPUs, which the image does not have.
DRIVER = {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"}


def jobset(job: Job) -> dict[str, Any]:
    """The manifest as plain data, equal for equal jobs."""
    slice_ = job.slice
    metadata: dict[str, Any] = {"name": job.name, "namespace": job.namespace}
    if job.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": job.queue}
        if job.priority:
            metadata["labels"]["kueue.x-k8s.io/priority-class"] = job.priority
    if slice_.is_tpu and slice_.hosts > 1:
        # One Job to one node pool, which is one slice: between two slices there is no ICI.
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": NODE_POOL}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.retries,
                # A pod of the last attempt that still ends must not join the coordinator of the
                # next one, which has the same name, nor hold the run folder.
                "restartStrategy": "BlockingRecreate",
                "rules": _rules(job),
            },
            "replicatedJobs": [
                {
                    "name": SLICE_NAME,
                    "replicas": job.slices,
                    "template": {"spec": _job(job, slice_)},
                }
            ],
        },
    }


def _rules(job: Job) -> list[dict[str, Any]]:
    """What a JobSet does about failed Jobs; the first rule that applies to any of them decides."""
    free = "RestartJobSetAndIgnoreMaxRestarts"
    by_code = "exit code ({}) matching"
    evicted = "condition DisruptionTarget "
    rules = [
        _rule("bug", "FailJobSet", [by_code.format("|".join(str(int(code)) for code in FINAL))]),
        _rule("preempted", free, [evicted, by_code.format(int(Exit.PREEMPTED))]),
        {
            "name": "fault",
            "action": "RestartJobSet",
            "onJobFailureReasons": ["BackoffLimitExceeded"],
        },
    ]
    if job.spot:
        rules.append(_rule("peer_lost", free, [by_code.format(int(Exit.PEER_LOST))]))
    return rules


def _job(job: Job, slice_: Slice) -> dict[str, Any]:
    """The Job of a slice. All codes that a rule of the JobSet names must fail it by a rule."""
    evicted = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    free = (Exit.PREEMPTED, *([Exit.PEER_LOST] if job.spot else []))
    codes = sorted(map(int, (*FINAL, *free)))
    named = {"onExitCodes": {"containerName": "main", "operator": "In", "values": codes}}
    return {
        "backoffLimit": 0,
        "completionMode": "Indexed",
        "completions": slice_.hosts,
        "parallelism": slice_.hosts,
        "podFailurePolicy": {"rules": [{"action": "FailJob"} | each for each in (evicted, named)]},
        "template": {"spec": _pod(job, slice_)},
    }


def _rule(name: str, action: str, patterns: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": patterns,
    }


def _pod(job: Job, slice_: Slice) -> dict[str, Any]:
    """The pod of a host."""
    chips = "google.com/tpu" if slice_.is_tpu else "nvidia.com/gpu"
    if slice_.is_tpu:
        selector = {
            "cloud.google.com/gke-tpu-accelerator": slice_.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": slice_.topology,
        }
    else:
        selector = {"cloud.google.com/gke-accelerator": slice_.gke_accelerator}
    tolerations = [{"key": chips, "operator": "Exists", "effect": "NoSchedule"}]
    if job.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        tolerations.append(spot | {"effect": "NoSchedule"})
    if job.reservation:
        selector["cloud.google.com/reservation-name"] = job.reservation
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace_s,
        "nodeSelector": selector,
        "tolerations": tolerations,
    }
    if job.priority and not job.queue:
        pod["priorityClassName"] = job.priority
    if job.service_account:
        pod["serviceAccountName"] = job.service_account
    # The image's user has the id 1000. Devices of TPUs are root's, and so is a folder of the node
    # that is made for the first pod; a volume can be handed over instead.
    if slice_.is_tpu or job.local_disk:
        pod["securityContext"] = {"runAsUser": 0}
    elif job.volume:
        pod["securityContext"] = {"fsGroup": 1000}
    if job.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    container: dict[str, Any] = {
        "name": "main",
        "image": job.image,
        "args": job.arguments,
        "env": _environment(job, slice_),
        "resources": {"limits": {chips: slice_.chips_per_host}},
        "securityContext": {"privileged": True}
        if job.privileged
        else {"allowPrivilegeEscalation": False},
    }
    container["volumeMounts"], pod["volumes"] = _volumes(job)
    return pod | {"containers": [container]}


def _volumes(job: Job) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Where a container mounts what, and what that is."""
    volumes: list[dict[str, Any]] = []
    mounts = []
    if posixpath.normpath(job.local_disk) != SHM:
        # A container's own has 64 MiB, too little for NCCL and for loaders of data.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": SHM})
    if job.volume:
        claim, _, folder = job.volume.partition(":")
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "shared", "mountPath": folder})
    if job.local_disk:
        own = {"path": job.local_disk, "type": "DirectoryOrCreate"}
        volumes.append({"name": "local", "hostPath": own})
        mounts.append({"name": "local", "mountPath": job.local_disk})
    return mounts, volumes


def _environment(job: Job, slice_: Slice) -> list[dict[str, Any]]:
    """What tells a process its place. Kubernetes itself adds JOB_COMPLETION_INDEX."""
    env: list[dict[str, Any]] = [
        {"name": "JOBSET_NAME", **_label("jobset-name")},
        {"name": "JOBSET_REPLICATED_JOB", **_label("replicatedjob-name")},
        {"name": "JOBSET_REPLICAS", **_label("replicatedjob-replicas")},
        {"name": "JOBSET_JOB_INDEX", **_label("job-index")},
        {"name": "JOBSET_PARALLELISM", "value": str(slice_.hosts)},
    ]
    if slice_.is_tpu and job.slices > 1:
        first = f"{job.name}-{SLICE_NAME}-0-0.{job.name}"
        env += [
            {"name": "MEGASCALE_NUM_SLICES", "value": str(job.slices)},
            {"name": "MEGASCALE_SLICE_ID", **_label("job-index")},
            {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": first},
        ]
    given = job.environ if slice_.is_tpu else DRIVER | job.environ
    return env + [{"name": name, "value": value} for name, value in sorted(given.items())]


def _label(name: str) -> dict[str, Any]:
    """The value of a label that JobSet puts on its pods, by the downward API."""
    path = f"metadata.labels['jobset.sigs.k8s.io/{name}']"
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}
