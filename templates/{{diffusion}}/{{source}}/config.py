"""The settings of a diffusion run and its presets. Imports no JAX.

A field made by `identity` defines the run and must match on resume; the others may change.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from .errors import UserError
from .images.settings import DataConfig
from .run_config import MeshConfig, RunConfig, check_settings, identity, setting
from .training.optim_config import OptimConfig

type ObjectiveName = Literal["flow-v", "flow-x", "edm", "ddpm-eps", "ddpm-v"]


@dataclass(frozen=True)
class ModelConfig:
    """A diffusion Transformer or a small UNet."""

    backbone: Literal["dit", "unet"] = identity("dit")
    width: int = identity(64)  # of the residual stream; of a UNet at full resolution
    layers: int = identity(3)  # Transformer blocks; residual blocks at each resolution of a UNet
    heads: int = identity(2)
    patch: int = identity(2)  # height and width of a token, pixels; DiT only
    mlp_width: int = identity(176)  # of the SwiGLU hidden layer; DiT only
    registers: int = identity(4, least=0)  # further tokens, which no output reads; DiT only
    rope_theta: float = identity(100.0)  # DiT only
    multipliers: tuple[int, ...] = identity((1, 2))  # of the width, by resolution; UNet only
    dropout: float = identity(0.0, least=0, below=1)  # in each block
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bf16 off the CPU
    attention: Literal["auto", "xla", "cudnn"] = "auto"  # auto: cuDNN on NVIDIA GPUs
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass computes again
    scan_unroll: int = setting(1)  # blocks a scan iteration holds; = layers unrolls; DiT only


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the network predicts, at which noise levels, and how losses are weighted."""

    name: ObjectiveName = identity("flow-v")  # a row of the table in objectives.py
    weight: Literal["flat", "min-snr", "edm"] = identity("flat")
    min_snr_gamma: float = identity(5.0)
    times: Literal["logit-normal", "uniform"] = identity("logit-normal")
    time_mean: float = identity(0.0)  # of the log of noise over signal, logit-normal only
    time_std: float = identity(1.0)
    stratified: bool = identity(True)  # one time from each of batch_size equal parts
    sigma_data: float = identity(0.5)  # standard deviation of the data, which is in [-1, 1]
    label_dropout: float = identity(0.1, least=0, most=1)  # per image: trains the unconditional


@dataclass(frozen=True)
class EmaConfig:
    """Averages of the parameters over the steps."""

    decays: tuple[float, ...] = identity((0.999, 0.9999))  # with a warm-up
    power_stds: tuple[float, ...] = identity((0.05, 0.1))  # relative widths; for post-hoc lengths


@dataclass(frozen=True)
class SampleConfig:
    """How images are drawn, during the training and after it."""

    sampler: Literal["euler", "heun", "dpm++", "churn", "adaptive"] = "heun"
    sampler_steps: int = setting(25)  # an adaptive solver chooses its own
    guidance: float = setting(1.0, least=0)  # 1 = the conditional prediction alone
    # The part of the noise levels in which guidance acts: 0 = data, 1 = pure noise.
    guidance_from: float = setting(0.0, least=0, most=1)
    guidance_to: float = setting(1.0, least=0, most=1)
    ema: str = "0.999"  # a decay, a relative width, or `raw` for the parameters themselves
    images: int = setting(2000)  # of the final evaluation


@dataclass(frozen=True)
class Config:
    """One run."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    data: DataConfig = field(default_factory=DataConfig)


def validate(config: Config) -> Config:
    """The configuration, if its values are within their bounds and its parts fit together."""
    check_settings(config)
    m = config.model
    if m.width % (4 * m.heads):
        raise UserError(
            got=f"--model.width {m.width} --model.heads {m.heads}",
            expected="heads whose width is a multiple of 4: 2-D RoPE rotates pairs of two axes",
            do=f"choose --model.width {4 * m.heads * max(1, m.width // (4 * m.heads))}",
        )
    return config


def demo() -> Config:
    """243k parameters on the 8 x 8 digits of scikit-learn: four minutes on two CPU cores."""
    return Config(
        run=RunConfig(
            run_dir="runs/demo",
            steps=3000,
            log_every_steps=50,
            eval_every_steps=500,
            artifacts_every_steps=500,
            save_every_steps=500,
        ),
        optim=OptimConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    )


PRESETS: dict[str, Callable[[], Config]] = {"demo": demo}
