"""Every private name of JAX and Orbax that this project uses. Nothing else imports `jax._src`.

Seen in jax 0.11.1 to 0.12.0.1 and orbax-checkpoint 0.12.2 to 0.12.8; a test says which one breaks.
"""

from pathlib import Path
from typing import Any

import jax

# Names this event of `jax.monitoring`, whose listeners are public: XLA compiled a program, or read
# it from the persistent cache.
COMPILED_EVENT = "/jax/core/compile/backend_compile_duration"


def job() -> Any:
    """The job of this process: `client` (None = alone), `process_id`, `num_processes`.

    The client's key-value store is the only way to reach other processes without a collective. Used
    of it: `key_value_set`, `key_value_try_get`, `key_value_dir_get`, `wait_at_barrier`.
    """
    from jax._src import distributed

    return distributed.global_state


def is_stop_asked() -> bool:
    """Whether the notifier of any process in the job has heard SIGTERM."""
    client = job().client
    if client is None:  # JAX has left the job meanwhile
        return False
    try:
        client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE")
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return False
    return True


def gce_place() -> tuple[int, int, str] | None:
    """Process count, index and first host by Google Cloud's metadata server; None without a TPU.

    It is asked only where there is a TPU, and no variable says that it must not be.
    """
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    if not GceTpuCluster.is_env_present():
        return None
    count, host = GceTpuCluster.get_process_count(), ""
    if count > 1:  # it waits for the name to be known, and raises RuntimeError then
        host = GceTpuCluster.get_coordinator_address(300, "0").rpartition(":")[0]
    return count, GceTpuCluster.get_process_id(), host


def writer_of(file: Path) -> int:
    """The process that wrote a file of a checkpoint: Orbax names it in a folder, else 0."""
    owners = [part.split("_")[1] for part in file.parts if part.startswith("ocdbt.process_")]
    return int(owners[0]) if owners else 0
