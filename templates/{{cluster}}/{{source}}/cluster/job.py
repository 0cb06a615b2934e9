"""The job file: what to run, on which hardware, how often again. Renders nothing.

What a target cannot run of it is in `targets.py`.
"""

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from ..errors import Exit, UserError
from ..records import store
from ..records.hardware import Slice, slice_of
from ..runtime.detect import JOB_VARIABLES

PACKAGE = __name__.partition(".")[0]
LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"
WORD = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
IMAGE = r"[A-Za-z0-9][\w.-]*(:\d+)?(/[\w.-]+)*(:[\w.-]+)?@sha256:[0-9a-f]{64}"
# How JobSet names pods: JOB-slice-REPLICA-HOST, and the five letters that Kubernetes adds.
SLICE_NAME, POD_SUFFIX, MOST_LETTERS = "slice", "-xxxxx", 63
# Variables by which a process finds its place: a value for all hosts would contradict it.
PLACES = (*JOB_VARIABLES, "JOB_COMPLETION_INDEX")
PLACE_PREFIXES = ("JOBSET_", "MEGASCALE_", "TPU_WORKER_", "SLURM_", "SKYPILOT_")

# Exit codes that no restart mends, or that somebody wants: the job ends with them.
FINAL = (Exit.BUG, Exit.USER, Exit.REFUSED, Exit.INTERRUPTED)
# What is lost with a machine: a restart goes on, and counts against `retries`. Beside our own, the
# codes of a process that a signal ended: abort, kill (out of memory), segmentation fault, SIGTERM.
FAULTS = (Exit.HUNG, Exit.PEER_LOST, 134, 137, 139, 143)


def _key(
    default: Any = "",
    form: str = "",
    words: str = "",
    *,
    least: int | None = None,
    most: int | None = None,
) -> Any:
    marks = {"form": form, "words": words, "least": least, "most": most}
    return field(default=default, metadata=marks)


@dataclass(frozen=True)
class Job:
    """A job file, checked. The comments of `launch/job.toml` say what its keys mean."""

    name: str = _key("", LABEL, "lower-case letters, digits and -, a letter first")
    command: tuple[str, ...] = ()
    accelerator: str = ""  # of records/hardware.py; or cpu, on Slurm and in `simulate`
    topology: str = ""
    slices: int = _key(1, least=1, most=1024)
    image: str = _key("", f"({IMAGE})?", "NAME@sha256:DIGEST, since a tag may move")
    run_dir: str = _key("", r"[^\x00-\x1f]*", "one line")
    spot: bool = False
    reservation: str = _key("", f"({WORD})?", "letters, digits, ., _ and -")
    retries: int = _key(10, least=0, most=10_000)
    grace_s: int = _key(120, least=1, most=3600)
    limit_min: int = _key(0, least=0, most=527_040)  # Slurm's --time; 0 = that of the partition
    health_check: bool = False
    queue: str = _key("", f"({WORD})?", "letters, digits, ., _ and -")
    priority: str = _key("", f"({WORD})?", "letters, digits, ., _ and -")
    namespace: str = _key("default", LABEL, "lower-case letters, digits and -")
    service_account: str = _key("", r"[\w.@-]*", "a name, or an e-mail address on TPU VMs")
    project: str = _key("", f"({WORD})?", "letters, digits, ., _ and -")
    zone: str = _key("", f"({LABEL})?", "a zone such as us-central2-b")
    volume: str = _key("", r"([a-z0-9.-]+:/[^\x00-\x1f:]+)?", "CLAIM:/FOLDER")  # on GKE, shared
    local_disk: str = _key("", r"(/[^\x00-\x1f:]+)?", "/FOLDER")  # on GKE, of each node
    host_network: bool = False  # GKE
    privileged: bool = False  # GKE
    env: dict[str, str] = field(default_factory=dict)

    @property
    def slice(self) -> Slice:
        """The hardware of one slice; UserError for one that is not in the table."""
        return slice_of(self.accelerator, self.topology)

    @property
    def hosts(self) -> int:
        """Hosts of a slice."""
        return int(self.topology) if self.accelerator == "cpu" else self.slice.hosts

    @property
    def arguments(self) -> list[str]:
        """The words after the name of the console script."""
        first = ["health", "--"] if self.health_check else []
        has_run = self.run_dir and takes_run_dir(self.command)
        return [*first, *self.command, *(["--run-dir", self.run_dir] if has_run else [])]

    @property
    def environ(self) -> dict[str, str]:
        """The variables of every host, `[env]` and ours.

        JAX goes on by the CPU alone where the backend of the accelerator is missing or broken,
        unless it is told which one it has to have.
        """
        kind = "cpu" if self.accelerator == "cpu" else "tpu" if self.slice.is_tpu else "cuda"
        backends = "cpu" if kind == "cpu" else f"{kind},cpu"
        return dict(sorted(({"JAX_PLATFORMS": backends} | self.env).items()))


def read_job(path: PurePath) -> Job:
    """The job of a file; UserError names what in it is wrong."""
    try:
        given = tomllib.loads(store.read(path).decode())
    except (OSError, ValueError) as error:
        raise UserError(
            got=f"{path}: {error}",
            expected="a job file in TOML, as launch/job.toml",
            do="correct it, or name another one with --job",
        ) from error
    known = [f.name for f in dataclasses.fields(Job)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise wrong(path, name, given[name], f"a key such as {', '.join(near)}")
    for name in ("name", "command", "accelerator", "topology"):
        if name not in given:
            raise wrong(path, name, None, "this key")
    for key in dataclasses.fields(Job):
        if key.name in given and (expected := _complaint(given[key.name], key)):
            raise wrong(path, key.name, given[key.name], expected)
    words, expected = _words(given["command"])
    if expected:
        raise wrong(path, "command", given["command"], expected)
    job = Job(**given | {"command": words})
    if job.spot and job.reservation:
        raise wrong(path, "reservation", job.reservation, "spot or a reservation, not both")
    if job.accelerator == "cpu" and not re.fullmatch(r"[1-9]\d{0,3}", job.topology):
        raise wrong(path, "topology", job.topology, "a number of nodes")
    longest = f"{job.name}-{SLICE_NAME}-{job.slices - 1}-{job.hosts - 1}{POD_SUFFIX}"
    if (over := len(longest) - MOST_LETTERS) > 0:
        raise wrong(path, "name", job.name, f"{over} letters less: pods are called {longest}")
    return job


def process(job: Job) -> str:
    """The command line of one process, as a shell reads it in the folder of the project."""
    return shlex.join([".venv/bin/python", "-m", PACKAGE, *job.arguments])


def takes_run_dir(words: Sequence[str]) -> bool:
    """Whether the last command of a command line has a run folder, which may be in a bucket."""
    first = max((i + 1 for i, word in enumerate(words) if word == "--"), default=0)
    command = _command_line().find_commands().get(words[first])
    parameters = inspect.signature(command).parameters if command else {}
    return "config" in parameters or (
        "run_dir" in parameters and parameters["run_dir"].annotation is str
    )


def wrong(where: object, name: str, value: object, expected: str) -> UserError:
    got = f"no {name}" if value is None else f"{name} = {value!r}"
    return UserError(got=f"{where}: {got}", expected=expected, do="correct it in the job file")


def _complaint(value: Any, key: dataclasses.Field[Any]) -> str:
    """What the value of a key should be, or ""."""
    if key.name == "env":
        return _env_complaint(value)
    of_type = str if key.name == "command" else type(key.default)
    is_of_type = type(value) is of_type  # a bool is an int to isinstance
    if not is_of_type:
        return {str: 'text in "quotes"', int: "a whole number", bool: "true or false"}[of_type]
    form, words, least, most = (key.metadata.get(m) for m in ("form", "words", "least", "most"))
    if form and not re.fullmatch(form, value, re.ASCII):
        return str(words)
    if least is not None and not least <= value <= most:
        return f"{least} to {most}"
    return ""


def _env_complaint(env: Any) -> str:
    if not isinstance(env, dict):
        return "a table [env]"
    for name, value in env.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            return f"names of variables, not {name!r}"
        if name in PLACES or name.startswith(PLACE_PREFIXES):
            return f"no {name}: the launcher sets it"
        if not isinstance(value, str) or re.search(r"[\x00-\x1f]", value):
            return f'{name} = "one line of text"'
    return ""


def _command_line() -> Any:
    """The module `cli`, which stands above this room.

    Asked by its name when a job is read: what starts the processes of a job has to read its words.
    """
    return importlib.import_module(f"{PACKAGE}.cli")


def _words(command: str) -> tuple[tuple[str, ...], str]:
    """The words of a command, and what they should be, or ""."""
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        return (), f"words of a shell: {error}"
    return words, _complaint_of_command(words)


def _complaint_of_command(words: Sequence[str]) -> str:
    """What a command should be, by the console script itself; "" where it would start."""
    if not words or words[0].startswith("-"):
        return f"a command of this project such as {', '.join(_command_line().find_commands())}"
    if any(re.fullmatch(r"--run[-_]dir(=.*)?", word) for word in words):
        return "no --run-dir: it is the key run_dir"
    if "--" in words:
        return "one command; health_check = true tests the hosts before it"
    if any(re.fullmatch(r"--config(=.*)?", word) for word in words):
        return ""  # a file that the hosts have, and this machine may lack
    cli, shown = _command_line(), io.StringIO()
    logs, cli.log.disabled = cli.log.disabled, True  # it would tell of settings as if it began
    try:
        with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
            cli.parse([*words])
    except UserError as error:
        return f"{error.expected} instead of {error.got}"
    except SystemExit as end:  # tyro has printed what is wrong, below a title; or the help
        lines = [line.strip("─-╭╮│├┤╰╯ ") for line in shown.getvalue().splitlines()]
        said = "".join([*filter(None, lines)][1:2])
        return f"options of `{words[0]}`: {said}" if end.code else "a command that does something"
    finally:
        cli.log.disabled = logs
    return ""
