"""Every private name of JAX and Orbax that this project uses. Nothing else imports `jax._src`.

Seen in jax 0.11.1 to 0.12.0.1 and orbax-checkpoint 0.12.2 to 0.12.4; a test says which one breaks.
"""

from pathlib import Path
from typing import Any

# Names this event of `jax.monitoring`, whose listeners are public: XLA compiled a program, or read
# it from the persistent cache.
COMPILED_EVENT = "/jax/core/compile/backend_compile_duration"


def job() -> Any:
    """The job of this process: `client` (None = alone), `process_id`, `num_processes`.

    The client's key-value store is the only way to reach other processes without a collective. Used
    of it: `key_value_set`, `key_value_dir_get`, `wait_at_barrier`.
    """
    from jax._src import distributed

    return distributed.global_state


def tpu_hosts() -> int:
    """Number of hosts of the TPU slice that this machine belongs to; 1 where it belongs to none.

    The public `jax.distributed.initialize` raises on a single machine.
    """
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster

    found = [cluster for cluster in (GkeTpuCluster, GceTpuCluster) if cluster.is_env_present()]
    return found[0].get_process_count() if found else 1


def writer_of(file: Path) -> int:
    """The process that wrote a file of a checkpoint: Orbax names it in a folder, else 0."""
    owners = [part.split("_")[1] for part in file.parts if part.startswith("ocdbt.process_")]
    return int(owners[0]) if owners else 0
