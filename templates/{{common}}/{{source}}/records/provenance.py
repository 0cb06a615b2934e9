"""Where a run comes from: template, code, packages, devices. Names no machine, user or path."""

import contextlib
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ANSWERS = ".copier-answers.yml"
# What affects a run's numbers beside the project's own dependencies.
BACKENDS = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
PACKAGES = ("jax", "orbax-checkpoint", "numpy")


def collect() -> dict[str, Any]:
    """All of it as plain JSON types, None where it is unknown. Starts the JAX backend."""
    import jax

    source = Path(__file__).parents[2:4]  # src/ and its parent; there is no project in a wheel
    root = next((folder for folder in source if (folder / "pyproject.toml").is_file()), None)
    answers = root / ANSWERS if root else None
    text = answers.read_text("utf-8") if answers and answers.is_file() else ""
    changes = _git(root, "status", "--porcelain", ".")
    return {
        "template": answer(text, "_commit") or None,
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": versions(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def command_line() -> str:
    """The command that this process was started with, to be typed again."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def answer(answers: str, name: str) -> str:
    """The value of a plain `name: value` line of the answers file; empty if there is none."""
    found = re.search(rf"^{name}: *(.*)$", answers, re.MULTILINE)
    return found[1].strip().strip("'\"") if found else ""


def requirements() -> dict[str, str]:
    """Package -> declared lower bound ("" = none) of this project's core dependencies."""
    try:
        declared = metadata.requires(str(__package__).partition(".")[0]) or []
    except metadata.PackageNotFoundError:  # run from source
        return dict.fromkeys(PACKAGES, "")
    core = (text for text in declared if "extra ==" not in text)
    matches = (re.match(r"([\w.-]+)(?:\[.*?\])?[^;]*?(?:>=\s*([\w.]+)|;|$)", text) for text in core)
    return {found[1]: found[2] or "" for found in matches if found}


def versions() -> dict[str, str]:
    """Package -> installed version, of the dependencies and the JAX backends."""
    found = {}
    for name in (*requirements(), *BACKENDS):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _git(root: Path | None, *command: str) -> str | None:
    """Output of git in the project; None without git, or where the project is not committed."""
    options: Any = {"cwd": root, "capture_output": True, "text": True, "timeout": 10, "check": True}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if root:
            subprocess.run(["git", "ls-files", "--error-unmatch", "pyproject.toml"], **options)
            return str(subprocess.run(["git", *command], **options).stdout).strip()
    return None
