"""What becomes of a JobSet when its pods end: the rules of its manifest, replayed. Ends no pod.

After the controllers' sources: Kubernetes 1.31 `pkg/controller/job/pod_failure_policy.go`, and
JobSet 0.13 `pkg/controllers/{failure,success}_policy.go`. A Job fails by the first of its pods that
a FailJob rule names or that exceeds `backoffLimit`; its other pods are told to end, and once they
have, the JobSet asks its own rules, in order, over all Jobs that have failed by then.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, Literal, NamedTuple

from ..errors import UserError

LOOK_S = 1.0  # the Job controller judges pods together that end within (syncJobBatchPeriod)
EVICTED = "DisruptionTarget"  # the condition of a pod that is evicted, preempted or drained

type Manifest = Mapping[str, Any]
type JobName = tuple[str, int]
"""Of a replicated job, and the index of one of its replicas."""


class Ended(NamedTuple):
    """A pod that has ended."""

    job: JobName
    host: int
    code: int
    """As a container shows it: 128 + the number of a signal."""
    at_s: float
    conditions: tuple[str, ...] = ()
    """Those that are true, such as DisruptionTarget."""


class Verdict(NamedTuple):
    """What the controllers do next."""

    action: Literal["wait", "complete", "restart", "fail"]
    why: str = ""
    counted: bool = False
    """A restart that counts towards `maxRestarts`."""
    failing: tuple[JobName, ...] = ()
    """Jobs that have failed; their pods that go on get SIGTERM."""


class _Failure(NamedTuple):
    """The condition of a failed Job."""

    reason: str
    message: str
    at_s: float


def verdict(manifest: Manifest, exits: Iterable[Ended], restarts: int = 0) -> Verdict:
    """What follows from the pods of this attempt that have ended so far.

    restarts: those before it that counted.
    """
    spec, ended = manifest["spec"], sorted(exits, key=lambda each: each.at_s)
    failed: dict[JobName, _Failure] = {}
    over: set[JobName] = set()
    complete: set[JobName] = set()
    for name, job in jobs(manifest).items():
        own = [each for each in ended if each.job == name]
        size = job.get("completions", 1)
        if failure := _failure(manifest, name, job, own):
            failed[name] = failure
            if len({each.host for each in own}) == size:
                over.add(name)
        elif {each.host for each in own if each.code == 0} == {*range(size)}:
            complete.add(name)
    gone = {name: failure for name, failure in failed.items() if name in over}
    if gone:
        return _by_policy(spec.get("failurePolicy"), gone, restarts)._replace(failing=tuple(failed))
    policy = spec.get("successPolicy") or {}
    targets = policy.get("targetReplicatedJobs") or [
        each["name"] for each in spec["replicatedJobs"]
    ]
    wanted = {name for name in jobs(manifest) if name[0] in targets}
    enough = any if policy.get("operator") == "Any" else all
    if not failed and enough(name in complete for name in wanted):
        return Verdict("complete", "all pods have ended with 0")
    return Verdict("wait", failing=tuple(failed))


def jobs(manifest: Manifest) -> dict[JobName, Manifest]:
    """The Jobs of a JobSet, each with the spec of its template."""
    return {
        (each["name"], index): each["template"]["spec"]
        for each in manifest["spec"]["replicatedJobs"]
        for index in range(each.get("replicas", 1))
    }


def _failure(
    manifest: Manifest, name: JobName, job: Manifest, ended: list[Ended]
) -> _Failure | None:
    """How a Job has failed, if it has; a pod that is ignored, or within the limit, is replaced."""
    count, first_s = 0, ended[0].at_s if ended else 0.0
    for _, looked_at in groupby(ended, key=lambda each: (each.at_s - first_s) // LOOK_S):
        together = [each for each in looked_at if each.code]
        found = [_matched(manifest, job, each) for each in together]
        # A rule that fails the Job comes before the limit.
        for each, (action, message) in zip(together, found, strict=True):
            if action == "FailJob":
                return _Failure("PodFailurePolicy", message, each.at_s)
        count += sum(action != "Ignore" for action, _ in found)
        if count > job.get("backoffLimit", 6):
            message = "Job has reached the specified backoff limit"
            return _Failure("BackoffLimitExceeded", message, together[-1].at_s)
    return None


def _matched(manifest: Manifest, job: Manifest, pod: Ended) -> tuple[str, str]:
    """The action of the first rule that names a failed pod, and the controller's words for it."""
    about = manifest["metadata"]
    full = f"{about.get('namespace', 'default')}/{about['name']}-{pod.job[0]}-{pod.job[1]}"
    full += f"-{pod.host}-00000"
    for number, rule in enumerate((job.get("podFailurePolicy") or {}).get("rules", ())):
        action, words = rule["action"], ""
        if codes := rule.get("onExitCodes"):
            names = [each["name"] for each in job["template"]["spec"]["containers"]]
            name = codes.get("containerName") or names[0]
            if name in names and (pod.code in codes["values"]) == (codes["operator"] == "In"):
                words = f"Container {name} for pod {full} failed with exit code {pod.code}"
        elif conditions := _true(rule) & {*pod.conditions}:
            words = f"Pod {full} has condition {min(conditions)}"
        if words:
            return action, f"{words} matching {action} rule at index {number}"
    return "Count", ""


def _true(rule: Manifest) -> set[str]:
    patterns = rule.get("onPodConditions") or ()
    return {each["type"] for each in patterns if each.get("status", "True") == "True"}


def _by_policy(
    policy: Manifest | None, failed: Mapping[JobName, _Failure], restarts: int
) -> Verdict:
    """What a JobSet does about Jobs that have failed."""
    name, failure = min(failed.items(), key=lambda item: item[1].at_s)
    if policy is None:
        return Verdict("fail", f"{_named(name)}: {failure.message}; there is no failurePolicy")
    action, rule = "RestartJobSet", "no rule"
    for number, each in enumerate(policy.get("rules") or ()):
        if matching := {n: f for n, f in failed.items() if _applies(each, n, f)}:
            name, failure = min(matching.items(), key=lambda item: item[1].at_s)
            action, rule = each["action"], f"rule {each.get('name', f'failurePolicyRule{number}')}"
            break
    why = f"{rule} for {_named(name)}: {failure.message}"
    match action:
        case "FailJobSet":
            return Verdict("fail", why)
        case "RestartJobSetAndIgnoreMaxRestarts":
            return Verdict("restart", why)
        case "RestartJobSet":
            if restarts >= (most := policy.get("maxRestarts", 0)):
                return Verdict("fail", f"{why}; maxRestarts {most} is reached")
            return Verdict("restart", why, counted=True)
    raise UserError(
        got=f"the action {action} of {rule}",
        expected="FailJobSet, RestartJobSet or RestartJobSetAndIgnoreMaxRestarts",
        do="take one of these: the others need a feature gate of JobSet, and are not replayed",
    )


def _applies(rule: Manifest, name: JobName, failure: _Failure) -> bool:
    """Each list that a rule has must match; one without lists matches every failure."""
    reasons, patterns, targets = (
        rule.get(key) or None
        for key in ("onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs")
    )
    return (
        (reasons is None or failure.reason in reasons)
        # RE2 there: plain patterns mean the same in both.
        and (patterns is None or any(re.search(each, failure.message) for each in patterns))
        and (targets is None or name[0] in targets)
    )


def _named(name: JobName) -> str:
    return f"Job {name[0]}-{name[1]}"
