"""Job files for tests."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ..job import Job, read_job

IMAGE = "europe-docker.pkg.dev/acme/jobs/acorn@sha256:" + "ab" * 32
GIVEN: dict[str, Any] = {
    "name": "acorn",
    "command": "train demo --seed 3",
    "accelerator": "v5e",
    "topology": "4x4",
    "image": IMAGE,
    "run_dir": "gs://acme/runs/acorn",
}


def tool(name: str) -> str | None:
    """The path of a program of this environment, which need not be on PATH, or of the machine."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def written(folder: Path, **changes: Any) -> Path:
    """A job file; a key that is None is left out."""
    path = folder / "job.toml"
    lines = [
        f"{key} = {_toml(value)}" for key, value in (GIVEN | changes).items() if value is not None
    ]
    path.write_text("\n".join(lines))
    return path


def job_of(folder: Path, **changes: Any) -> Job:
    return read_job(written(folder, **changes))


def parts(manifest: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """The JobSet, its Job, its pod and that one's container."""
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    return manifest["spec"], job, pod, pod["containers"][0]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)
