"""Settings that every kind shares, and the marks of a field: its bounds, and what a resume may do.

Imports no JAX, so that `--help` is instant and platform flags can still be set.
"""

import dataclasses
import functools
import inspect
import math
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import UserError


@dataclass(frozen=True)
class Bounds:
    """Marks a parameter of a command: `Annotated[int, Bounds(least=0)]`."""

    above: float | None = None
    least: float | None = None
    most: float | None = None


def setting(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    resume: Literal["free", "listed", "equal"] = "free",
) -> Any:
    """A field with its bounds, and whether a resume may change it.

    Without `least`, a field whose default is above 0 stays above 0. A plain field, made without
    this, takes every value of its type.
    """
    is_positive = least is None and isinstance(default, int | float) and default > 0
    bounds = {"above": 0 if is_positive else None, "least": least, "most": most, "below": below}
    return dataclasses.field(default=default, metadata=bounds | {"resume": resume})


# Defines the run: a resume with another value is refused. The default of a field that is added
# later must keep the earlier behaviour: a checkpoint without the field is taken to have been
# trained with that default.
identity = functools.partial(setting, resume="equal")
# Concerns only steps to come: a resume may change it, and manifest and report list the change.
tunable = functools.partial(setting, resume="listed")


# Mark of a field -> its words, and the comparison that a value passes.
BOUNDS = (
    ("above", "more than", operator.gt),
    ("least", "at least", operator.ge),
    ("most", "at most", operator.le),
    ("below", "less than", operator.lt),
)
PLAIN = (bool, int, float, str, type(None))  # what JSON gives back as it was

# Removed identity fields -> the value that the code without them implements.
RETIRED: dict[str, Any] = {}
# A folder in an object store, without the characters that fsspec takes for a pattern (it would
# delete all that matches); and what would be a local folder `hdfs:`.
BUCKET = re.compile(r"(gs|s3)://[^/?#*[\]]+(/[^/?#*[\]]+)+/?")
SCHEME = re.compile(r"\w+:/")


@dataclass(frozen=True)
class RunConfig:
    """Folder, length and intervals of a run."""

    run_dir: str = "runs/default"  # config, metrics, checkpoints, plots and report go here
    # Stop at this step. A larger number continues a finished run; a schedule that ends with the run
    # then ends later, so that the rate changes at once.
    steps: int = tunable(1000)
    seed: int = identity(0, least=0, most=2**32 - 1)  # of initial values, order of the data, noise
    log_every_steps: int = setting(10)  # a line in metrics.jsonl; its means are over these steps
    eval_every_steps: int = setting(100, least=0)  # held-out figures; 0 = only at the end
    save_every_steps: int = setting(100, least=0)  # checkpoint; 0 = only at the end
    artifacts_every_steps: int = setting(0, least=0)  # images or text; 0 = only at the end
    save_timeout_s: float = setting(3600.0)  # a save that takes longer has failed
    keep_checkpoints: int = setting(2, least=0)  # the newest ones; 0 = all
    # A checkpoint is due at its multiples too; those stay and do not count as newest. 0 = none.
    keep_every_steps: int = setting(0, least=0)
    # On each host's own disk, or in its memory: copies of the state, from which a restart goes on
    # where they are newer than the checkpoints. $VARIABLES are each host's own; "" = none.
    local_folder: str = ""
    local_every_steps: int = setting(20)  # copies are made at its multiples
    local_mirror: bool = False  # each process also keeps the copy of its neighbour
    max_skipped_steps: int = setting(10)  # stop after so many skipped steps in a row
    # Exit with 43 after so long without progress; 0 = off.
    hang_timeout_s: float = setting(1800.0, least=0)
    prefetch_workers: int = setting(1)  # threads that make batches ahead of need
    profile_at_step: int = setting(0, least=0)  # write a profiler trace from this step on; 0 = off
    profile_steps: int = setting(3)  # length of that trace
    trackers: tuple[str, ...] = ("tensorboard",)  # also: wandb mlflow
    accept_changed_code: bool = False  # resume though the code of the step has changed; listed


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; the product is the device count of all processes."""

    data: int = setting(-1, least=-1)  # replicas; -1 = all devices that the others leave
    fsdp: int = setting(1)  # replicas that share parameters and optimizer state
    tensor: int = setting(1)  # splits the matrices of each layer, or the rows of a table
    # What a fast network joins, as equal parts of the devices in order; -1 = as the devices say:
    # a TPU slice, a host of GPUs. `data` runs between them first.
    slices: int = setting(-1, least=-1)


def due(step: int, every_steps: int) -> bool:
    """Whether a step is a multiple of an interval; 0 = never."""
    return every_steps > 0 and step % every_steps == 0


def check_settings[T](config: T, prefix: str = "") -> T:
    """The configuration, if each value is of its field's type, a choice of it and within bounds.

    tyro checks types and choices of a command line alone; presets and files come here.
    """
    hints = typing.get_type_hints(type(config))
    plain = "a bool, int, float, str, None or a tuple of them: config.json holds it"
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_settings(value, f"{name}.")
        elif expected := _complaint(
            value, hints[field.name], field.metadata, is_folder=name.endswith("_dir")
        ) or ("" if _is_plain(value) else plain):
            raise UserError(
                got=option(name, value), expected=expected, do="correct it, or leave it out"
            )
    return config


def check_given(command: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """The same for those parameters of a command that are no settings of a run."""
    hints = typing.get_type_hints(command, include_extras=True)
    defaults = inspect.signature(command).parameters
    for name, value in given.items():
        hint = getattr(hints[name], "__value__", hints[name])  # of a `type` alias
        marks = getattr(hint, "__metadata__", ())  # of an `Annotated`
        of_type = typing.get_args(hint)[0] if marks else hint
        bounds = next((dataclasses.asdict(m) for m in marks if isinstance(m, Bounds)), {})
        is_folder = name.endswith("_dir") and defaults[name].default != ""
        if expected := _complaint(value, of_type, bounds, is_folder=is_folder):
            raise UserError(
                got=option(name, value), expected=expected, do="correct it, or leave it out"
            )


def check_device_count() -> None:
    """Refuse a JAX_NUM_CPU_DEVICES at which JAX would fail when it is imported."""
    count = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if not (count.isdecimal() and int(count) > 0):
        raise UserError(
            got=f"JAX_NUM_CPU_DEVICES={count}",
            expected="a whole number of 1 or more",
            do="correct it, or unset it",
        )


def _complaint(
    value: Any, of_type: Any, bounds: Mapping[str, Any], *, is_folder: bool
) -> str | None:
    """What a value should be, or None."""
    of_type = getattr(of_type, "__value__", of_type)  # of a `type` alias
    if not _is_of(value, of_type):
        if typing.get_origin(of_type) is Literal:
            return f"one of {', '.join(map(str, typing.get_args(of_type)))}"
        return f"a value of type {of_type.__name__ if isinstance(of_type, type) else of_type}"
    folder = str(value)
    if is_folder and not (BUCKET.fullmatch(folder) or (folder and not SCHEME.match(folder))):
        return (
            "a folder of a mounted file system, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER "
            "(without //, ?, #, *, [ or ])"
        )
    if not bounds or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return "a finite number"
    for name, words, holds in BOUNDS:
        if (bound := bounds.get(name)) is not None and not holds(value, bound):
            return f"{words} {bound}"
    return None


def _is_of(value: Any, of_type: Any) -> bool:
    """Whether a value is of a type, as far as a field of settings may name one."""
    of_type = getattr(of_type, "__value__", of_type)
    origin, args = typing.get_origin(of_type), typing.get_args(of_type)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, arg) for arg in args)
    if origin is tuple and isinstance(value, tuple):
        each = args[:1] * len(value) if args[-1] is ... else args
        return len(each) == len(value) and all(map(_is_of, value, each))
    of_type = origin or of_type
    if of_type is Any or not isinstance(of_type, type):
        return True
    if isinstance(value, bool):
        return of_type is bool
    return isinstance(value, (int, float) if of_type is float else of_type)


def _is_plain(value: Any) -> bool:
    return all(isinstance(v, PLAIN) for v in (value if isinstance(value, tuple) else (value,)))


def option(name: str, value: Any) -> str:
    """A setting as a command-line option: `run.steps`, 20 -> `--steps 20`."""
    words = name.removeprefix("run.").replace("_", "-")
    if isinstance(value, bool):
        before, dot, last = words.rpartition(".")
        return f"--{before}{dot}{'' if value else 'no-'}{last}"
    values = value if isinstance(value, tuple | list) else [value]
    return " ".join([f"--{words}", *map(str, values)])


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
            found = flat[name]
            values[field.name] = tuple(found) if isinstance(found, list) else found
    return dataclasses.replace(default, **values)  # type: ignore[type-var]


def absolute_paths(config: Any) -> dict[str, str]:
    """Dotted name -> absolute path of every setting that is a folder: its name ends with `_dir`."""
    flat = to_dict(config)
    folders = {name: flat[name] for name in flat if name.endswith("_dir")}
    return {n: f if BUCKET.fullmatch(f) else os.path.abspath(f) for n, f in folders.items()}


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
