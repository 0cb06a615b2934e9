"""The settings of a fit and its presets. Imports no JAX.

A field made by `identity` defines the run and must match on resume; the others may change.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from . import models
from .errors import UserError
from .posterior.settings import DataConfig
from .run_config import MeshConfig, RunConfig, check_settings, identity, setting, tunable

LEAST_ESS = 400  # that the verdict asks for


@dataclass(frozen=True)
class ModelConfig:
    """Which model."""

    name: str = identity("partial")  # a file in models/


@dataclass(frozen=True)
class NutsConfig:
    """The No-U-Turn sampler of NumPyro. A step of the run is `chunk` draws of every chain."""

    chains: int = setting(0, least=0)  # 0 = those the run began with, first 4 or one a device
    warmup: int = identity(1000)  # draws of each chain that adapt the sampler and are not kept
    chunk: int = identity(100)  # draws a step
    # What is adapted to the scales of parameters: variances; covariances, by draws alone or
    # (low_rank) by gradients too, which takes fewer draws.
    metric: Literal["diagonal", "dense", "low_rank"] = identity("diagonal")
    target_accept: float = identity(0.9, below=1)  # nearer to 1: smaller steps, fewer divergences
    max_tree_depth: int = identity(10)  # of a draw, which takes up to 2 ** this steps
    # Chains that share a device, one after the other or together. auto: map on CPUs.
    layout: Literal["auto", "map", "vmap"] = "auto"
    # Where chains begin: in [-2, 2] of the unconstrained scale, or at draws of guides fitted there.
    start: Literal["uniform", "svi"] = identity("uniform")
    # End when bulk and tail ESS of all parameters reach it and R-hat is good; 0 = at --steps.
    target_ess: float = tunable(0.0, least=0)


@dataclass(frozen=True)
class SviConfig:
    """Stochastic variational inference of NumPyro. A step of the run is `chunk` updates."""

    # Family of densities that is fitted: normal with independent, correlated or a few correlated
    # directions; normal at the mode; a normalising flow.
    guide: Literal["normal", "multivariate", "low_rank", "laplace", "flow"] = identity(
        "multivariate"
    )
    chunk: int = identity(100)  # updates a step
    learning_rate: float = tunable(0.02)  # of Adam; falls to a hundredth until --steps
    particles: int = tunable(1)  # draws of the guide by which an update estimates the ELBO
    batch_rows: int = tunable(0, least=0)  # rows an update sees; 0 = all
    draws: int = identity(4000, least=100)  # of the guide, kept at the end


@dataclass(frozen=True)
class Config:
    """One fit."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: RunConfig(
            steps=20, log_every_steps=1, eval_every_steps=5, save_every_steps=5
        )
    )
    mesh: MeshConfig = field(default_factory=MeshConfig)
    method: Literal["nuts", "svi"] = identity("nuts")  # draws of the posterior, or of a guide
    model: ModelConfig = field(default_factory=ModelConfig)
    nuts: NutsConfig = field(default_factory=NutsConfig)
    svi: SviConfig = field(default_factory=SviConfig)
    data: DataConfig = field(default_factory=DataConfig)


def validate(config: Config) -> Config:
    """The configuration, if its values are within their bounds and its parts fit together."""
    check_settings(config)
    n = config.nuts
    if config.model.name not in models.names():
        raise UserError(
            got=f"--model.name {config.model.name}",
            expected=", ".join(models.names()),
            do="name one of them, or add a file to models/",
        )
    if n.warmup % n.chunk:
        raise UserError(
            got=f"--nuts.warmup {n.warmup} --nuts.chunk {n.chunk}",
            expected="a warm-up of whole steps",
            do=f"choose a chunk that divides it, such as {_divisor(n.warmup, n.chunk)}",
        )
    if 0 < n.target_ess < LEAST_ESS:
        raise UserError(
            got=f"--nuts.target-ess {n.target_ess:g}",
            expected=f"{LEAST_ESS} or more: the verdict refuses fewer",
            do=f"give {LEAST_ESS}, or 0 for all --steps",
        )
    if n.chains == 1:
        raise UserError(
            got="--nuts.chains 1",
            expected="two or more: that chains agree is what is judged",
            do="leave it out for 4",
        )
    if wrong := [pair for pair in config.data.columns if pair.count("=") != 1]:
        raise UserError(
            got=f"--data.columns {wrong[0]}",
            expected="COLUMN-OF-THE-MODEL=COLUMN-OF-THE-TABLE",
            do="write pairs, such as --data.columns hits=successes player=name",
        )
    return config


def _divisor(number: int, near: int) -> int:
    return max(k for k in range(1, near + 1) if number % k == 0)


def demo() -> Config:
    """Partial pooling of 18 baseball players: 4 chains of 1000 draws after as many of warm-up."""
    start = Config()
    return replace(start, run=replace(start.run, run_dir="runs/demo"))


def long() -> Config:
    """The same for ten times the draws, or until the effective sample size is 4000."""
    start = demo()
    return replace(
        start,
        run=replace(start.run, run_dir="runs/long", steps=110, eval_every_steps=10),
        nuts=replace(start.nuts, target_ess=4000.0),
    )


def svi() -> Config:
    """A correlated normal fitted to the same posterior in 10,000 updates, and 4000 draws of it."""
    start = demo()
    return replace(
        start,
        run=replace(start.run, run_dir="runs/svi", steps=100, save_every_steps=50),
        method="svi",
    )


PRESETS: dict[str, Callable[[], Config]] = {"demo": demo, "long": long, "svi": svi}
