"""The table of launchers: the environment of each gives its place, and a wrong one is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jax._src import clusters
from jax._src.clusters import cloud_tpu_cluster

from ...errors import UserError
from ..detect import JOB_VARIABLES, JOBSET, LAUNCHERS, PORT, Place, detect

TRIO = dict(zip(JOB_VARIABLES, ("host:1234", "4", "3"), strict=True))
SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_NTASKS": "8",  # of the job: in an interactive step it is not that of the step
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[007-009,12],other",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
ONE = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
GKE = {
    "JAX_FORCE_TPU_INIT": "1",
    "TPU_WORKER_ID": "1",
    "TPU_WORKER_HOSTNAMES": "t-0.s,t-1.s",
}
SLICES = GKE | {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "j-slice-0-0.j:8080",
}
POD = dict(zip(JOBSET, ("j", "slice", "2", "1", "2", "1"), strict=True))
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
MPI_TWO = MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPI_6 = MPI | {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::b9b,2620:10d::2]:43370"}


@pytest.mark.parametrize(
    ("environ", "launcher", "count", "index", "coordinator"),
    [
        ({}, "", 1, 0, ""),
        (TRIO, "variables", 4, 3, "host:1234"),
        (TRIO | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, "variables", 1, 0, "host:1234"),
        (SLURM, "Slurm", 2, 1, "gpu007:61443"),
        (SLURM | {"SLURM_STEP_NODELIST": "n0"}, "Slurm", 2, 1, "n0:61443"),
        (SLURM | {"SLURM_STEP_NODELIST": "n-0,n-1"}, "Slurm", 2, 1, "n-0:61443"),
        (SLURM | {"JAX_COORDINATOR_PORT": "77"}, "Slurm", 2, 1, "gpu007:77"),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "ib0:9"}, "Slurm", 2, 1, "ib0:9"),
        (SLURM | ONE, "", 1, 0, ""),
        (GKE, "TPU (GKE)", 2, 1, "t-0.s:8482"),
        (SLICES, "TPU (GKE)", 4, 3, "j-slice-0-0.j:8482"),
        (GKE | {"TPU_PROCESS_ADDRESSES": "a:1,b:1,c:1"}, "TPU (GKE)", 3, 1, "a:8482"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, "", 1, 0, ""),
        (POD, "JobSet", 4, 3, "j-slice-0-0.j:8482"),
        (POD | {"JOBSET_JOB_INDEX": "0"}, "JobSet", 4, 1, "j-slice-0-0.j:8482"),
        (MPI, "Open MPI", 4, 2, "10.96.0.1:62624"),
        (MPI_6, "Open MPI", 4, 2, "[fe80::b9b]:61441"),
        # Several at once: the order decides where they tell one number.
        (TRIO | SLURM | GKE | POD | MPI, "variables", 4, 3, "host:1234"),
        (SLURM | GKE, "Slurm", 2, 1, "gpu007:61443"),
        (SLICES | POD, "TPU (GKE)", 4, 3, "j-slice-0-0.j:8482"),
        (POD | MPI, "JobSet", 4, 3, "j-slice-0-0.j:8482"),
        # What a launcher below lacks, nobody needs.
        (GKE | {"JOBSET_NAME": "x"}, "TPU (GKE)", 2, 1, "t-0.s:8482"),
        (POD | {"OMPI_COMM_WORLD_SIZE": "4"}, "JobSet", 4, 3, "j-slice-0-0.j:8482"),
        # A launcher that started one process has not started these.
        (SLURM | ONE | MPI, "Open MPI", 4, 2, "10.96.0.1:62624"),
    ],
)
def test_table(
    environ: dict[str, str], launcher: str, count: int, index: int, coordinator: str
) -> None:
    place = detect(environ)
    found = (place.launcher, place.count, place.index, place.coordinator)
    assert found == (launcher, count, index, coordinator)
    seen = [name for name, (marks, _) in LAUNCHERS.items() if {*marks} & {*environ}]
    assert {*place.overruled} == {*seen} - {launcher}
    for said in place.variables:  # the reason that `doctor` prints
        assert environ[said.partition("=")[0]] == said.partition("=")[2]
        assert said in place.why


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, "all of JAX_COORDINATOR_ADDRESS"),
        (TRIO | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4"),
        (TRIO | {"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS=host "),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS=host"),
        (SLURM | {"SLURM_PROCID": "2"}, "SLURM_PROCID=2\n.*from 0 to 1"),
        (SLURM | {"JAX_COORDINATOR_PORT": "99999"}, "JAX_COORDINATOR_PORT=99999"),
        (GKE | {"TPU_WORKER_ID": "2"}, "TPU_WORKER_ID=2"),
        (GKE | {"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_SLICE_ID"),
        (SLICES | {"MEGASCALE_COORDINATOR_ADDRESS": ""}, "set MEGASCALE_COORDINATOR_ADDRESS"),
        ({"TPU_WORKER_HOSTNAMES": ""}, "set TPU_WORKER_HOSTNAMES"),
        ({"TPU_PROCESS_ADDRESSES_PATH": "/nowhere"}, "set TPU_PROCESS_ADDRESSES_PATH"),
        (POD | {"JOBSET_PARALLELISM": ""}, "without JOBSET_PARALLELISM"),
        (POD | {"JOBSET_JOB_INDEX": "2"}, "JOBSET_JOB_INDEX=2"),
        (POD | {"JOB_COMPLETION_INDEX": "-1"}, "JOB_COMPLETION_INDEX=-1"),
        (MPI | {"OMPI_MCA_orte_hnp_uri": ""}, "mpirun -x JAX_COORDINATOR_ADDRESS"),
        # One slice of a JobSet of two would train by itself.
        (GKE | POD, "2 processes by TPU .* and 4 by JobSet .*JAX_NUM_PROCESSES"),
        (SLURM | MPI, "2 processes by Slurm .* and 4 by Open MPI"),
    ],
)
def test_what_is_wrong_is_refused(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        detect(environ)


@pytest.mark.parametrize(
    ("environ", "own"),
    [
        (SLURM, None),  # a node for itself: all of its GPUs, where JAX takes the first
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "1"}, (1,)),
        (
            SLURM | {"SLURM_STEP_NUM_NODES": "1", "JAX_LOCAL_DEVICE_IDS": "2,3"},
            None,
        ),  # JAX reads it
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_GPUS_PER_TASK": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS_PER_GPU": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "1"}, None),
        (MPI, None),
        (MPI_TWO, (1,)),
        (TRIO, None),
    ],
)
def test_gpus_of_a_process(environ: dict[str, str], own: tuple[int, ...] | None) -> None:
    assert detect(environ).local_devices == own


@pytest.mark.parametrize("environ", [SLURM, MPI, MPI_TWO, GKE, SLICES], ids=lambda e: min(e))
def test_as_jax_itself(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where JAX knows a launcher, both name one coordinator, count and index."""
    cluster: Any = {
        "S": clusters.SlurmCluster,
        "O": clusters.OmpiCluster,
        "J": cloud_tpu_cluster.GkeTpuCluster,
    }[min(environ)[0]]
    if environ is SLURM:
        environ = SLURM | {"SLURM_NTASKS": "2"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cluster, "wait_for_coordinator", lambda *_: None, raising=False)
    for name in ("MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS"):
        if name not in environ:  # else JAX asks the metadata server
            monkeypatch.setenv(name, "")
    assert cluster.is_env_present()
    place = detect(environ)
    assert place.coordinator == cluster.get_coordinator_address(1, None)
    assert (place.count, place.index) == (cluster.get_process_count(), cluster.get_process_id())


def test_machines_of_gcloud_ask_for_their_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES"):  # another test's preflight
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    metadata = {"agent-worker-number": "1", "worker-network-endpoints": "a:0:10.0.0.1,b:1:10.0.0.2"}
    metadata["tpu-env"] = "ZONE: 'anywhere'"
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata.get(key), "200"))
    monkeypatch.setattr(cloud_tpu_cluster, "metadata_response_code_success", "200")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "1")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "0")
    place = detect({})
    said = ("the metadata of this machine",)
    assert place == Place("TPU (GCE)", 2, 1, f"10.0.0.1:{PORT}", said)
    assert detect(POD).launcher == "JobSet"


def test_it_imports_no_jax() -> None:
    package = str(__package__).partition(".")[0]
    code = f"import sys; from {package}.runtime.detect import detect; detect({POD}); "
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
