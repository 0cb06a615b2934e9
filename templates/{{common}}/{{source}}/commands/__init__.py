"""One module a command, found by its file name. No JAX at the top, nothing another room needs."""

from typing import Annotated

import tyro

from ..config import Config

type Settings = Annotated[Config, tyro.conf.arg(name="")]
"""The configuration of a run. A command that takes it accepts the name of a preset first."""
