"""Joins data, model and step into what the loop drives. Computes nothing itself."""

from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from .config import Config
from .contract import State, Workload
from .data import Rows, make_batches
from .distributed import barrier
from .errors import UserError
from .evaluate import bits_per_byte, make_evaluate
from .prepare import prepare
from .sharding import spec
from .shards import open_split, read_manifest
from .step import flops_per_token, init_state, make_learner, state_specs, train_step


def make_workload(config: Config, mesh: Mesh) -> Workload:
    """The language model on its prepared text, which is prepared first where it is missing."""
    data, optim = config.data, config.optim
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    if data.batch_size % (replicas * optim.micro_batches):
        raise UserError(
            got=f"--data.batch-size {data.batch_size} with {replicas} x data-parallel devices and "
            f"{optim.micro_batches} micro-batches",
            expected=f"a multiple of {replicas * optim.micro_batches}",
            do="change --data.batch-size, --optim.micro-batches or --mesh.data / --mesh.fsdp",
        )
    if jax.process_index() == 0:
        prepare(data)
    barrier("prepared")
    manifest = read_manifest(data.prepared_dir)
    train, heldout = (open_split(data.prepared_dir, name) for name in ("train", "heldout"))
    learner = make_learner(config, manifest.vocab_size, manifest.bos_id)
    rows = Rows(train, data.seq_len, learner.packing)
    tokens_per_step = data.batch_size * data.seq_len

    def finish(state: State) -> dict[str, Any]:
        return {
            "parameters": sum(x.size for x in jax.tree.leaves(state["params"])),
            **bits_per_byte(learner, state["params"], heldout, mesh),
            "corpus_sha256": manifest.corpus_sha256,
            "corpus_python": manifest.python,
            "train_tokens": manifest.total("tokens", "train"),
            "padding_fraction": rows.waste(),
        }

    return Workload(
        init=partial(init_state, learner),
        step=partial(train_step, learner),
        batch=make_batches(
            rows,
            seed=config.run.seed,
            batch_size=data.batch_size,
            micro_batches=optim.micro_batches,
            sharding=NamedSharding(mesh, spec(None, "batch", None)),
        ),
        stride=data.batch_size,
        specs=partial(state_specs, learner),
        evaluate=make_evaluate(learner, heldout, mesh),
        finish=finish,
        rate=("tokens", tokens_per_step),
        flops_per_step=flops_per_token(learner) * tokens_per_step,
        identity={
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "corpus_sha256": manifest.corpus_sha256,
            "packing": learner.packing,
        },
    )
