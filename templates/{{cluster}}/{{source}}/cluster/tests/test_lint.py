"""Every mistake that is planted in a manifest is found, before anything is printed."""

import copy
from pathlib import Path
from typing import Any

import pytest

from .. import rendered
from ..jobset import jobset
from ..lint import has_schemas, lint
from ..rendered import render
from .jobs import job_of, parts

needs_schemas = pytest.mark.skipif(
    not has_schemas(), reason="kubernetes-validate is missing: uv sync"
)

GONE = object()
RULE, POD_RULE = "S.failurePolicy.rules.0", "J.podFailurePolicy.rules.0"
CODES = "J.podFailurePolicy.rules.1.onExitCodes"
TPU = "google.com/tpu"
# What lint says of a mistake -> where it is planted: S in the JobSet, J its Job, P the pod, C the
# container; and what stands there then.
PLANTED: dict[str, tuple[str, Any]] = {
    "maxRestart: no such field": ("S.failurePolicy.maxRestart", 3),
    "replicatedJob: no such field": ("S.replicatedJob", []),
    "replicatedJobs: missing": ("S.replicatedJobs", GONE),
    "replica: no such field; replicas?": ("S.replicatedJobs.0.replica", 2),
    "instead of FailJobSet or": (f"{RULE}.action", "Fail"),
    "instead of BackoffLimitExceeded": (f"{RULE}.onJobFailureReasons", ["PodFailure"]),
    "'10' instead of a number": ("S.failurePolicy.maxRestarts", "10"),
    "less than 0": ("S.failurePolicy.maxRestarts", -1),
    "a name of letters": (f"{RULE}.name", "a-bug"),
    "name: missing": (f"{RULE}.name", GONE),
    "two rules of one name": (f"{RULE}.name", "preempted"),
    "no job slices": (f"{RULE}.targetReplicatedJobs", ["slices"]),
    "pattern '('": (f"{RULE}.onJobFailureMessagePatterns", ["("]),
    "4} is no pod": ("S.coordinator", {"replicatedJob": "slice", "podIndex": 4}),
    "'slices'} is no pod": ("S.coordinator", {"replicatedJob": "slices"}),
    "of 63 letters": ("S.replicatedJobs.0.replicas", 10**50),
    "not unique": ("S.replicatedJobs", []),
    # What the API server checks only when the controller makes a Job.
    "'OnFailure' instead of Never": ("P.restartPolicy", "OnFailure"),
    "restartPolicy: missing": ("P.restartPolicy", GONE),
    "0 is needed": ("J.backoffLimit", 3),
    "are not the hosts": ("J.parallelism", 3),
    "completions: missing": ("J.completions", GONE),
    "instead of Indexed": ("J.completionMode", "NonIndexed"),
    "instead of Failed": ("J.podReplacementPolicy", "TerminatingOrFailed"),
    "instead of FailJob or": (f"{POD_RULE}.action", "FailJobSet"),
    "onExitCode: no such field": (f"{POD_RULE}.onExitCode", {}),
    "one of onExitCodes and": (f"{POD_RULE}.onPodConditions", GONE),
    "status: missing": (f"{POD_RULE}.onPodConditions.0.status", GONE),
    "in order, each once": (f"{CODES}.values", [42, 1]),
    "0 is no failure": (f"{CODES}.values", [0, 1]),
    "no container worker": (f"{CODES}.containerName", "worker"),
    "more than 20": ("J.podFailurePolicy.rules", [{"action": "Count"}] * 21),
    # Of pods.
    "are not the chips of 4x4": ("C.resources.limits", {TPU: 8}),
    "requests and limits": ("C.resources.requests", {TPU: 1}),
    "4 instead of a text": ("C.env.0.value", 4),
    "env: a name twice": ("C.env.0.name", "JOBSET_PARALLELISM"),
    "a mountPath twice": (
        "C.volumeMounts",
        [{"name": "shm", "mountPath": path} for path in ("/dev/shm", "/dev//shm/")],
    ),
    "env: null": ("C.env", None),
    "imagePullSecrets.0.name: null": ("P.imagePullSecrets", [{"name": None}]),
    "ClusterFirstWithHostNet": ("P.hostNetwork", True),
    "no time for a save": ("P.terminationGracePeriodSeconds", 0),
    "instead of names and texts": ("P.nodeSelector.a", True),
    "instead of a list": ("P.containers", {}),
    "none, or two of one name": ("P.containers", []),
    "instead of fields": ("J.template", "pod"),
}


def planted(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The manifest with a value at a path, or without what is there."""
    manifest = copy.deepcopy(manifest)
    start, *keys = path.split(".")
    at = dict(zip("SJPC", parts(manifest), strict=True))[start]
    *before, last = [int(key) if key.isdecimal() else key for key in keys]
    for key in before:
        at = at[key]
    if value is GONE:
        del at[last]
    else:
        at[last] = value
    return manifest


@pytest.mark.parametrize("words", PLANTED)
def test_a_planted_mistake_is_found(tmp_path: Path, words: str) -> None:
    found = lint(planted(jobset(job_of(tmp_path)), *PLANTED[words]))
    assert any(words in complaint for complaint in found), found


@needs_schemas
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("C.imagePullpolicy", "Always"),
        ("J.backoffLimits", 0),
        ("P.tolerations", {"key": "x"}),
        ("C.args", "train"),
        ("C.securityContext.privilege", True),
    ],
)
def test_fields_of_job_and_pod_are_those_of_kubernetes(
    tmp_path: Path, path: str, value: Any
) -> None:
    found = lint(planted(jobset(job_of(tmp_path)), path, value))
    assert any(path.rpartition(".")[2] in complaint for complaint in found), found


def test_what_lint_refuses_is_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered, "lint", lambda manifest: [".spec: planted"])
    with pytest.raises(ValueError, match="planted"):
        render(job_of(tmp_path), "gke", tmp_path)
