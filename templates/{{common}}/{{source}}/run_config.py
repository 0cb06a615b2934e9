"""Settings that every kind shares, and the mark that says which fields a resume must match.

Imports no JAX, so that `--help` is instant and platform flags can still be set.
"""

import dataclasses
import os
import re
from dataclasses import dataclass
from typing import Any

from .errors import UserError


def identity(default: Any, least: int = 1) -> Any:
    """A field that defines the run: a resume with another value is refused.

    The default of a field that is added later must keep the earlier behaviour: a checkpoint without
    the field is taken to have been trained with that default.
    """
    return dataclasses.field(default=default, metadata={"identity": True, "least": least})


def setting(default: Any, least: int) -> Any:
    """A field whose lower bound is not 1, as it is for all other whole numbers."""
    return dataclasses.field(default=default, metadata={"least": least})


# Removed identity fields -> the value that the code without them implements.
RETIRED: dict[str, Any] = {}
# The variables by which a launcher describes the job to each of its processes.
JOB_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclass(frozen=True)
class RunConfig:
    """Folder, length and intervals of a run."""

    run_dir: str = "runs/default"  # config, metrics, checkpoints, plots and report go here
    steps: int = 1000  # stop at this step; a larger number continues a finished run
    seed: int = identity(0, least=0)  # of initial values, order of the data, noise
    log_every_steps: int = 10  # a line in metrics.jsonl; its means are over these steps
    eval_every_steps: int = setting(100, least=0)  # held-out figures; 0 = only at the end
    save_every_steps: int = setting(100, least=0)  # checkpoint; 0 = only at the end
    artifacts_every_steps: int = setting(0, least=0)  # images or text; 0 = only at the end
    keep_checkpoints: int = setting(2, least=0)  # the newest ones; 0 = all
    max_skipped_steps: int = 10  # stop after so many skipped steps in a row
    hang_timeout_s: float = 1800.0  # exit 43 after so long without progress; 0 = off
    prefetch_workers: int = 1  # threads that make batches ahead of need
    profile_at_step: int = setting(0, least=0)  # write a profiler trace from this step on; 0 = off
    profile_steps: int = 3  # length of that trace
    trackers: tuple[str, ...] = ("tensorboard",)  # also: wandb mlflow


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; the product is the device count of all processes."""

    data: int = setting(-1, least=-1)  # replicas; -1 = all devices that the others leave
    fsdp: int = 1  # replicas that share parameters and optimizer state
    tensor: int = 1  # splits the matrices of each layer


def job_variables() -> tuple[str, int, int] | None:
    """Coordinator address, process count and process index from the environment, or None."""
    given = {name: os.environ[name] for name in JOB_VARIABLES if name in os.environ}
    if not given:
        return None
    address, count, index = (given.get(name, "") for name in JOB_VARIABLES)
    numbers = count.isdecimal() and index.isdecimal() and int(index) < int(count)
    if not (numbers and re.fullmatch(r"(\[.+\]|[^:/]+):\d+", address)):
        raise UserError(
            got=" ".join(f"{name}={value}" for name, value in given.items()),
            expected=f"all of {', '.join(JOB_VARIABLES)}: host:port of process 0, the number of "
            "processes, and the index of this one, from 0 on",
            do="correct them in every process, or unset all three",
        )
    return address, int(count), int(index)


def check_numbers(config: Any, prefix: str = "") -> None:
    """Raise where a whole number is below the bound at its field; 1 where none is given."""
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        least = field.metadata.get("least", 1)
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{name}.")
        elif isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise UserError(
                got=option(name, value),
                expected=f"at least {least}",
                do="correct it, or leave it out",
            )


def option(name: str, value: Any) -> str:
    """A setting as a command-line option: `run.steps`, 20 -> `--steps 20`."""
    words = name.removeprefix("run.").replace("_", "-")
    if isinstance(value, bool):
        before, dot, last = words.rpartition(".")
        return f"--{before}{dot}{'' if value else 'no-'}{last}"
    return f"--{words} {value}"


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved configuration as plain JSON types."""
    plain = dataclasses.asdict(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flatten(plain).items()}


def from_dict[T](default: T, flat: dict[str, Any], prefix: str = "") -> T:
    """What `to_dict` wrote, as a configuration: fields it does not name stay those of `default`."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(default):  # type: ignore[arg-type]
        value, name = getattr(default, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            values[field.name] = from_dict(value, flat, f"{name}.")
        elif name in flat:
            values[field.name] = tuple(flat[name]) if isinstance(value, tuple) else flat[name]
    return dataclasses.replace(default, **values)  # type: ignore[type-var]


def identity_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every field a resume must match."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= identity_of(value, f"{prefix}{field.name}.")
        elif field.metadata.get("identity"):
            found[prefix + field.name] = list(value) if isinstance(value, tuple) else value
    return found


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> one dict under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
