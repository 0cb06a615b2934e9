"""What a target takes: the file, and the commands that send it. Writes and runs nothing."""

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .job import PACKAGE, Job
from .jobset import jobset
from .lint import has_schemas, lint
from .queued import queued
from .skypilot import task
from .slurm import LOGS, sbatch


@dataclass(frozen=True)
class Rendered:
    """A job for one target."""

    text: str
    """What the file holds; "" where there is none."""
    path: Path
    """Where the commands expect it."""
    commands: list[list[str]]
    notes: tuple[str, ...] = ()


def render(job: Job, target: str, file: Path, out: Path | None = None) -> Rendered:
    """The job of a file for a target; a manifest that lint refuses is our bug, and raises."""
    if target == "local":
        simulate = [*_program(), "simulate", "--job", str(file)]
        return Rendered("", file, [simulate], ("the same processes and restarts, on this machine",))
    path = out or Path(LOGS) / f"{job.name}.{target}.{'sh' if target in SCRIPTS else 'yaml'}"
    if target in SCRIPTS:
        first = ["mkdir", "-p", LOGS]
        runs = {"slurm": [first, ["sbatch", str(path)]], "queued": [["bash", str(path)]]}
        return Rendered(SCRIPTS[target](job), path, runs[target])
    if target == "skypilot":
        launch = ["sky", "jobs", "launch", "--yes", "--name", job.name, str(path)]
        return Rendered(to_yaml(task(job)), path, [launch])
    manifest = jobset(job)
    if wrong := lint(manifest):
        raise ValueError(
            "\n".join(["cluster/jobset.py renders what a cluster would refuse:", *wrong])
        )
    # Not `apply`: a JobSet cannot be changed, and a second start must not touch the first.
    create = ["kubectl", "create", "--validate=strict", "--filename", str(path)]
    return Rendered(to_yaml(manifest), path, [create], tuple(_notes(job)))


def _notes(job: Job) -> Iterator[str]:
    """What a manifest for GKE cannot say."""
    if not has_schemas():
        yield "fields of Job and Pod are unchecked: uv sync installs kubernetes-validate"
    if job.spot and job.grace_s > SPOT_GRACE_S:
        yield (
            f"spot: GKE gives pods about {SPOT_GRACE_S} s, whatever grace_s says. If a save takes "
            "longer, --local-folder and --save-every-steps bound what is lost"
        )
    if not job.slice.is_tpu:
        yield "GPUs: the pods use the primary network card of a node alone, without GPUDirect"


def _program() -> list[str]:
    """This program as it can be typed again: its name where PATH has it, or as it was called."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return ["python", "-m", PACKAGE]
    return [called.name if shutil.which(called.name) else sys.argv[0]]


SPOT_GRACE_S = 15
SCRIPTS = {"slurm": sbatch, "queued": queued}


class _Dumper(yaml.SafeDumper):
    """Quotes what a parser of another YAML version takes for a number or a truth value."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else '"' if re.match(r"[-+.0-9]|[yYnN]$", value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(str, _text)


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML that Go and Python read alike; keys stay in order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
