"""A run that several tests read."""

from functools import partial
from pathlib import Path

import jax
import pytest

from .. import panel
from ..errors import Exit
from ..images.features import train_classifier
from ..runtime.loop import run
from ..runtime.sharding import make_mesh
from ..workload import make_workload
from . import tiny


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept a checkpoint every six steps."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny.in_folder(
        folder, steps=24, save_every_steps=6, keep_every_steps=6, eval_every_steps=12
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(panel, "train_classifier", partial(train_classifier, steps=30))
        assert run(make_workload(config, mesh), config, mesh) == Exit.DONE
    return folder / "run"
