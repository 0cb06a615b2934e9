"""The commands of this project: what each takes from the command line, and where its work is done.

A command with a `config` takes a preset's name first, then overrides of single fields. Imports no
JAX: every command imports what it needs when it is called.
"""

from collections.abc import Callable
from typing import Annotated

import tyro

from .config import PRESETS, Config, validate
from .errors import Exit

type Settings = Annotated[Config, tyro.conf.arg(name="")]

__all__ = ["COMMANDS", "PRESETS"]


def train(*, config: Settings) -> int:
    """Train, or go on with the run that stands in --run-dir."""
    from .distributed import start_processes
    from .loop import run
    from .sharding import make_mesh
    from .workload import make_workload

    validate(config)
    start_processes()
    mesh = make_mesh(config.mesh)
    return run(make_workload(config, mesh), config, mesh)


def prepare(*, config: Settings) -> int:
    """Turn text into token shards; `train` does it too where they are missing."""
    from .prepare import describe, prepare

    print(describe(prepare(config.data)))
    return Exit.DONE


def doctor() -> int:
    """Say what this environment is, and what is wrong with it."""
    from .doctor import doctor

    return doctor([])


def template_status() -> int:
    """Say how far the template is ahead of this project, and what the last update brought."""
    from .template_status import template_status

    return template_status([])


COMMANDS: dict[str, Callable[..., int]] = {
    "train": train,
    "prepare": prepare,
    "doctor": doctor,
    "template-status": template_status,
}
