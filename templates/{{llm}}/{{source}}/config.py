"""The settings of an LLM run and its presets. Imports no JAX.

A field made by `identity` defines the run and must match on resume; the others may change.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from .errors import UserError
from .run_config import MeshConfig, RunConfig, check_settings, identity, setting
from .text.settings import DataConfig
from .training.optim_config import OptimConfig


@dataclass(frozen=True)
class ModelConfig:
    """Decoder-only Transformer in the shape of Llama and Qwen3."""

    layers: int = identity(4)
    width: int = identity(192)  # of the residual stream
    heads: int = identity(3)
    kv_heads: int = identity(3)  # fewer than heads = grouped-query attention
    head_dim: int = identity(64)
    mlp_width: int = identity(512)  # of the SwiGLU hidden layer
    qk_norm: bool = identity(True)  # RMSNorm of queries and keys, as in Qwen3
    tied_embeddings: bool = identity(True)  # one matrix embeds tokens and makes logits
    rope_theta: float = identity(10_000.0)
    rope_factor: float = identity(1.0, least=1)  # > 1 stretches the context as Llama 3.1 does
    rope_context: int = identity(8192)  # context length before that stretch, tokens
    logit_cap: float = identity(0.0, least=0)  # soft cap, cap * tanh(logits / cap); 0 = off
    z_loss: float = identity(0.0, least=0)  # weight of the squared log-normaliser; 0 = off
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bf16 off the CPU
    attention: Literal["auto", "xla", "cudnn"] = "auto"  # auto: cuDNN on NVIDIA GPUs
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass computes again
    scan_unroll: int = setting(1)  # layers a scan iteration holds; = layers unrolls the loop


@dataclass(frozen=True)
class Config:
    """One run."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)


def validate(config: Config) -> Config:
    """The configuration, if its values are within their bounds and its parts fit together."""
    check_settings(config)
    m, data = config.model, config.data
    divisors = [k for k in range(1, m.heads + 1) if m.heads % k == 0]
    if m.kv_heads not in divisors:
        raise UserError(
            got=f"--model.heads {m.heads} --model.kv-heads {m.kv_heads}",
            expected="kv_heads that divide heads",
            do=f"choose --model.kv-heads among {divisors}",
        )
    if m.head_dim % 2:
        raise UserError(
            got=f"--model.head-dim {m.head_dim}",
            expected="an even number: RoPE rotates pairs",
            do=f"choose {m.head_dim + 1}",
        )
    if m.layers % m.scan_unroll:
        raise UserError(
            got=f"--model.scan-unroll {m.scan_unroll} with {m.layers} layers",
            expected="a divisor of the layers",
            do="1 compiles one layer, --model.layers unrolls all",
        )
    if m.attention == "cudnn" and data.packing == "segments":
        raise UserError(
            got="--model.attention cudnn --data.packing segments",
            expected="packing documents: that kernel knows no segments",
            do="leave --data.packing at auto",
        )
    return config


def demo() -> Config:
    """1.3M parameters on Python's own source: four to seven minutes on two CPU cores.

    Held-out bits per byte: 1.17, where `gzip -9` of all of them joined makes 1.97.
    """
    return Config(
        run=RunConfig(
            run_dir="runs/demo",
            steps=1500,
            log_every_steps=20,
            eval_every_steps=400,
            artifacts_every_steps=400,
            save_every_steps=400,
        ),
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=1e-2,
            muon_learning_rate=3e-2,
            schedule="linear",
            warmup_steps=10,
            final_fraction=0.02,
        ),
        model=ModelConfig(
            layers=4,
            width=128,
            heads=2,
            kv_heads=2,
            mlp_width=352,
            scan_unroll=4,
            compute_dtype="bfloat16",  # as on accelerators; on a CPU with AVX-512 1.2 x float32
        ),
        data=DataConfig(batch_size=8, eval_rows=128),
    )


def gpt2_124m() -> Config:
    """The size of GPT-2 small in the shape of Llama (6 heads of 128 are faster than 12 of 64).

    1.9e9 tokens, for one 80 GB GPU. The default corpus has far fewer: set --data.paths.
    """
    return Config(
        run=RunConfig(
            run_dir="runs/gpt2-124m",
            steps=3600,
            eval_every_steps=250,
            artifacts_every_steps=500,
            save_every_steps=500,
        ),
        optim=OptimConfig(
            learning_rate=1.8e-3,
            schedule="wsd",
            warmup_steps=250,
            micro_batches=8,
        ),
        model=ModelConfig(
            layers=12, width=768, heads=6, kv_heads=6, head_dim=128, mlp_width=2048, scan_unroll=12
        ),
        data=DataConfig(
            prepared_dir="data/stdlib-32k",
            vocab_size=32_768,
            seq_len=1024,
            batch_size=512,
            eval_rows=1024,
        ),
    )


def llama_1b() -> Config:
    """Llama 3.2 1B's shape, for a slice or a node: shard it with --mesh.fsdp."""
    start = gpt2_124m()
    return replace(
        start,
        run=replace(start.run, run_dir="runs/llama-1b", steps=20_000),
        optim=replace(start.optim, learning_rate=6e-4, warmup_steps=1000),
        model=ModelConfig(
            layers=16,
            width=2048,
            heads=32,
            kv_heads=8,
            head_dim=64,
            mlp_width=8192,
            qk_norm=False,
            rope_theta=500_000.0,
            remat="dots",  # 1.5B, one H100: four times the tokens at once, 1.46 x as fast
        ),
        data=replace(start.data, seq_len=2048, batch_size=512),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "gpt2-124m": gpt2_124m,
    "llama-1b": llama_1b,
}
