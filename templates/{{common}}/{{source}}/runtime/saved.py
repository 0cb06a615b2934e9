"""Finds, verifies and loads what a run has saved, for the commands that only read it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ..errors import UserError
from ..run_config import MeshConfig, from_dict
from .checkpoint import Checkpoints, load
from .compiled import with_shardings
from .sharding import make_mesh, named


@dataclass(frozen=True)
class Saved[C]:
    """The newest sound checkpoint of a run."""

    path: Path
    manifest: dict[str, Any]
    config: C

    @property
    def step(self) -> int:
        """Steps done when it was saved."""
        return int(self.manifest["step"])

    def load(self, bare: Any, specs: Any, mesh: Mesh) -> Any:
        """Its arrays that the tree `bare` names, by shape, placed on the mesh as `specs` say."""
        return load(self.path, with_shardings(bare, named(specs, mesh)))


def find_saved[C](run_dir: str | Path, default: C) -> Saved[C]:
    """The newest sound checkpoint, verified as a restore would, with its configuration.

    `default` fills in fields that are younger than the checkpoint. Damaged checkpoints are passed
    over and left as they are, since the run may go on.
    """
    found = Checkpoints(Path(run_dir) / "checkpoints", keep=0).newest(repair=False)
    if found is None:
        raise UserError(
            got=f"{run_dir}, without a checkpoint",
            expected="the --run-dir of a run that has saved",
            do=f"run it first: --run-dir {run_dir}, and let it reach a save",
        )
    path, manifest = found
    return Saved(path, manifest, from_dict(default, manifest["config"]))


def mesh_that_fits(config: MeshConfig) -> Mesh:
    """The mesh of a run with as many replicas as the devices allow, else replicas alone."""
    fits = jax.device_count() % (config.fsdp * config.tensor) == 0
    return make_mesh(replace(config, data=-1) if fits else MeshConfig())
