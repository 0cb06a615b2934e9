"""Settings that every kind shares, and the marks of a field: its bounds, and what a resume may do.

Imports no JAX, so that `--help` is instant and platform flags can still be set.
"""

import dataclasses
import functools
import math
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import UserError


def setting(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    resume: Literal["free", "listed", "equal"] = "free",
) -> Any:
    """A field with its bounds, and whether a resume may change it.

    Where no `least` is given, a whole number is at least 1 and any other number is above 0.
    """
    bounds = {"least": least, "most": most, "below": below}
    return dataclasses.field(default=default, metadata=bounds | {"resume": resume})


# Defines the run: a resume with another value is refused. The default of a field that is added
# later must keep the earlier behaviour: a checkpoint without the field is taken to have been
# trained with that default.
identity = functools.partial(setting, resume="equal")
# Concerns only steps to come: a resume may change it, and manifest and report list the change.
tunable = functools.partial(setting, resume="listed")


# Removed identity fields -> the value that the code without them implements.
RETIRED: dict[str, Any] = {}
# The variables by which a launcher describes the job to each of its processes.
JOB_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclass(frozen=True)
class RunConfig:
    """Folder, length and intervals of a run."""

    run_dir: str = "runs/default"  # config, metrics, checkpoints, plots and report go here
    steps: int = tunable(1000)  # stop at this step; a larger number continues a finished run
    seed: int = identity(0, least=0, most=2**32 - 1)  # of initial values, order of the data, noise
    log_every_steps: int = 10  # a line in metrics.jsonl; its means are over these steps
    eval_every_steps: int = setting(100, least=0)  # held-out figures; 0 = only at the end
    save_every_steps: int = setting(100, least=0)  # checkpoint; 0 = only at the end
    artifacts_every_steps: int = setting(0, least=0)  # images or text; 0 = only at the end
    save_timeout_s: float = 6 * 3600.0  # a save that takes longer has failed
    keep_checkpoints: int = setting(2, least=0)  # the newest ones; 0 = all
    max_skipped_steps: int = 10  # stop after so many skipped steps in a row
    hang_timeout_s: float = setting(
        1800.0, least=0
    )  # exit 43 after so long without progress; 0 = off
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


def check_settings[T](config: T, prefix: str = "") -> T:
    """The configuration, if each value is of its field's type, a choice of it and within bounds.

    tyro checks types and choices of a command line alone; presets and files come here.
    """
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_settings(value, f"{name}.")
        elif (expected := _complaint(value, types[field.name], field.metadata)) is not None:
            raise UserError(
                got=option(name, value), expected=expected, do="correct it, or leave it out"
            )
    return config


def _complaint(value: Any, of_type: Any, bounds: Mapping[str, Any]) -> str | None:
    """What a value should be, or None."""
    of_type = getattr(of_type, "__value__", of_type)  # of a `type` alias
    kind = typing.get_origin(of_type) or of_type
    if kind is Literal:
        choices = typing.get_args(of_type)
        return None if value in choices else f"one of {', '.join(map(str, choices))}"
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        return f"a value of type {kind.__name__}"
    if kind not in (int, float):
        return None
    least, most, below = (bounds.get(name) for name in ("least", "most", "below"))
    least = 1 if least is None and kind is int else least
    if not math.isfinite(value):
        return "a finite number"
    if value < least if least is not None else value <= 0:
        return "more than 0" if least is None else f"at least {least}"
    if most is not None and value > most:
        return f"at most {most}"
    return None if below is None or value < below else f"less than {below}"


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


def identity_of(config: Any) -> dict[str, Any]:
    """Dotted name -> value of every field that a resume must match."""
    return _marked(config, "equal")


def tunables_of(config: Any) -> dict[str, Any]:
    """Dotted name -> value of every field whose change on resume is listed."""
    return _marked(config, "listed")


def _marked(config: Any, resume: str, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= _marked(value, resume, f"{prefix}{field.name}.")
        elif field.metadata.get("resume") == resume:
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
