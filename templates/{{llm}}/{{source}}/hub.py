"""Writes a checkpoint as other tools read it: a Qwen3 or Llama folder of the Hugging Face Hub.

Writes float32 from one process with all parameters. Does not write what only training uses.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from .errors import UserError
from .records import store
from .run_config import flatten
from .step import Learner
from .text.tokenizer import ByteTokenizer
from .trained import open_run
from .training.weights_file import write_weights

# Our name -> the Hub's.
TABLES = {"embedding": "model.embed_tokens", "head": "lm_head"}
# Of a layer. The Hub stores matrices as (out, in), this project as (in, out).
NAMES = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def export(run_dir: str, to: str) -> None:
    """Write model.safetensors, config.json and, unless it is `byte`, the tokenizer to `to`."""
    folder, run = store.on_disk(to), open_run(run_dir)
    config = hub_config(run.learner)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / "model.safetensors", hub_tensors(run.learner, run.params))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    print(f"{folder}: {config['architectures'][0]} of step {run.step}")
    if isinstance(run.tokenizer, ByteTokenizer):
        print(f"no tokenizer.json: ids are the bytes of UTF-8; {run.learner.bos_id} begins a text")
    else:
        write_tokenizer(folder, run.inputs / "tokenizer.json", run.learner.bos_id)


def hub_config(learner: Learner) -> dict[str, Any]:
    """The content of config.json; refuses what neither architecture can express."""
    c = learner.config.model
    if c.logit_cap:
        raise UserError(
            got=f"a model with --model.logit-cap {c.logit_cap}",
            expected="0: neither Qwen3 nor Llama caps its logits",
            do="train without a cap to export, or read the checkpoint with this project",
        )
    if unknown := unknown_parts(learner):
        raise UserError(
            got=f"a model with other parameters than Qwen3 and Llama: {', '.join(unknown)}",
            expected="theirs, by the names that hub.py knows",
            do="write names and config.json of your architecture in hub.py",
        )
    stretch = {
        "rope_type": "llama3",
        "factor": c.rope_factor,
        "low_freq_factor": 1.0,  # this and the next are constants of model.rope_table
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": c.rope_context,
    }
    return {
        "architectures": ["Qwen3ForCausalLM" if c.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if c.qk_norm else "llama",
        "vocab_size": learner.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": 1e-6,
        "rope_theta": c.rope_theta,
        "rope_scaling": stretch if c.rope_factor != 1.0 else None,
        "max_position_embeddings": learner.config.data.seq_len,
        "tie_word_embeddings": c.tied_embeddings,
        "bos_token_id": learner.bos_id,
        "eos_token_id": learner.bos_id,  # the next document's BOS ends one
        "torch_dtype": "float32",
    }


def unknown_parts(learner: Learner) -> list[str]:
    """Parameters that the Hub's architecture does not have, or that it has and the model lacks.

    Other mathematics on the same parameters is not seen here.
    """
    c = learner.config.model
    known = {*TABLES, "final_norm", *(f"blocks.{name}" for name in NAMES)}
    if c.tied_embeddings:
        known -= {"head"}
    if not c.qk_norm:
        known -= {"blocks.query_norm", "blocks.key_norm"}
    return sorted(known ^ set(flatten(nnx.to_pure_dict(learner.declared))))


def hub_tensors(learner: Learner, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters under the names of the Hub, without the rows that pad the vocabulary."""
    tensors = {
        f"{name}.weight": np.asarray(params[ours])[: learner.vocab_size]
        for ours, name in TABLES.items()
        if ours in params
    }
    tensors["model.norm.weight"] = np.asarray(params["final_norm"])
    for ours, stacked in params["blocks"].items():
        for i, layer in enumerate(np.asarray(stacked)):
            tensors[f"model.layers.{i}.{NAMES[ours]}.weight"] = layer.T
    return tensors


def write_tokenizer(folder: Path, own: Path, bos_id: int) -> None:
    """Write tokenizer.json, which puts BOS first as training does, and tokenizer_config.json."""
    inner = Tokenizer.from_file(str(own))
    bos = inner.id_to_token(bos_id)
    if inner.post_processor is None:
        inner.post_processor = TemplateProcessing(f"{bos} $A", special_tokens=[(bos, bos_id)])
    inner.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": bos}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2))
