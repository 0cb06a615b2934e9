"""What can be typed: one module a command, found by its file name. No JAX at the top, no work that
anything but the command line needs."""

from typing import Annotated

import tyro

from ..config import Config

type Settings = Annotated[Config, tyro.conf.arg(name="")]
"""The configuration of a run: a command that takes it reads a preset's name first."""
