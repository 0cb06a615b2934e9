"""Which job this process belongs to: one table of launchers, asked in one order. Joins nothing.

JAX's own detection knows no JobSet of several replicas, gives a process under Slurm and Open MPI
one GPU even where it has its node for itself (jax#16788), and asks Open MPI before Slurm. So the
variables are read here; only the metadata server of Google Cloud is asked by JAX's code. Imports
no JAX otherwise.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..records import store

type Environ = Mapping[str, str]

# Kubeflow Trainer sets them too. JAX reads the first one alone, and the port.
JOB_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
ADDRESS, COUNT, INDEX = JOB_VARIABLES
PORT = 8482  # of the coordinator, as JAX has it on TPUs; JAX_COORDINATOR_PORT names another one
# In Slurm and Open MPI, jobs share hosts: a port of the job's number, from here to the last one.
FIRST_PORT, PORTS = 61440, 4096
# The hosts of a TPU slice, in the order in which JAX asks.
HOSTS = ("TPU_PROCESS_ADDRESSES_PATH", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# Set by the manifest that `launch gke` writes, from what Kubernetes tells a pod of itself.
JOBSET = (
    *("JOBSET_NAME", "JOBSET_REPLICATED_JOB", "JOBSET_REPLICAS", "JOBSET_JOB_INDEX"),
    *("JOBSET_PARALLELISM", "JOB_COMPLETION_INDEX"),
)


@dataclass(frozen=True)
class Place:
    """A process in its job, and who said so."""

    launcher: str = ""
    """A name of LAUNCHERS; "" = none, a process alone."""
    count: int = 1
    index: int = 0
    coordinator: str = ""
    """host:port of process 0."""
    variables: tuple[str, ...] = ()
    """Those that said so, as NAME=value."""
    local_devices: tuple[int, ...] | None = None
    """Of the GPUs that this process sees, the ones that are its own; None = all."""
    overruled: tuple[str, ...] = ()
    """Launchers that were seen too."""

    @property
    def why(self) -> str:
        """The reason in one line."""
        others = ", ".join(self.overruled)
        if not self.launcher:
            return f"{others} tells of one process" if others else "no variables of a launcher"
        said = f"{self.launcher}: {' '.join(self.variables)}"
        return said + (f"; overruled: {others}" if others else "")


def detect(environ: Environ) -> Place:
    """The place that the first launcher gives which started more than one process.

    UserError where its variables are wrong, and where two launchers tell different counts.
    """
    seen = [name for name, (marks, _) in LAUNCHERS.items() if any(m in environ for m in marks)]
    if COUNT in environ or INDEX in environ:
        return replace(_explicit(environ), overruled=tuple(seen))
    found: dict[str, Place] = {}
    for name in seen:
        try:
            found[name] = LAUNCHERS[name][1](environ)
        except UserError:
            # A launcher in another one: what it lacks nobody needs.
            if not any(place.count > 1 for place in found.values()):
                raise
    if not any(place.count > 1 for place in found.values()) and (gce := _gce(environ)):
        found["TPU (GCE)"] = gce
    several = {name: place for name, place in found.items() if place.count > 1}
    if ADDRESS in environ and not several:
        return _explicit(environ)
    for name, place in several.items():
        others = {n: p for n, p in several.items() if p.count != place.count}
        if others:
            other, tells = next(iter(others.items()))
            raise UserError(
                got=f"{place.count} processes by {name} ({' '.join(place.variables)}) and "
                f"{tells.count} by {other} ({' '.join(tells.variables)})",
                expected="one number of processes",
                do=f"set {', '.join(JOB_VARIABLES)} in every process, or unset the variables of "
                "the launcher that did not start these processes",
            )
        place = replace(place, launcher=name, overruled=tuple(n for n in seen if n != name))
        if ADDRESS in environ:
            place = replace(place, coordinator=_address(environ, place.variables))
        return place
    return Place(overruled=tuple(found))


def _explicit(environ: Environ) -> Place:
    said = _said(environ, JOB_VARIABLES)
    count, index = environ.get(COUNT, ""), environ.get(INDEX, "")
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise _wrong_trio(said)
    address = _address(environ, said)
    return Place("variables", int(count), int(index), address, said)


def _slurm(environ: Environ) -> Place:
    count = _number(environ, "SLURM_STEP_NUM_TASKS", least=1)
    index = _number(environ, "SLURM_PROCID", below=count)
    # The first of a list such as `gpu[007-9,12],other`: `gpu007`.
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", environ["SLURM_STEP_NODELIST"])
    host = "".join(filter(None, found.groups())) if found else ""
    job = _number(environ, "SLURM_JOB_ID") if count > 1 else 0
    own = None
    # Where Slurm binds GPUs to tasks, a task sees no others.
    bound = {"SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU"} & {*environ}
    sees_one = "," not in environ.get("CUDA_VISIBLE_DEVICES", ",")
    if environ.get("SLURM_STEP_NUM_NODES") != str(count) and not (bound or sees_one):
        own = _own_device(environ, "SLURM_LOCALID")
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST")
    address = f"{host}:{_port(environ, FIRST_PORT + job % PORTS)}"
    return Place("", count, index, address, _said(environ, names), own)


def _gke(environ: Environ) -> Place:
    name = next(name for name in HOSTS if name in environ)
    text = environ[name]
    if name == HOSTS[0]:
        text = ""
        with contextlib.suppress(OSError):
            text = store.read(Path(environ[name])).decode().strip()
    hosts = [host.rpartition(":")[0] or host for host in text.split(",") if host]
    alone = len(hosts) < 2
    worker = 0 if alone else _number(environ, "TPU_WORKER_ID", below=len(hosts))
    slices = _number(environ, "MEGASCALE_NUM_SLICES", least=1, missing=1)
    number, first = 0, hosts[0] if hosts else ""
    if slices > 1:
        number = _number(environ, "MEGASCALE_SLICE_ID", below=slices)
        # Of the first host of slice 0, which is process 0 of the job.
        first = environ.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")[0]
    if not first:
        raise UserError(
            got=" ".join(_said(environ, ("TPU_WORKER_ID", name, "MEGASCALE_NUM_SLICES"))),
            expected="the hosts of a TPU slice, and of several slices the first host",
            do="set MEGASCALE_COORDINATOR_ADDRESS" if hosts else f"set {name}",
        )
    said = ("TPU_WORKER_ID", name, "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
    index = number * len(hosts) + worker
    address = f"{first}:{_port(environ, PORT)}"
    return Place("", slices * len(hosts), index, address, _said(environ, said))


def _gce(environ: Environ) -> Place | None:
    from .private import gce_place  # which asks nobody where there is no TPU

    try:
        found = gce_place()
    except RuntimeError as error:
        raise UserError(
            got=f"{error}", expected="the first host by its name", do="start all hosts of the slice"
        ) from error
    if found is None:
        return None
    count, index, host = found
    address = f"{host}:{_port(environ, PORT)}" if host else ""
    return Place("", count, index, address, ("the metadata of this machine",))


def _jobset(environ: Environ) -> Place:
    if missing := [name for name in JOBSET if not environ.get(name)]:
        raise UserError(
            got=f"a pod of a JobSet without {', '.join(missing)}",
            expected=f"all of {', '.join(JOBSET)}",
            do="set them in the manifest, as `launch gke` writes it",
        )
    replicas = _number(environ, "JOBSET_REPLICAS", least=1)
    pods = _number(environ, "JOBSET_PARALLELISM", least=1)
    replica = _number(environ, "JOBSET_JOB_INDEX", below=replicas)
    pod = _number(environ, "JOB_COMPLETION_INDEX", below=pods)
    name = environ["JOBSET_NAME"]
    first = f"{name}-{environ['JOBSET_REPLICATED_JOB']}-0-0.{name}"
    address = f"{first}:{_port(environ, PORT)}"
    return Place("", replicas * pods, replica * pods + pod, address, _said(environ, JOBSET))


def _open_mpi(environ: Environ) -> Place:
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri")
    count = _number(environ, names[0], least=1)
    index = _number(environ, names[1], below=count)
    # Such as 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911, of the host of mpirun.
    uri = re.match(
        r"(\d+)\.\d+;.*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", environ.get(names[2], "")
    )
    if uri is None and count > 1 and ADDRESS not in environ:
        raise UserError(
            got=f"{count} processes of Open MPI, without OMPI_MCA_orte_hnp_uri",
            expected="the host of process 0: Open MPI 5 no longer tells it",
            do=f"mpirun -x {ADDRESS}=HOST:PORT, with the host of process 0",
        )
    address = ""
    if uri is not None:
        # Jobs differ by multiples of 4096.
        port = _port(environ, FIRST_PORT + int(uri[1]) // 4096 % PORTS)
        address = f"{uri[2] or f'[{uri[3]}]'}:{port}"
    alone = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    own = None if alone else _own_device(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
    return Place("", count, index, address, _said(environ, names), own)


# In the order of their rank, below the explicit variables: marks, one of which every process of a
# launcher has, and what reads the rest. A TPU machine's metadata are asked for where none speaks.
LAUNCHERS: dict[str, tuple[tuple[str, ...], Callable[[Environ], Place]]] = {
    "Slurm": (("SLURM_STEP_NODELIST",), _slurm),
    "TPU (GKE)": (HOSTS, _gke),
    "JobSet": (("JOBSET_NAME",), _jobset),
    "Open MPI": (("OMPI_COMM_WORLD_SIZE",), _open_mpi),
}


def _own_device(environ: Environ, name: str) -> tuple[int, ...] | None:
    """The GPU of a process that shares its node; None where JAX reads it from its own variable."""
    if "JAX_LOCAL_DEVICE_IDS" in environ or name not in environ:
        return None
    return (_number(environ, name),)


def _address(environ: Environ, said: Iterable[str]) -> str:
    address = environ.get(ADDRESS, "")
    found = re.fullmatch(r"(\[.+\]|[^:/]+):(\d{1,5})", address)
    if found is None or not 0 < int(found[2]) < 65536:
        raise _wrong_trio(tuple(dict.fromkeys((*_said(environ, [ADDRESS]), *said))))
    return address


def _wrong_trio(said: tuple[str, ...]) -> UserError:
    return UserError(
        got=" ".join(said),
        expected=f"all of {', '.join(JOB_VARIABLES)}: host:port of process 0, the number of "
        "processes, and the index of this one, from 0 on",
        do="correct them in every process, or unset all three",
    )


def _port(environ: Environ, otherwise: int) -> int:
    return _number(environ, "JAX_COORDINATOR_PORT", least=1, below=65536, missing=otherwise)


def _number(
    environ: Environ, name: str, least: int = 0, below: int = 2**31, missing: int | None = None
) -> int:
    text = environ.get(name, "")
    if not text and missing is not None:
        return missing
    if not (text.isdecimal() and least <= int(text) < below):
        most = "" if below == 2**31 else f" to {below - 1}"
        raise UserError(
            got=f"{name}={text}" if name in environ else f"no {name}",
            expected=f"a whole number from {least}{most or ' on'}",
            do=f"correct {name}, or set {', '.join(JOB_VARIABLES)} in every process instead",
        )
    return int(text)


def _said(environ: Environ, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}={environ[name]}" for name in names if name in environ)
