"""What is wrong with a JobSet manifest, found without a cluster. Changes nothing.

The API server checks the Jobs of a JobSet only when its controller makes them, and a wrong one then
fails where nobody looks; so their rules are checked here. JobSet's own fields are data in
`jobset_fields.json`. Those of Job and Pod are checked where `kubernetes-validate` is installed, as
it is by a plain `uv sync`.
"""

import difflib
import functools
import importlib.util
import json
import math
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .job import LABEL, MOST_LETTERS, POD_SUFFIX

RULE_NAME = r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"
KUBERNETES = "1.31"  # podFailurePolicy is stable since
TYPES = {"text": str, "number": int, "boolean": bool}
CHIPS = ("google.com/tpu", "nvidia.com/gpu")
TPU_TOPOLOGY = "cloud.google.com/gke-tpu-topology"


def lint(manifest: Any) -> list[str]:
    """Complaints, each with the path of what is wrong; none where a cluster would take it."""
    found = [*_nulls(manifest, ""), *_against(_form(), manifest, "")]
    return found or [*_jobset(manifest)]  # deeper rules rely on the form


def has_schemas() -> bool:
    """Whether fields of Job and Pod are checked too."""
    return importlib.util.find_spec("kubernetes_validate") is not None


@functools.cache
def _form() -> dict[str, Any]:
    data = json.loads(Path(__file__).with_name("jobset_fields.json").read_text("utf-8"))
    return dict(data["form"])


def _nulls(value: Any, path: str) -> Iterator[str]:
    """A null is a field that somebody forgot to fill; servers drop it or refuse it."""
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield from _nulls(inner, f"{path}.{key}")
    if value is None:
        yield f"{path}: null"


def _against(form: Any, value: Any, path: str) -> Iterator[str]:
    if isinstance(form, dict):
        known = {key.rstrip("!"): inner for key, inner in form.items() if key != "*"}
        if not isinstance(value, dict):
            yield f"{path}: {value!r} instead of fields"
            return
        for key, inner in value.items():
            if key in known:
                yield from _against(known[key], inner, f"{path}.{key}")
            elif "*" not in form:
                near = difflib.get_close_matches(str(key), known, n=1)
                yield f"{path}.{key}: no such field" + (f"; {near[0]}?" if near else "")
        yield from (
            f"{path}.{k[:-1]}: missing" for k in form if k[-1] == "!" and k[:-1] not in value
        )
    elif isinstance(form, list):
        if not isinstance(value, list):
            yield f"{path}: {value!r} instead of a list"
            return
        for index, inner in enumerate(value):
            yield from _against(form[0], inner, f"{path}.{index}")
    elif form == "texts":
        if not isinstance(value, dict) or any(type(v) is not str for v in value.values()):
            yield f"{path}: {value!r} instead of names and texts"
    elif form[0] == "=":
        if value not in form[1:].split("|"):
            yield f"{path}: {value!r} instead of {form[1:].replace('|', ' or ')}"
    elif form in TYPES and type(value) is not TYPES[form]:
        yield f"{path}: {value!r} instead of a {form}"


def _jobset(manifest: dict[str, Any]) -> Iterator[str]:
    spec, name = manifest["spec"], manifest["metadata"]["name"]
    jobs = {job["name"]: job for job in spec["replicatedJobs"]}
    if len(jobs) != len(spec["replicatedJobs"]) or not jobs:
        yield ".spec.replicatedJobs: names that are missing or not unique"
    for job in jobs.values():
        path = f".spec.replicatedJobs.{job['name']}.template.spec"
        yield from _job(job["template"]["spec"], path)
        hosts = job["template"]["spec"]["completions"]
        longest = f"{name}-{job['name']}-{job.get('replicas', 1) - 1}-{hosts - 1}{POD_SUFFIX}"
        if not re.fullmatch(LABEL, longest) or len(longest) > MOST_LETTERS:
            yield f".metadata.name: pods named {longest}, {len(longest)} of {MOST_LETTERS} letters"
    policy = spec.get("failurePolicy", {})
    rules = policy.get("rules", [])
    if policy.get("maxRestarts", 0) < 0:
        yield ".spec.failurePolicy.maxRestarts: less than 0"
    if len({rule["name"] for rule in rules}) != len(rules):
        yield ".spec.failurePolicy.rules: two rules of one name"
    for rule in rules:
        path = f".spec.failurePolicy.rules.{rule['name']}"
        if not re.fullmatch(RULE_NAME, rule["name"]) or len(rule["name"]) > 128:
            yield f"{path}: a name of letters, digits, _ , and : is needed, a letter first"
        yield from (
            f"{path}: no job {n}" for n in rule.get("targetReplicatedJobs", []) if n not in jobs
        )
        for pattern in rule.get("onJobFailureMessagePatterns", []):
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{path}: pattern {pattern!r}: {error}"
    if (first := spec.get("coordinator")) is not None:
        job = jobs.get(first["replicatedJob"], {})
        replicas, hosts = job.get("replicas", 1), job and job["template"]["spec"]["completions"]
        within = job and 0 <= first.get("jobIndex", 0) < replicas
        if not (within and 0 <= first.get("podIndex", 0) < hosts):
            yield f".spec.coordinator: {first} is no pod of this JobSet"


def _job(job: dict[str, Any], path: str) -> Iterator[str]:
    """Rules of a Job whose pods form one computation."""
    hosts, pod = job["completions"], job["template"]["spec"]
    if hosts < 1 or job["parallelism"] != hosts:
        yield f"{path}: completions {hosts} and parallelism {job['parallelism']} are not the hosts"
    if job["backoffLimit"] != 0:
        yield f"{path}.backoffLimit: 0 is needed, since no pod can be replaced alone"
    names = [container["name"] for container in _containers(pod)]
    rules = job.get("podFailurePolicy", {}).get("rules", [])
    if len(rules) > 20:
        yield f"{path}.podFailurePolicy.rules: more than 20"
    for index, rule in enumerate(rules):
        for complaint in _pod_rule(rule, names):
            yield f"{path}.podFailurePolicy.rules.{index}: {complaint}"
    for complaint in _pod(pod, hosts):
        yield f"{path}.template.spec.{complaint}"
    if has_schemas():
        yield from _schema(job, path)


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["containers"], *pod.get("initContainers", [])]


def _pod_rule(rule: dict[str, Any], containers: list[str]) -> Iterator[str]:
    if ("onExitCodes" in rule) == ("onPodConditions" in rule):
        yield "one of onExitCodes and onPodConditions is needed"
    if codes := rule.get("onExitCodes"):
        values = codes["values"]
        if not values or values != sorted({*values}) or len(values) > 255:
            yield f"values {values} instead of 1 to 255 numbers in order, each once"
        if 0 in values and codes["operator"] == "In":
            yield "0 is no failure"
        if codes.get("containerName") not in (None, *containers):
            yield f"no container {codes['containerName']}"


def _pod(pod: dict[str, Any], hosts: int) -> Iterator[str]:
    names = [container["name"] for container in _containers(pod)]
    if not pod["containers"] or len({*names}) != len(names):
        yield "containers: none, or two of one name"
    if pod.get("hostNetwork") and pod.get("dnsPolicy") != "ClusterFirstWithHostNet":
        yield "dnsPolicy: hostNetwork needs ClusterFirstWithHostNet to find other pods"
    if pod.get("terminationGracePeriodSeconds", 30) < 1:
        yield "terminationGracePeriodSeconds: no time for a save"
    tpus = 0
    for container in pod["containers"]:
        limits = container.get("resources", {}).get("limits", {})
        requests = container.get("resources", {}).get("requests", {})
        tpus += limits.get(CHIPS[0], 0)
        env = [variable["name"] for variable in container.get("env", [])]
        if len({*env}) != len(env):
            yield f"containers.{container['name']}.env: a name twice"
        mounts = [posixpath.normpath(m["mountPath"]) for m in container.get("volumeMounts", [])]
        if len({*mounts}) != len(mounts):
            yield f"containers.{container['name']}.volumeMounts: a mountPath twice"
        for chip in CHIPS:
            if requests.get(chip, limits.get(chip)) != limits.get(chip):
                yield f"containers.{container['name']}: requests and limits of {chip} differ"
    topology = pod.get("nodeSelector", {}).get(TPU_TOPOLOGY)
    if topology and tpus * hosts != math.prod(map(int, re.findall(r"\d+", topology))):
        yield f"containers: {hosts} hosts of {tpus} {CHIPS[0]} are not the chips of {topology}"


def _schema(job: Any, path: str) -> Iterator[str]:
    """Against the schemas of Kubernetes, where unknown fields are errors."""
    import kubernetes_validate

    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": job}
    try:
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(map(str, list(error.path)[1:]))
        yield f"{path}.{where}: {error.message}"
