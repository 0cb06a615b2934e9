"""Makes the `Workload` of a language model from data, model and step. Computes nothing itself."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from .config import Config
from .contract import Beat, Section, State, Workload
from .data import Rows
from .evaluate import baselines, bits_per_byte, make_evaluate
from .generate import make_artifacts
from .records.mirror import Mirror
from .runtime.distributed import barrier
from .step import Learner, flops_per_token, init_state, make_learner, train_step
from .text.prepare import left_out, prepare
from .text.settings import TextConfig
from .text.shards import open_split, open_tokenizer, read_manifest, tokenizer_files
from .text.tokenizer import ByteTokenizer, JsonTokenizer
from .training.axes import spec
from .training.batches import fit_micro_batches, make_batches
from .training.layers import state_specs
from .training.optim_config import smaller_steps

log = logging.getLogger(__name__)

BATCH_SPEC = spec(None, "batch", None)  # micro-batch, row, token


def make_workload(config: Config, mesh: Mesh) -> Workload:
    """The language model on its prepared text, which is prepared first where it is missing."""
    config, data = _with_fitting_micro_batches(config, mesh), config.data
    if jax.process_index() == 0:
        prepare(data)
    barrier("prepared")
    if jax.process_index() > 0:
        Mirror(data.prepared_dir, process=jax.process_index()).fetch()
    manifest = read_manifest(data.prepared_dir)
    train, heldout = (open_split(data.prepared_dir, name) for name in ("train", "heldout"))
    learner = make_learner(config, manifest.vocab_size, manifest.bos_id)
    rows = Rows(train, data.seq_len, learner.packing)
    epochs = config.run.steps * data.batch_size / len(rows)
    if jax.process_index() == 0:
        log.info("%d steps are %.2f epochs of %d rows", config.run.steps, epochs, len(rows))
        if manifest.unusable:  # an empty document is no loss
            level = logging.WARNING if {*manifest.unusable} - {"empty"} else logging.INFO
            log.log(level, "%s", left_out(manifest))

    def finish(state: State, beat: Beat) -> tuple[dict[str, Any], dict[str, Section]]:
        summary = {
            **bits_per_byte(learner, state["params"], heldout, mesh, beat),
            **baselines(heldout, data.seq_len, beat),
            "corpus_sha256": manifest.corpus_sha256,
            "corpus_python": manifest.python,
            "epochs": epochs,
            "train_tokens": manifest.total("tokens", "train"),
            "padding_fraction": rows.waste(),
        }
        return summary, {}

    tokens = make_batches(
        rows,
        seed=config.run.seed,
        batch_size=data.batch_size,
        micro_batches=config.optim.micro_batches,
        sharding=NamedSharding(mesh, BATCH_SPEC),
    )
    return replace(
        _on_shapes(learner, mesh),
        batch=lambda cursor: {"tokens": tokens(cursor)},
        evaluate=make_evaluate(learner, heldout, mesh),
        artifacts=make_artifacts(learner, mesh, open_tokenizer(data.prepared_dir)),
        finish=finish,
        identity={
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "corpus_sha256": manifest.corpus_sha256,
            "data.packing": learner.packing,
        },
        # As worked out from --steps where they follow it.
        tunable={
            f"optim.{name}": getattr(learner.config.optim, name)
            for name in ("horizon_steps", "warmup_steps")
        },
        run_files=tokenizer_files(data.prepared_dir),
    )


def make_dry_workload(config: Config, mesh: Mesh) -> Workload:
    """The language model without text, for `preflight`: its batches are shapes, not arrays."""
    config = _with_fitting_micro_batches(config, mesh)
    platform = mesh.devices.flat[0].platform
    return _on_shapes(make_learner(config, *vocabulary(config.data), platform), mesh)


def _with_fitting_micro_batches(config: Config, mesh: Mesh) -> Config:
    optim = fit_micro_batches(config.optim, config.data.batch_size, mesh)
    return replace(config, optim=optim)


def _on_shapes(learner: Learner, mesh: Mesh) -> Workload:
    data, micro_batches = learner.config.data, learner.config.optim.micro_batches
    shape = (micro_batches, data.batch_size // micro_batches, data.seq_len + 1)
    tokens = jax.ShapeDtypeStruct(shape, "int32", sharding=NamedSharding(mesh, BATCH_SPEC))
    tokens_per_step = data.batch_size * data.seq_len
    return Workload(
        init=partial(init_state, learner),
        step=partial(train_step, learner),
        batch=lambda cursor: {"tokens": tokens},
        stride=data.batch_size,
        specs=partial(state_specs, learner.declared),
        rate=("tokens", tokens_per_step),
        flops_per_step=flops_per_token(learner) * tokens_per_step,
        nonfinite="skip",
        smaller_steps=smaller_steps(learner.config.optim),
        flops_formula="6 x parameters that multiply + causal attention, halved",
    )


def vocabulary(data: TextConfig) -> tuple[int, int]:
    """Size and BOS of the vocabulary by the settings alone; needs no prepared text."""
    if data.tokenizer == "bpe":
        return data.vocab_size, 0
    found = ByteTokenizer() if data.tokenizer == "byte" else JsonTokenizer(Path(data.tokenizer))
    return found.vocab_size, found.bos_id
