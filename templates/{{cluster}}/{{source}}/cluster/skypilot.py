"""A job as a task of SkyPilot, for `sky jobs launch`. Launches nothing.

SkyPilot recovers a job whose machines are taken away, and one that ends with a code of
`recover_on_exit_codes`; it does not bound the latter, so `retries` does not act here.
`max_restarts_on_errors` stays 0: it would start bugs again. Other commands than `sky jobs launch`
ignore `job_recovery`. Nor does `grace_s` act: how long a machine lives after the notice is the
cloud's. A TPU slice of several hosts is one node of SkyPilot, whose hosts each run
the task and are each in SKYPILOT_NODE_IPS.
"""

from typing import Any

from ..errors import Exit
from .job import FAULTS, Job, process
from .queued import RUNTIMES

PORT = 8476  # of JAX's coordinator
STORES = {"gs": "gcs", "s3": "s3"}  # kind of a bucket -> what has to be installed for it


def task(job: Job) -> dict[str, Any]:
    """The task as plain data, equal for equal jobs. It is launched from the project's folder."""
    slice_ = job.slice
    resources: dict[str, Any] = {
        "infra": f"gcp/{job.zone.rpartition('-')[0]}/{job.zone}" if job.zone else "gcp",
        "accelerators": slice_.sky_type,
        "use_spot": job.spot,
        "job_recovery": {
            "max_restarts_on_errors": 0,
            "recover_on_exit_codes": sorted(map(int, (Exit.PREEMPTED, *FAULTS))),
        },
    }
    if slice_.is_tpu and job.accelerator in RUNTIMES:  # SkyPilot takes that of v5p for v5e
        resources["accelerator_args"] = {"runtime_version": RUNTIMES[job.accelerator]}
    extras = ["tpu" if slice_.is_tpu else "cuda12"]
    extras += [STORES[kind] for kind in STORES if job.run_dir.startswith(f"{kind}:")]
    return {
        "name": job.name,
        "resources": resources,
        "num_nodes": 1 if slice_.is_tpu else slice_.hosts * job.slices,
        "workdir": ".",
        "envs": job.environ,
        "setup": SETUP.format(extras=" ".join(f"--extra {extra}" for extra in extras)),
        "run": RUN.format(port=PORT, process=process(job)),
    }


SETUP = """\
set -euo pipefail
command -v uv >/dev/null || pip install --user uv
PATH=$HOME/.local/bin:$PATH uv sync --no-dev {extras}
"""
# `exec`: a signal for the task reaches the process itself.
RUN = """\
set -euo pipefail
JAX_COORDINATOR_ADDRESS=$(head -n1 <<<"$SKYPILOT_NODE_IPS"):{port}
JAX_NUM_PROCESSES=$(wc -l <<<"$SKYPILOT_NODE_IPS")
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID=$SKYPILOT_NODE_RANK
exec {process}
"""
