"""What is exported gives the same logits under Hugging Face's definition of the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from ..attention import attend
from ..config import Config, ModelConfig, validate
from ..errors import UserError
from ..hub import hub_config, hub_tensors, unknown_parts, write_tokenizer
from ..model import Transformer
from ..step import Learner, init_state, make_learner
from ..text.settings import DataConfig
from ..text.tokenizer import JsonTokenizer, train_bpe
from ..training.layers import norm_gain
from ..training.weights_file import write_weights

QWEN = ModelConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=16, mlp_width=48)
LLAMA = replace(
    QWEN, qk_norm=False, tied_embeddings=False, rope_theta=500.0, rope_factor=8.0, rope_context=32
)


def make(model: ModelConfig) -> tuple[Learner, Any]:
    """Random weights whose norms are not ones, so that each gain has to arrive."""
    learner = make_learner(validate(Config(model=model, data=DataConfig(seq_len=24))), 300, 0)
    params = init_state(learner, jax.random.key(0))["params"]

    def noisy(x: jax.Array) -> jax.Array:
        return x * jax.random.uniform(jax.random.key(x.size), x.shape, minval=0.5, maxval=1.5)

    return learner, jax.tree.map(noisy, params)


def hub_forward(config: dict[str, Any], w: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """transformers' modeling_qwen3.py and modeling_llama.py, written out in NumPy; one row."""
    heads, pairs, dim = (
        config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return gain * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config["rms_norm_eps"])

    frequencies = 1.0 / config["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    if (stretch := config["rope_scaling"]) is not None:
        old, low, high = (
            stretch[k]
            for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
        )
        wavelengths = 2 * np.pi / frequencies
        slowed = frequencies / stretch["factor"]
        smooth = (old / wavelengths - low) / (high - low)
        between = (1 - smooth) * slowed + smooth * frequencies
        frequencies = np.where(
            wavelengths > old / low,
            slowed,
            np.where(wavelengths < old / high, frequencies, between),
        )
    angles = np.arange(len(ids))[:, None] * frequencies
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))

    def rotate(x: np.ndarray) -> np.ndarray:
        half = np.concatenate([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
        return x * cos + half * sin

    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        layer = {k.split(f"layers.{i}.")[1]: v for k, v in w.items() if f"layers.{i}." in k}
        h = norm(x, layer["input_layernorm.weight"])
        q, k, v = (
            (h @ layer[f"self_attn.{n}_proj.weight"].T).reshape(len(ids), -1, dim) for n in "qkv"
        )
        if "self_attn.q_norm.weight" in layer:
            q = norm(q, layer["self_attn.q_norm.weight"])
            k = norm(k, layer["self_attn.k_norm.weight"])
        q, k = rotate(q), np.repeat(rotate(k), heads // pairs, axis=1)
        v = np.repeat(v, heads // pairs, axis=1)
        scores = np.einsum("tnh,snh->nts", q, k) * dim**-0.5
        scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("nts,snh->tnh", powers / powers.sum(-1, keepdims=True), v)
        x = x + mixed.reshape(len(ids), -1) @ layer["self_attn.o_proj.weight"].T
        h = norm(x, layer["post_attention_layernorm.weight"])
        gate = h @ layer["mlp.gate_proj.weight"].T
        up = h @ layer["mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp.down_proj.weight"].T
    tied = config["tie_word_embeddings"]
    return (
        norm(x, w["model.norm.weight"])
        @ w["model.embed_tokens.weight" if tied else "lm_head.weight"].T
    )


@pytest.mark.parametrize(("model", "name"), [(QWEN, "Qwen3"), (LLAMA, "Llama")])
def test_exported_tensors_give_the_same_logits(
    model: ModelConfig, name: str, tmp_path: Path
) -> None:
    learner, params = make(model)
    if unknown_parts(learner):
        with pytest.raises(UserError, match=r"hub\.py"):
            hub_config(learner)
        pytest.skip("the model is one that the Hub does not know, and `export` refuses it")
    config = json.loads(json.dumps(hub_config(learner)))
    assert config["architectures"] == [f"{name}ForCausalLM"]
    write_weights(tmp_path / "model.safetensors", hub_tensors(learner, params))
    tensors = load_file(tmp_path / "model.safetensors")
    ids = np.arange(24) * 37 % 300
    merged = nnx.merge(learner.graph, nnx.State(params))
    hidden = merged(jnp.asarray(ids)[None], lambda q, k, v: attend(q, k, v, None, "xla"))
    ours = merged.logits(hidden)[0, :, :300]
    np.testing.assert_allclose(
        hub_forward(config, tensors, ids),
        ours,
        atol=1e-4,
        err_msg="model.py computes something else than the Hub's architecture of these names: "
        "name its parameters otherwise, so that `export` refuses it",
    )


@pytest.mark.parametrize("change", ["an unknown name", "a missing one"])
def test_what_the_hub_does_not_know_or_would_lack_is_refused(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Transformer.__init__

    def init(self: Transformer, *args: Any) -> None:
        real(self, *args)
        if change == "an unknown name":
            self.positions = norm_gain(4)
        else:
            del self.final_norm

    monkeypatch.setattr(Transformer, "__init__", init)
    learner = make_learner(validate(Config(model=QWEN, data=DataConfig(seq_len=24))), 300, 0)
    name = "positions" if change == "an unknown name" else "final_norm"
    with pytest.raises(UserError, match=rf"got: .*: .*{name}"):
        hub_config(learner)


def test_a_logit_cap_is_refused() -> None:
    learner, _ = make(replace(QWEN, logit_cap=30.0))
    with pytest.raises(UserError, match="logit-cap"):
        hub_config(learner)


def test_parameters_beside_the_layers_are_compared_too() -> None:
    learner, _ = make(QWEN)
    declared = nnx.to_pure_dict(learner.declared)
    more = replace(learner, declared=nnx.State(declared | {"positions": declared["embedding"]}))
    assert "positions" in unknown_parts(more)
    with pytest.raises(UserError, match="positions"):
        hub_config(more)
    untied = replace(learner.config, model=replace(QWEN, tied_embeddings=not QWEN.tied_embeddings))
    assert "head" in unknown_parts(replace(learner, config=untied))


def test_exported_tokenizer_gives_the_same_ids_after_bos(tmp_path: Path) -> None:
    text = "def f(x):\n\treturn '€', x  # naïve \0 \x7f\x85\n"
    (tmp_path / "own.json").write_text(train_bpe(iter([text * 3]), 300))
    ours = JsonTokenizer(tmp_path / "own.json")
    write_tokenizer(tmp_path, tmp_path / "own.json", ours.bos_id)
    read = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = read.encode(text).ids
    assert ids == [ours.bos_id, *ours.encode_batch([text])[0]]
    assert read.decode(ids) == text
    facts = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert read.token_to_id(facts["bos_token"]) == ours.bos_id
