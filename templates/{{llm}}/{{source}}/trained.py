"""Opens the newest checkpoint of a run, for the commands that only read it."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from .config import Config
from .errors import UserError
from .runtime.saved import find_saved, mesh_that_fits
from .step import Learner, init_state, make_learner
from .text.shards import open_tokenizer, read_manifest
from .text.tokenizer import Tokenizer
from .training.layers import state_specs


@dataclass(frozen=True)
class Trained:
    """A trained model on the devices that are here."""

    learner: Learner
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh
    step: int


def open_run(run_dir: str) -> Trained:
    """The newest checkpoint, verified, with the configuration and the tokenizer of its training."""
    saved = find_saved(run_dir, Config())
    config, identity = saved.config, saved.manifest["identity"]
    config = replace(
        config,
        # The kernel is chosen for these devices; the packing stays that of the training.
        model=replace(config.model, attention="auto"),
        data=replace(config.data, packing=identity["data.packing"]),
    )
    folder = config.data.prepared_dir
    text = read_manifest(folder)
    if text.tokenizer_sha256 != identity["tokenizer_sha256"]:
        raise UserError(
            got=f"tokenizer {text.tokenizer_sha256[:12]} in {folder}",
            expected=f"{identity['tokenizer_sha256'][:12]}, which {saved.path} was trained with",
            do="prepare the text again with that run's --data settings",
        )
    learner = make_learner(config, text.vocab_size, text.bos_id)
    mesh = mesh_that_fits(config.mesh)
    bare = jax.eval_shape(partial(init_state, learner), jax.random.key(0))
    specs = state_specs(learner.declared, bare)
    params = saved.load({"params": bare["params"]}, {"params": specs["params"]}, mesh)["params"]
    return Trained(learner, params, open_tokenizer(folder), mesh, saved.step)
