"""Finds, verifies and loads what a run has saved, for the commands that only read it."""

import logging
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import jax
from jax.sharding import Mesh

from ..contract import State
from ..errors import UserError
from ..records import provenance
from ..run_config import MeshConfig, RunConfig, from_dict
from .changes import changed_files, check_tree
from .checkpoint import Checkpoints, load
from .compiled import with_shardings
from .sharding import make_mesh, named
from .shelf import shelf_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved[C]:
    """A sound checkpoint of a run."""

    path: PurePath
    manifest: dict[str, Any]
    config: C

    @property
    def step(self) -> int:
        """Steps done when it was saved."""
        return int(self.manifest["step"])

    def load(self, bare: State, specs: Any, mesh: Mesh) -> State:
        """The parts of its state that `bare` has by name and shape, placed as `specs` say.

        UserError where the code declares other arrays in them than were saved.
        """
        return dict(self._load([(name,) for name in bare], bare, specs, mesh))

    def load_part(self, path: tuple[str, ...], bare: Any, specs: Any, mesh: Mesh) -> Any:
        """What is under one path of its state, such as ("ema", "power-0.1"); as `load`."""
        for name in reversed(path):
            bare, specs = {name: bare}, {name: specs}
        found = self._load([path], bare, specs, mesh)
        for name in path:
            found = found[name]
        return found

    def _load(self, paths: list[tuple[str, ...]], bare: State, specs: Any, mesh: Mesh) -> Any:
        parts = tuple(jax.tree_util.keystr(tuple(map(jax.tree_util.DictKey, p))) for p in paths)
        tree = {n: v for n, v in self.manifest["tree"].items() if n.startswith(parts)}
        check_tree(self.path, tree, bare)
        return load(self.path, with_shardings(bare, named(specs, mesh)))


def all_saved[C](run_dir: str | PurePath, default: C) -> list[Saved[C]]:
    """The sound checkpoints of a run, oldest first; each is verified, which reads all of it."""
    checkpoints = _checkpoints(run_dir)
    steps = reversed(checkpoints.steps(repair=False))
    found = filter(None, (checkpoints.sound(step, repair=False) for step in steps))
    return [Saved(path, m, from_dict(default, m["config"])) for path, m in found]


def find_saved[C](run_dir: str | PurePath, default: C, step: int | None = None) -> Saved[C]:
    """The newest sound checkpoint or that of `step`, verified as a restore would, and its settings.

    `default` fills in fields that are younger than the checkpoint. Damaged checkpoints are passed
    over and left as they are, since the run may go on. UserError where there is none.
    """
    checkpoints = _checkpoints(run_dir)
    steps = checkpoints.steps(repair=False)
    wanted = [s for s in steps if step in (None, s)]
    found = next(filter(None, (checkpoints.sound(s, repair=False) for s in wanted)), None)
    others = [str(s) for s in reversed(steps) if s != step]
    if found is None and step is not None and others:
        raise UserError(
            got=f"{run_dir}, without a sound checkpoint of step {step}",
            expected=f"a step that was saved: {', '.join(others)}",
            do="take one of these; --keep-every-steps keeps those of a run's further steps",
        )
    if found is None:
        raise UserError(
            got=f"{run_dir}, without a checkpoint",
            expected="the --run-dir of a run that has saved",
            do=f"run it first: --run-dir {run_dir}, and let it reach a save",
        )
    path, manifest = found
    if files := changed_files(manifest.get("sources", {}), provenance.sources()):
        log.warning("%s was saved by other code in %s", path, ", ".join(files))
    return Saved(path, manifest, from_dict(default, manifest["config"]))


def _checkpoints(run_dir: str | PurePath) -> Checkpoints:
    """Those of a run, to be read."""
    shelf = shelf_of(str(run_dir), reader=True)
    shelf.clear_copies()
    return Checkpoints(shelf, RunConfig())


def mesh_that_fits(config: MeshConfig) -> Mesh:
    """The mesh of a run with as many replicas as the devices allow, else replicas alone."""
    fits = jax.device_count() % (config.fsdp * config.tensor) == 0
    return make_mesh(replace(config, data=-1, slices=-1) if fits else MeshConfig())
