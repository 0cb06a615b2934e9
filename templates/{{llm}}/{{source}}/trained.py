"""Opens what a run has learned, for the commands that only read it. Trains and repairs nothing."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from .config import Config
from .errors import UserError
from .run_config import MeshConfig, from_dict
from .runtime.checkpoint import Checkpoints, load
from .runtime.sharding import make_mesh, named
from .step import Learner, init_state, make_learner
from .text.shards import open_tokenizer, read_manifest
from .text.tokenizer import Tokenizer
from .training.layers import state_specs


@dataclass(frozen=True)
class Trained:
    """The newest sound checkpoint of a run, on the devices that are here."""

    learner: Learner
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh
    step: int


def open_run(run_dir: str) -> Trained:
    """Parameters, verified as a restore would, and the configuration they were made with."""
    found = Checkpoints(Path(run_dir) / "checkpoints", keep=0).newest(repair=False)
    if found is None:
        raise UserError(
            got=f"{run_dir}, without a checkpoint",
            expected="the --run-dir of a training that has saved",
            do=f"train first: train demo --run-dir {run_dir}",
        )
    path, manifest = found
    identity = manifest["identity"]
    config = from_dict(Config(), manifest["config"])
    config = replace(
        config,
        # The kernel is chosen for the devices here; how documents are kept apart was learned.
        model=replace(config.model, attention="auto"),
        data=replace(config.data, packing=identity["data.packing"]),
    )
    text = read_manifest(config.data.prepared_dir)
    if text.tokenizer_sha256 != identity["tokenizer_sha256"]:
        raise UserError(
            got=f"tokenizer {text.tokenizer_sha256[:12]} in {config.data.prepared_dir}",
            expected=f"{identity['tokenizer_sha256'][:12]}, which {path} was trained with",
            do="prepare the text again with that run's --data settings",
        )
    learner = make_learner(config, text.vocab_size, text.bos_id)
    mesh = make_mesh(_mesh_here(config.mesh))
    params = load(path, {"params": abstract_params(learner, mesh)})["params"]
    return Trained(
        learner, params, open_tokenizer(config.data.prepared_dir), mesh, manifest["step"]
    )


def abstract_params(learner: Learner, mesh: Mesh) -> Any:
    """Shapes and shardings of the parameters alone."""
    bare = jax.eval_shape(partial(init_state, learner), jax.random.key(0))
    shardings = named(state_specs(learner.declared, bare), mesh)
    place = partial(jax.tree.map, lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s))
    return place(bare["params"], shardings["params"])


def _mesh_here(trained: MeshConfig) -> MeshConfig:
    """The run's own mesh with as many replicas as there is room for, else replicas alone."""
    fits = jax.device_count() % (trained.fsdp * trained.tensor) == 0
    return replace(trained, data=-1) if fits else MeshConfig()
