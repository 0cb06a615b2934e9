"""The settings of a job and its presets. Imports no JAX.

A field made by `identity` defines the run and must match on resume; the others may change. A
workload of your own keeps `run`, `mesh`, `optim` and `data.batch_size`; the rest is yours.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from .errors import UserError
from .run_config import MeshConfig, RunConfig, check_settings, identity, setting
from .training.optim_config import OptimConfig


@dataclass(frozen=True)
class ModelConfig:
    """Causal Transformer over bytes."""

    layers: int = identity(4)
    width: int = identity(128)  # of the residual stream; the MLP has four times that
    heads: int = identity(4)
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bf16 off the CPU
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass computes again


@dataclass(frozen=True)
class DataConfig:
    """Which files, and how their bytes become batches."""

    # Files, folders (all files below) and globs, on a file system that every host sees under this
    # name; none = Python's own library.
    paths: tuple[str, ...] = ()
    seq_len: int = identity(256)  # bytes a row
    batch_size: int = identity(32)  # rows a step, over all devices of all hosts
    heldout_fraction: float = identity(0.05, below=1)  # of the bytes: the last files by their hash
    eval_rows: int = setting(512)  # held-out rows that are scored, the first ones


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
    m = config.model
    if m.width % (2 * m.heads):
        raise UserError(
            got=f"--model.width {m.width} --model.heads {m.heads}",
            expected="heads of an even width: positions rotate pairs",
            do=f"choose a multiple of {2 * m.heads} as --model.width",
        )
    return config


def demo() -> Config:
    """0.8M parameters on Python's own library: about a minute on two CPU cores.

    Held-out bits per byte: 2.10, where `gzip` of the same bytes makes 2.16 and `xz` 2.02.
    """
    return Config(
        run=RunConfig(
            run_dir="runs/demo",
            steps=500,
            log_every_steps=20,
            eval_every_steps=200,
            save_every_steps=100,
        ),
        optim=OptimConfig(
            optimizer="muon", learning_rate=1e-2, muon_learning_rate=3e-2, schedule="linear"
        ),
        model=ModelConfig(compute_dtype="bfloat16"),  # as on accelerators; faster on AVX-512 too
        data=DataConfig(seq_len=128, batch_size=16),
    )


def slice_1b() -> Config:
    """1.0B parameters on one slice of v5e:16x16: 64 hosts, 256 chips. Set --data.paths."""
    return Config(
        run=RunConfig(
            run_dir="runs/slice-1b", steps=20_000, eval_every_steps=1000, save_every_steps=200
        ),
        mesh=MeshConfig(fsdp=64),
        optim=OptimConfig(learning_rate=6e-4, warmup_steps=500, schedule="wsd"),
        model=ModelConfig(layers=20, width=2048, heads=16, remat="full"),
        data=DataConfig(seq_len=2048, batch_size=1024, eval_rows=1024),
    )


def two_slices_1b() -> Config:
    """The same on two slices, each with whole copies of the state: twice the rows a step."""
    start = slice_1b()
    return replace(
        start,
        run=replace(start.run, run_dir="runs/two-slices-1b", steps=10_000),
        data=replace(start.data, batch_size=2048),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "slice-1b": slice_1b,
    "two-slices-1b": two_slices_1b,
}
