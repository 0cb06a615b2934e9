"""What a JobSet does about the ends of its pods, case by case as its sources say."""

import copy
from typing import Any

import pytest

from ...errors import Exit, UserError
from ..restarts import EVICTED, Ended, verdict

CODES = {"onExitCodes": {"containerName": "main", "operator": "In", "values": [1, 2, 42]}}
BUG = {"action": "FailJobSet", "onJobFailureMessagePatterns": ["exit code (1|2) matching"]}
FREE = {"action": "RestartJobSetAndIgnoreMaxRestarts", "name": "preempted"} | {
    "onJobFailureReasons": ["PodFailurePolicy"],
    "onJobFailureMessagePatterns": ["exit code 42 matching", "condition DisruptionTarget "],
}


def manifest(replicas: int = 1, hosts: int = 2, *rules: dict[str, Any], **spec: Any) -> Any:
    evicted = {"onPodConditions": [{"type": EVICTED}]}
    job = {
        "backoffLimit": 0,
        "completions": hosts,
        "podFailurePolicy": {
            "rules": [each | {"action": "FailJob"} for each in (evicted, CODES)],
        },
        "template": {"spec": {"containers": [{"name": "main"}]}},
    }
    slices = {"name": "slice", "replicas": replicas, "template": {"spec": job}}
    policy = {"maxRestarts": 2, "rules": [{"name": "bug"} | BUG, FREE, *rules]}
    base = {"failurePolicy": policy, "replicatedJobs": [slices]}
    return {"metadata": {"name": "demo"}, "spec": base | spec}


def ended(*codes: int | str, job: int = 0, every_s: float = 5.0, start_s: float = 0) -> list[Ended]:
    """Pods that end one after the other; "143e" = evicted, with that code."""
    return [
        Ended(
            *(("slice", job), index, int(str(code).rstrip("e")), start_s + every_s * index),
            (EVICTED,) if str(code).endswith("e") else (),
        )
        for index, code in enumerate(codes)
    ]


@pytest.mark.parametrize(
    ("exits", "restarts", "action", "counted", "words"),
    [
        (ended(), 0, "wait", False, ""),
        (ended(0), 0, "wait", False, ""),
        (ended(0, 0), 0, "complete", False, "ended with 0"),
        (ended(1), 0, "wait", False, ""),  # until its other pod has ended
        (ended(1, 44), 0, "fail", False, "rule bug"),
        (ended(42, 42), 9, "restart", False, "rule preempted"),
        (ended(44, 44), 1, "restart", True, "no rule"),
        (ended(43, 143), 2, "fail", False, "maxRestarts 2 is reached"),
        (ended(137, 44), 0, "restart", True, "the specified backoff limit"),
        (ended("137e", 44), 2, "restart", False, "condition DisruptionTarget"),
        (ended("1e", 44), 2, "restart", False, "condition DisruptionTarget"),  # its rule is first
        (ended(44, 1), 0, "restart", True, "no rule"),  # the Job had failed by then
        (ended(44, 1, every_s=0.3), 0, "fail", False, "rule bug"),  # judged together
        (ended("0e", 0), 0, "complete", False, "ended with 0"),  # evicted, but done
    ],
)
def test_one_slice(
    exits: list[Ended], restarts: int, action: str, counted: bool, words: str
) -> None:
    found = verdict(manifest(), exits, restarts)
    assert (found.action, found.counted) == (action, counted)
    assert words in found.why


def test_a_failed_job_ends_its_other_pods_first() -> None:
    found = verdict(manifest(2), ended(137))
    assert (found.action, found.failing) == ("wait", (("slice", 0),))


def test_rules_are_asked_in_order_over_all_jobs_that_have_failed() -> None:
    first, second = ended(44, 44), ended(1, 1, job=1, start_s=1)
    assert verdict(manifest(2), first).action == "restart"
    found = verdict(manifest(2), [*second, *first])
    assert found.action == "fail"
    assert "slice-1" in found.why
    assert found.failing == (("slice", 0), ("slice", 1))
    targeted = manifest(2, 2, {"action": "FailJobSet", "targetReplicatedJobs": ["other"]})
    assert verdict(targeted, first).action == "restart"
    targeted["spec"]["failurePolicy"]["rules"][-1]["targetReplicatedJobs"] = ["slice"]
    assert verdict(targeted, first).action == "fail"
    last = targeted["spec"]["failurePolicy"]["rules"][-1]
    last["onJobFailureReasons"] = ["DeadlineExceeded"]
    assert verdict(targeted, first).action == "restart"


def test_the_first_rule_that_applies_decides() -> None:
    assert verdict(manifest(1, 2, {"action": "FailJobSet"}), ended(42, 42)).action == "restart"
    assert verdict(manifest(1, 2, {"action": "FailJobSet"}), ended(44, 44)).action == "fail"


def test_without_a_failure_policy_a_jobset_fails() -> None:
    assert verdict(manifest(failurePolicy=None), ended(42, 42)).action == "fail"


def test_success_is_of_all_jobs_unless_one_is_enough() -> None:
    one = ended(0, 0)
    assert verdict(manifest(2), one).action == "wait"
    assert verdict(manifest(2, successPolicy={"operator": "Any"}), one).action == "complete"


def test_not_in_counts_no_success_and_ignored_pods_no_limit() -> None:
    given = manifest()
    job = given["spec"]["replicatedJobs"][0]["template"]["spec"]
    policy = job["podFailurePolicy"] = {"rules": [copy.deepcopy(CODES) | {"action": "FailJob"}]}
    policy["rules"][0]["onExitCodes"] |= {"operator": "NotIn", "values": [43]}
    assert "PodFailure" not in verdict(given, ended(0, 0)).why
    assert "exit code 7 matching" in verdict(given, ended(7, 0)).why
    assert "backoff limit" in verdict(given, ended(43, 0)).why
    policy["rules"][0]["action"] = "Ignore"
    assert verdict(given, ended(7, 7)).failing == ()
    job["backoffLimit"] = 2
    assert verdict(given, ended(43, 43)).failing == ()


def test_an_action_behind_a_feature_gate_is_refused() -> None:
    given = manifest(1, 2, {"action": "RestartJob"})
    with pytest.raises(UserError, match="RestartJob of rule"):
        verdict(given, ended(Exit.HUNG, Exit.HUNG))
