"""Where a run comes from: template, code, packages, devices. Names no machine, user or path."""

import ast
import contextlib
import functools
import hashlib
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
# What `sources` leaves out: rooms that serve every kind in the same way, and settings, which a
# resume compares value by value, so that a new preset is no change of the code.
NO_NUMBERS = ("commands", "runtime", "records", "errors.py")
SETTINGS = ("config.py", "settings.py")  # how the names of their files end


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


def sources(
    package: Path = Path(__file__).parents[1], start: str = "workload.py"
) -> dict[str, str]:
    """File -> SHA-256 of its code, for the files that decide the numbers of a training.

    They are `start` and all that it imports from this package, directly or through others,
    without NO_NUMBERS. Comments, docstrings and formatting do not count.
    """
    found: dict[str, str] = {}
    pending = [start]
    while pending:
        name = pending.pop()
        known = name in found or name.partition("/")[0] in NO_NUMBERS or name.endswith(SETTINGS)
        if known or not (package / name).is_file():
            continue
        found[name], imported = _read(name, (package / name).read_bytes(), package.name)
        pending += imported
    return dict(sorted(found.items()))


@functools.cache  # a process may begin many runs, as tests do
def _read(file: str, content: bytes, package: str) -> tuple[str, list[str]]:
    """SHA-256 of a file's code, and the files of the package that it may import."""
    tree = ast.parse(content)
    imported = [path for node in ast.walk(tree) for path in _imported(file, node, package)]
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest(), imported


def _imported(file: str, node: ast.AST, package: str) -> list[str]:
    """The files of a package that an import statement in one of them may mean."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        start = [package, *file.split("/")[: -node.level]] if node.level else []
        base = ".".join([*start, *filter(None, [node.module])])
        modules = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    else:
        return []
    inside = [m.partition(".")[2].replace(".", "/") for m in modules if m.startswith(f"{package}.")]
    return [f"{path}{end}" for path in inside for end in (".py", "/__init__.py")]


def _plain(code: Any) -> Any:
    """A syntax tree without texts that nothing reads; the same in each version of Python.

    `ast.dump` writes fields without a value in some versions and leaves them out in others.
    """
    if isinstance(code, list):
        return [_plain(node) for node in code if not _is_text(node)]
    if not isinstance(code, ast.AST):
        return repr(code)
    fields = [(name, _plain(value)) for name, value in ast.iter_fields(code) if value is not None]
    return type(code).__name__, [field for field in fields if field[1] != []]


def _is_text(node: Any) -> bool:
    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_constant and isinstance(node.value.value, str)


def origin(found: dict[str, Any]) -> str:
    """Where the code of what `collect` found can be had again, in words."""
    commit, template = found.get("git_commit"), found.get("template")
    words = f"git commit {commit[:12]}" if commit else "no git commit"
    words += " with edits" if found.get("git_dirty") else ""
    return f"{words}, template {template}" if template else words


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
