"""How tests use a grown project that is installed: its commands, runs of seconds, its records."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

# A run of seconds, of preset demo.
MINI_TEXT = "--data.tokenizer byte --data.prepared-dir data/bytes --data.heldout-fraction 0.02"
MINI = f"""--eval-every-steps 0 --optim.warmup-steps 2 --model.width 96 {MINI_TEXT}
    --data.seq-len 128 --data.batch-size 16"""
ONE_LAYER = "--model.layers 1 --model.scan-unroll 1"
# A run of seconds on a text of a few kilobytes.
TINY = f"""{ONE_LAYER} --eval-every-steps 0 --log-every-steps 1 --optim.warmup-steps 2
    --data.tokenizer byte --data.heldout-fraction 0.2 --data.seq-len 32
    --data.batch-size 8 --model.width 32"""
# Which emitted tests to run where time is short: "mixed" splits along every axis of a mesh.
ONE_MESH = "not test_mesh_equals_one_device or mixed"


def environment() -> dict[str, str]:
    """That of a user, without what is this suite's own.

    With bytecode, which a container may forbid: to compile the stack takes each start five seconds.
    """
    ours = ("VIRTUAL_ENV", "XLA_FLAGS", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in ours}


def uv(
    project: Path, *arguments: str, code: int = 0, typed: str | None = None, **variables: str
) -> str:
    """Run uv in the project as a user would, outside the environment of this suite.

    typed: what it reads from its standard input; variables: of its environment.
    """
    done = subprocess.run(
        [os.environ.get("UV", "uv"), *arguments],
        cwd=project,
        env=environment() | {"JAX_PLATFORMS": "cpu"} | variables,
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == code, (
        f"uv {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-8000:]}"
    )
    return done.stdout


def losses_of(run: Path) -> dict[int, float]:
    """Step -> training loss."""
    records = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def commands_of_the_readme(project: Path) -> list[str]:
    """Every `uv …`, `uvx …`, `docker …` in a code block or backticks, and the table of commands."""
    readme = (project / "README.md").read_text("utf-8")
    table = readme.partition("## Commands")[2].partition("##")[0]
    found = re.findall(r"^ {4}((?:uvx?|docker) .*)", readme, re.MULTILINE)
    found += [" ".join(code.split()) for code in re.findall(r"`((?:uvx?|docker)\s[^`]*)`", readme)]
    found += [f"uv run acorn {name}" for name in re.findall(r"^\| `([a-z-]+)", table, re.M)]
    return [command for command in dict.fromkeys(found) if command != "uv run"]  # no command


def names_of_dependencies(project: Path) -> set[str]:
    """What a package of the project could shadow: all that is locked, and all that is installed."""
    lock = tomllib.loads((project / "uv.lock").read_text("utf-8"))
    installed = "from importlib.metadata import packages_distributions as d; print(*d())"
    names = {package["name"] for package in lock["package"]}
    names |= set(uv(project, "run", "--no-sync", "python", "-c", installed).split())
    plain = {re.sub("[-.]", "_", name.lower()) for name in names - {"acorn"}}
    return {name for name in plain if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)}
