"""The manifest: what it asks for, and what of it restarts."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ...errors import Exit
from .. import rendered
from ..job import FAULTS, FINAL
from ..jobset import jobset
from ..lint import lint
from ..rendered import render, to_yaml
from ..restarts import EVICTED, Ended, verdict
from .jobs import IMAGE, job_of, parts, tool

GPUS = {"accelerator": "h100", "topology": "2"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"runAsUser": 0}),
        (GPUS, None),
        (GPUS | {"volume": "data:/mnt"}, {"fsGroup": 1000}),
        (GPUS | {"volume": "data:/mnt", "local_disk": "/mnt/disks/ssd"}, {"runAsUser": 0}),
    ],
)
def test_who_a_pod_runs_as(tmp_path: Path, changes: dict[str, Any], expected: Any) -> None:
    manifest = jobset(job_of(tmp_path, **changes))
    assert parts(manifest)[2].get("securityContext") == expected
    assert lint(manifest) == []


def test_memory_of_the_node_takes_the_place_of_that_of_the_pod(tmp_path: Path) -> None:
    manifest = jobset(job_of(tmp_path, local_disk="/dev/shm"))
    _, _, pod, main = parts(manifest)
    on_node = {"path": "/dev/shm", "type": "DirectoryOrCreate"}
    assert pod["volumes"] == [{"name": "local", "hostPath": on_node}]
    assert main["volumeMounts"] == [{"name": "local", "mountPath": "/dev/shm"}]
    assert lint(manifest) == []


def test_the_driver_of_gpus_is_found_and_a_missing_backend_too(tmp_path: Path) -> None:
    for changes, backends in (({}, "tpu,cpu"), (GPUS, "cuda,cpu")):
        env = {
            v["name"]: v.get("value") for v in parts(jobset(job_of(tmp_path, **changes)))[3]["env"]
        }
        assert env["JAX_PLATFORMS"] == backends
        assert env.get("LD_LIBRARY_PATH", "").startswith("/usr/local/nvidia") == bool(changes)
    given = job_of(tmp_path, **GPUS, env={"LD_LIBRARY_PATH": "/mine"})
    assert {"name": "LD_LIBRARY_PATH", "value": "/mine"} in parts(jobset(given))[3]["env"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"spot": True}, "pods about 15 s"),
        ({"spot": True, "grace_s": 15}, ""),
        (GPUS, "primary network card"),
    ],
)
def test_what_a_manifest_cannot_say_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(rendered, "has_schemas", lambda: True)
    notes = render(job_of(tmp_path, **changes), "gke", tmp_path).notes
    assert [words in note for note in notes] == [True] * bool(words)


def test_a_slice_is_a_job_and_a_host_a_pod(tmp_path: Path) -> None:
    spec, job, pod, main = parts(jobset(job_of(tmp_path, slices=3, retries=7, grace_s=90)))
    assert spec["replicatedJobs"][0]["replicas"] == 3
    assert job["completions"] == job["parallelism"] == 4
    assert main["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert (pod["terminationGracePeriodSeconds"], spec["failurePolicy"]["maxRestarts"]) == (90, 7)
    assert main["args"] == ["train", "demo", "--seed", "3", "--run-dir", "gs://acme/runs/acorn"]
    env = {each["name"]: each for each in main["env"]}
    assert env["MEGASCALE_COORDINATOR_ADDRESS"]["value"] == "acorn-slice-0-0.acorn"
    assert env["MEGASCALE_SLICE_ID"]["valueFrom"] == env["JOBSET_JOB_INDEX"]["valueFrom"]
    assert env["JOBSET_PARALLELISM"]["value"] == "4"
    assert not {"hostNetwork", "hostPID", "serviceAccountName"} & {*pod}
    assert main["securityContext"] == {"allowPrivilegeEscalation": False}


def test_what_is_asked_for_is_there_and_nothing_else(tmp_path: Path) -> None:
    plain = jobset(job_of(tmp_path))
    assert "labels" not in plain["metadata"]
    assert not [v for v in parts(plain)[3]["env"] if v["name"].startswith("MEGASCALE")]
    asked = {"spot": True, "queue": "team", "priority": "high", "service_account": "trainer"}
    asked |= {"host_network": True, "privileged": True, "volume": "data:/mnt"}
    asked |= {"local_disk": "/mnt/disks/ssd"}
    manifest = jobset(job_of(tmp_path, **asked, env={"A": "1e3"}))
    assert lint(manifest) == []
    labels = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "high"}
    assert manifest["metadata"]["labels"] == labels
    _, _, pod, main = parts(manifest)
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["hostNetwork"] is main["securityContext"]["privileged"] is True
    assert {"name": "A", "value": "1e3"} in main["env"]
    assert pod["volumes"][1] == {"name": "shared", "persistentVolumeClaim": {"claimName": "data"}}
    on_node = {"path": "/mnt/disks/ssd", "type": "DirectoryOrCreate"}
    assert pod["volumes"][2] == {"name": "local", "hostPath": on_node}
    assert {"name": "local", "mountPath": "/mnt/disks/ssd"} in pod["containers"][0]["volumeMounts"]
    assert "priorityClassName" not in pod
    assert parts(jobset(job_of(tmp_path, priority="high")))[2]["priorityClassName"] == "high"
    # One host needs no node pool for itself, and GPU nodes of one pool serve many jobs.
    assert "annotations" in plain["metadata"]
    for other in ({"topology": "2x4"}, {"accelerator": "h100", "topology": "2"}):
        assert "annotations" not in jobset(job_of(tmp_path, **other))["metadata"]


SHAPES = [("v5e", "1x1"), ("v5e", "16x16"), ("v6e", "2x4"), ("v4", "2x2x1"), ("v5p", "4x4x8")]
SHAPES += [("tpu7x", "2x2x2"), ("h100", "1"), ("gb200", "16")]


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize(("accelerator", "topology"), SHAPES)
def test_every_topology_is_clean(
    tmp_path: Path, accelerator: str, topology: str, slices: int
) -> None:
    job = job_of(tmp_path, accelerator=accelerator, topology=topology, slices=slices)
    assert lint(jobset(job)) == []
    first, second = (render(job, "gke", tmp_path).text for _ in range(2))
    assert first == second
    assert yaml.safe_load(first) == jobset(job)
    assert "&id" not in first, "an alias: other parsers may not know it"


@pytest.mark.parametrize(
    "text", ["1e3", "0x1F", "012", "1_000", "12:30", ".5", "+1", "y", "No", "~"]
)
def test_texts_stay_texts_in_any_yaml(text: str) -> None:
    assert re.fullmatch(r"a: (\"|').+(\"|')\n", to_yaml({"a": text}))


@pytest.mark.skipif(not tool("kubectl"), reason="no kubectl")
def test_the_parser_of_kubectl_reads_the_same(tmp_path: Path) -> None:
    odd = {"A": "1e3", "B": "on", "C": "0x1F", "D": "12:30", "E": "n", "F": "é \\ \" '", "G": "1_0"}
    manifest = jobset(job_of(tmp_path, env=odd))
    (tmp_path / "job.yaml").write_text(to_yaml(manifest))
    (tmp_path / "kustomization.yaml").write_text("resources: [job.yaml]")
    command = ["kubectl", "kustomize", str(tmp_path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert yaml.safe_load(text) == manifest


def ends(*codes: int, slice_: int = 0, evicted: bool = False) -> list[Ended]:
    conditions = (EVICTED,) if evicted else ()
    return [Ended(("slice", slice_), i, code, 2.0 * i, conditions) for i, code in enumerate(codes)]


def test_every_code_of_ours_is_in_one_group() -> None:
    assert [*FINAL] == [1, 2, 3, 130]
    assert {*Exit} == {Exit.DONE, Exit.PREEMPTED, *FINAL} | ({*FAULTS} & {*Exit})
    assert not {*FAULTS} & {Exit.DONE, Exit.PREEMPTED, *FINAL}


@pytest.mark.parametrize("code", [*FINAL, *FAULTS, Exit.PREEMPTED, 127])
@pytest.mark.parametrize("spot", [False, True])
def test_an_exit_code_has_one_meaning(tmp_path: Path, code: int, spot: bool) -> None:
    manifest = jobset(job_of(tmp_path, retries=1, spot=spot))
    first = verdict(manifest, ends(*[code] * 4))
    last = verdict(manifest, ends(*[code] * 4), restarts=1)
    if code in FINAL:
        assert first.action == last.action == "fail"
    elif code == Exit.PREEMPTED or (spot and code == Exit.PEER_LOST):
        assert (first.action, first.counted, last.action) == ("restart", False, "restart")
    else:
        assert (first.action, first.counted, last.action) == ("restart", True, "fail")


def test_who_is_asked_first(tmp_path: Path) -> None:
    manifest = jobset(job_of(tmp_path, slices=2, retries=0))
    # A bug in one slice, which the other one only sees as a lost peer.
    assert verdict(manifest, ends(44, 44, 44, 44) + ends(1, 1, 1, 1, slice_=1)).action == "fail"
    # What a pod says while it is evicted is no bug, and no eviction eats a retry.
    for code in (1, 44, 137, 143):
        evicted = verdict(manifest, ends(code, 44, 44, 44, evicted=True))
        assert (evicted.action, evicted.counted) == ("restart", False)


@pytest.mark.parametrize(
    ("spot", "slices", "counted", "rule"),
    [
        (True, [ends(44, 44, 44, 44), ends(137, 44, 44, 44, slice_=1)], True, "fault"),
        (True, [ends(44, 44, 44, 44), ends(44, 44, 44, 43, slice_=1)], False, "peer_lost"),
        (True, [ends(44, 44, 44, 44)], False, "peer_lost"),  # judged alone
        (False, [ends(44, 44, 44, 44)], True, "fault"),
        (True, [ends(137, 44, 44, 44), ends(42, 42, 42, 42, slice_=1)], False, "preempted"),
        (True, [ends(44, 44, 44, 44), ends(43, 43, 43, 43, slice_=1)], True, "fault"),
    ],
)
def test_a_lost_peer_is_free_on_spot_where_no_slice_tells_of_a_fault(
    tmp_path: Path, spot: bool, slices: list[list[Ended]], counted: bool, rule: str
) -> None:
    manifest = jobset(job_of(tmp_path, slices=2, spot=spot))
    found = verdict(manifest, [each for ended in slices for each in ended])
    assert (found.action, found.counted) == ("restart", counted)
    assert f"rule {rule} for" in found.why


XPK = [("v5e", "4x4", "v5litepod-16"), ("v6e", "8x8", "v6e-64"), ("v5p", "2x2x4", "v5p-32")]
SAME = ("replicas", "parallelism", "completions", "backoffLimit", "nodeSelector", "resources")


@pytest.mark.skipif(not tool("xpk"), reason="optional: no xpk")
@pytest.mark.parametrize(("accelerator", "topology", "api"), XPK)
def test_xpk_asks_for_the_same_hardware(
    tmp_path: Path, accelerator: str, topology: str, api: str
) -> None:
    file = tmp_path / "xpk.yaml"
    words = f"--cluster c --workload acorn --tpu-type {api} --num-slices 2 --docker-image {IMAGE}"
    words += f" --zone us-central2-b --project p --command true --output-manifest-file {file}"
    command = [str(tool("xpk")), "workload", "create", "--dry-run", *words.split()]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout[-2000:]
    theirs = yaml.safe_load(file.read_text())
    ours = jobset(job_of(tmp_path, accelerator=accelerator, topology=topology, slices=2))
    for manifest in (theirs, ours):
        manifest["spec"] |= manifest["spec"]["replicatedJobs"][0]
    for their, our in zip(parts(theirs), parts(ours), strict=True):
        assert {key: their.get(key) for key in SAME} == {key: our.get(key) for key in SAME}
