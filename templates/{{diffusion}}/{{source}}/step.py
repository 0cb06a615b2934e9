"""The training step of a diffusion model: draws, loss, gradient, update and averages.

Pure functions of one state. Runs no loop and opens no file. `Learner` holds what is static.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from .config import Config
from .contract import Metrics, Outputs, State
from .ema import init_ema, update_ema
from .images.augment import CONDITIONS, augment, flip
from .images.latents import scale
from .images.pixels import to_network
from .images.settings import DataConfig
from .images.shards import Latents, Manifest
from .network import make_network
from .objectives import losses, sample_times
from .training.layers import annotation
from .training.optim import make_optimizer
from .training.optim_config import fit_schedule
from .training.update import Sums, init_update, mean_gradient, update


@dataclass(frozen=True)
class Kind:
    """What is drawn: known from the prepared images, or from the settings alone."""

    shape: tuple[int, int, int]  # height, width, channels of what the network sees
    classes: int  # 0 = unconditional
    levels: int  # of a pixel
    empty: tuple[int, ...] = ()  # classes without an image to train on
    latents: Latents | None = None


def kind_of(manifest: Manifest) -> Kind:
    """What was prepared."""
    latents = manifest.latents
    shape = latents.shape if latents else manifest.shape
    return Kind(cast(Any, shape), manifest.classes, manifest.levels, manifest.empty, latents)


def expected_kind(data: DataConfig) -> Kind:
    """What the settings say that the images are, which need not be here."""
    height, width, channels, classes = data.expects
    latents = Latents((height, width, channels), (0.0,) * channels, (1.0,) * channels, ())
    return Kind((height, width, channels), classes, 256, (), latents if data.autoencoder else None)


@dataclass(frozen=True, eq=False)
class Learner:
    """The static arguments of a step: what it needs beside the state and the batch."""

    config: Config
    kind: Kind
    graph: Any
    """NNX graph definition; with a tree of parameters it merges to the network."""
    declared: Any
    """Abstract parameters and what is declared beside them: axes, decay, label."""
    optimizer: optax.GradientTransformation


def make_learner(config: Config, kind: Kind, platform: str | None = None) -> Learner:
    """Build the static parts; `auto` is resolved for a platform of JAX (None = this one)."""
    config = replace(config, optim=fit_schedule(config.optim, config.run.steps))
    if not config.data.conditional:
        kind = replace(kind, classes=0, empty=())
    conditions = CONDITIONS if config.data.augment else 0

    def build() -> nnx.Module:
        key = jax.random.key(0)
        return make_network(config.model, kind.shape, kind.classes, conditions, key, platform)

    graph, declared = nnx.split(nnx.eval_shape(build))
    labels, decayed = annotation(declared, "label"), annotation(declared, "decay")
    optimizer = make_optimizer(config.optim, labels, decayed)
    return Learner(config, kind, graph, declared, optimizer)


def init_state(learner: Learner, key: jax.Array) -> State:
    """First state; to be jitted with output shardings, so that no host holds the whole model."""
    c, kind = learner.config, learner.kind
    conditions = CONDITIONS if c.data.augment else 0
    network = make_network(c.model, kind.shape, kind.classes, conditions, key)
    params = nnx.to_pure_dict(nnx.state(network))
    return init_update(learner.optimizer, params, key) | {"ema": init_ema(c.ema, params)}


def to_range(
    learner: Learner, images: Num[Array, "*B H W C"], noise: Float[Array, "*B H W C"] | None = None
) -> Float[Array, "*B H W C"]:
    """Stored pixels or latents -> what the network sees; `noise`, in [0, 1), dequantizes pixels."""
    if (latents := learner.kind.latents) is not None:
        return scale(images, latents, learner.config.objective.sigma_data)
    return to_network(images, learner.kind.levels, noise)


def draw(
    learner: Learner, key: jax.Array, batch: dict[str, Num[Array, "M B ..."]]
) -> dict[str, Array]:
    """What a step trains on: images x, noise eps, times, labels, conditions of augmentation.

    All of it is drawn for the whole batch at once, by place in the batch: another number of
    micro-batches or devices is the same training, but for dropout in the network, by micro-batch.
    """
    c = learner.config
    names = ("dequantize", "flip", "augment", "eps", "times", "labels", "dropout")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    images, labels = batch["image"], batch["label"]
    noise = jax.random.uniform(keys["dequantize"], images.shape) if c.data.dequantize else None
    x = to_range(learner, images, noise)
    if c.data.flip:
        x = flip(keys["flip"], x)
    drawn: dict[str, Array] = {}
    if c.data.augment:
        x, drawn["augment"] = augment(keys["augment"], x, c.data.augment)
    dropped = jax.random.bernoulli(keys["labels"], c.objective.label_dropout, labels.shape)
    return drawn | {
        "x": x,
        "eps": jax.random.normal(keys["eps"], x.shape),
        "t": sample_times(c.objective, keys["times"], labels.size).reshape(labels.shape),
        "label": jnp.where(dropped, learner.kind.classes, labels),
        "dropout": jax.random.split(keys["dropout"], len(labels)),
    }


def predict(
    learner: Learner,
    params: Any,
    x_in: Float[Array, "B H W C"],
    condition: Float[Array, " B"],
    label: Int[Array, " B"],
    augmented: Float[Array, "B A"] | None = None,
    key: jax.Array | None = None,
) -> Float[Array, "B H W C"]:
    """The network at scaled images. Without a key nothing is dropped out."""
    network = nnx.merge(learner.graph, nnx.State(params))
    return network(x_in, condition, label, augmented, key)


def image_losses(
    learner: Learner, params: Any, drawn: dict[str, Array], *, train: bool
) -> Float[Array, " B"]:
    """Weighted loss of each image of what `draw` gives for one micro-batch."""
    key = drawn["dropout"] if train and learner.config.model.dropout else None

    def network(x_in: Array, condition: Array) -> Array:
        label, augmented = drawn["label"], drawn.get("augment")
        return predict(learner, params, x_in, condition, label, augmented, key)

    return losses(learner.config.objective, network, drawn["x"], drawn["eps"], drawn["t"])


def train_step(
    learner: Learner, state: State, batch: dict[str, Num[Array, "M B ..."]]
) -> tuple[State, Metrics, Outputs]:
    """One update from a batch of M micro-batches; a step that is skipped moves no average."""

    def loss_fn(params: Any, drawn: dict[str, Array]) -> tuple[Float[Array, ""], Sums]:
        loss = image_losses(learner, params, drawn, train=True)
        return loss.sum(), {"loss": loss.sum(), "weight": jnp.float32(loss.size)}

    drawn = draw(learner, jax.random.fold_in(state["key"], state["step"]), batch)
    means, gradient = mean_gradient(loss_fn, state["params"], drawn)
    new, metrics = update(learner.config.optim, learner.optimizer, state, gradient, means)
    moved, count = new["skipped"] == state["skipped"], new["step"] - new["skipped"]
    ema = update_ema(learner.config.ema, state["ema"], new["params"], count, moved)
    return new | {"ema": ema}, metrics, {}
