"""Grow `build/demo` with the default answers, train it on real data and sample from it.

The project appears whole or not at all, and one that stands and is up to date is used again: its
training resumes where it was stopped. One that differs from today's template (or was edited) is
set aside as `build/demo.previous-1`, -2 … Not a test: `make test` proves what this shows.
"""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import copier
from link import BUILD, ROOT, python_for, snapshot

COMMANDS = {
    "llm": ("train demo", "sample --run-dir runs/demo --chars 300"),
    "diffusion": ("train demo", "sample --run-dir runs/demo --count 100"),
    "bayes": ("fit demo", "diagnose --run-dir runs/demo"),
    "tpu": ("train demo", "simulate --hosts 2 --devices-per-host 1 --kill 1@step150"),
}


def grow(kind: str, into: Path) -> None:
    """Render the kind; from git where there is a commit, so that the demo can be updated."""
    in_git = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--verify", "--quiet", "HEAD"], capture_output=True
    )
    with tempfile.TemporaryDirectory() as scratch:
        copier.run_copy(
            str(snapshot(Path(scratch)) if in_git.returncode else ROOT),
            into,
            data={"kind": kind},
            vcs_ref="HEAD",  # the working tree too, not the latest tag
            defaults=True,
            quiet=True,
        )


def is_same(fresh: Path, standing: Path) -> bool:
    """Whether every file of the fresh render stands unchanged; its answers file names a commit."""
    return standing.is_dir() and all(
        (twin := standing / file.relative_to(fresh)).is_file()
        and twin.read_bytes() == file.read_bytes()
        for file in fresh.rglob("*")
        if file.is_file() and file.name != ".copier-answers.yml"
    )


def settle(kind: str) -> Path:
    """The up-to-date project in `build/demo`: the one that stands, or a fresh one."""
    demo = BUILD / "demo"
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix=".demo-") as scratch:
        fresh = Path(scratch) / "demo"
        grow(kind, fresh)
        if is_same(fresh, demo):
            return demo
        if demo.exists():
            numbered = (BUILD / f"demo.previous-{n}" for n in itertools.count(1))
            previous = next(folder for folder in numbered if not folder.exists())
            demo.rename(previous)
            print(f"build/demo differs from the template: set aside as {previous.name}", flush=True)
        fresh.rename(demo)
    return demo


def run(command: list[str], folder: Path, environment: dict[str, str]) -> int:
    """Run to the end: Ctrl-C reaches the child by itself, SIGTERM is passed on; it saves first."""
    child = subprocess.Popen(command, cwd=folder, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


def main(kind: str) -> int:
    """Render, train, sample; the exit code of the first command that fails, 130 after Ctrl-C."""
    try:
        demo = settle(kind)
        environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
        environment |= python_for(demo)
        uv = environment.get("UV", "uv")  # set by `uv run`
        for command in COMMANDS[kind]:
            print(f"\nbuild/demo $ uv run acorn {command}", flush=True)
            code = run([uv, "run", "acorn", *command.split()], demo, environment)
            if code:
                return code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "llm"))
