"""Child processes for fault tests, forked from a server that has imported the stack once."""

import dataclasses
import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from ... import cli
from ...records import report
from ...records.store import read_lines
from ...run_config import RunConfig
from .. import loop
from ..sharding import make_mesh
from ..start import start_processes
from .workloads import SamplerConfig, sampler

CONTEXT = multiprocessing.get_context("forkserver")
# The kind's own modules too, wherever they are.
CONTEXT.set_forkserver_preload([__name__, f"{cli.__package__}.workload"])


class Child:
    """A forked process whose output goes to a file."""

    def __init__(
        self, target: Callable[..., object], *args: object, log: Path, devices: int = 1, **env: str
    ) -> None:
        self.log = log
        log.touch()
        self.process = CONTEXT.Process(target=_enter, args=(target, args, log, devices, env))
        self.process.start()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 240) -> None:
        """Until the condition holds; the child has to live so long."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.002)

    def code(self, timeout_s: float = 240) -> int | None:
        """Its exit code; None and killed if it does not end."""
        self.process.join(timeout_s)
        code = self.process.exitcode
        self.process.kill()
        return code


def start_job(
    target: Callable[..., object],
    *args: tuple[object, ...],
    folder: Path,
    devices: int = 2,
    **env: str,
) -> list[Child]:
    """A job of as many processes as there are `args`, each with so many devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        Child(
            target,
            *given,
            log=folder / f"log{index}",
            devices=devices,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES=str(len(args)),
            JAX_PROCESS_ID=str(index),
            **env,
        )
        for index, given in enumerate(args)
    ]


def start_two(
    target: Callable[..., object],
    first: tuple[object, ...],
    second: tuple[object, ...],
    *,
    folder: Path,
    **env: str,
) -> list[Child]:
    """A job of two processes with two devices each; `args` of the first and of the second."""
    return start_job(target, first, second, folder=folder, **env)


def steps_of(run_dir: Path) -> list[int]:
    """Steps in metrics.jsonl."""
    return [record["step"] for record in read_lines(run_dir / "metrics.jsonl")]


def kill_thrice(start: Callable[[], Child], run_dir: Path) -> int:
    """Kill a run between saves, then twice while one is being written; the last step it logged."""
    for in_save in (False, True, True):
        child, before = start(), max(steps_of(run_dir), default=0)
        child.wait_for(lambda before=before: max(steps_of(run_dir), default=0) > before + 20)
        if in_save:
            child.wait_for(lambda: any(run_dir.glob("checkpoints/*/*orbax-checkpoint-tmp*")))
        child.process.kill()
        child.process.join()
    return max(steps_of(run_dir))


def _enter(
    target: Callable[..., object],
    args: tuple[object, ...],
    log: Path,
    devices: int,
    env: dict[str, str],
) -> None:
    os.environ.update(env)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    jax.config.update("jax_num_cpu_devices", devices)
    report.plot_all = lambda run_dir: []  # drawing takes seconds
    target(*args)


def train_sampler(
    run_dir: Path | str,
    steps: int,
    every: int,
    delay_s: float = 0.0,
    file_limit: int | None = None,
    fail_at: int | None = None,
    freed_at: int | None = None,
) -> None:
    """Run the sampler through the console script's ending.

    `delay_s` slows its steps down, no file may exceed `file_limit` bytes before batch `freed_at`,
    batch `fail_at` raises.
    """
    options = {"save_every_steps": every, "log_every_steps": 1, "trackers": ()}
    config = SamplerConfig(run=RunConfig(run_dir=str(run_dir), steps=steps, **options))

    def slow(cursor: int) -> dict[str, jax.Array]:
        time.sleep(delay_s)
        if cursor == freed_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        if cursor == fail_at:
            raise RuntimeError("the tenth batch is broken")
        return {}

    def train() -> int:
        start_processes()
        workload = dataclasses.replace(sampler(config), batch=slow)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
        return loop.run(workload, config, make_mesh(config.mesh))

    cli.find_commands()["train"] = train
    cli.main(["train"])


def hang(run_dir: Path) -> None:
    """A run whose batches never come."""
    config = SamplerConfig(run=RunConfig(run_dir=str(run_dir), hang_timeout_s=2.0, trackers=()))
    stuck = dataclasses.replace(sampler(config), batch=lambda cursor: time.sleep(600))
    loop.run(stuck, config, make_mesh(config.mesh))


def stuck(run_dir: Path) -> None:
    """The same through the console script's ending, with a watch that waits longer."""

    def train() -> int:
        config = SamplerConfig(run=RunConfig(run_dir=str(run_dir), trackers=()))
        workload = dataclasses.replace(sampler(config), batch=lambda cursor: time.sleep(600))
        return loop.run(workload, config, make_mesh(config.mesh))

    cli.find_commands()["train"] = train
    cli.main(["train"])


def train_unread(run_dir: Path) -> None:
    """`train_sampler`, with a pipe without reader as standard output and error."""
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(reader)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    train_sampler(run_dir, 100_000, 0, 0.01)


def optimised(*argv: str) -> None:
    """The console script with XLA's optimisations, which conftest.py turns off."""
    jax.config.update("jax_disable_most_optimizations", False)
    cli.main(argv)


def command(*argv: str) -> None:
    """The console script."""
    cli.main(argv)
