"""The smallest networks, away from the zeros that they begin with, and functions of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..config import ModelConfig
from ..network import make_network

# Rows and columns differ, as do the numbers of patches along them.
SHAPE, CLASSES, AUGMENT = (4, 8, 3), 5, 2
DIT = ModelConfig(width=16, layers=2, heads=2, mlp_width=24, registers=3)
UNET = ModelConfig(backbone="unet", width=8, layers=1, heads=2, multipliers=(1, 2))
CONFIGS = {"dit": DIT, "unet": UNET}

IMAGES = jax.random.normal(jax.random.key(1), (4, *SHAPE))
NOISE = jnp.array([0.015625, 0.25, 0.5, 1.0])
LABELS = jnp.array([0, 3, 4, CLASSES], jnp.int32)  # the last is the null label
AUGMENTED = jax.random.normal(jax.random.key(2), (4, AUGMENT))
INPUTS = (IMAGES, NOISE, LABELS, AUGMENTED, None)


@functools.cache
def make(config: ModelConfig, classes: int = CLASSES, augment: int = AUGMENT) -> tuple[Any, Any]:
    """Graph and declared first parameters."""
    return nnx.split(make_network(config, SHAPE, classes, augment, jax.random.key(0)))


def plain(declared: Any) -> Any:
    """Parameters as plain dicts of arrays."""
    return nnx.to_pure_dict(declared)


@functools.cache
def filled(config: ModelConfig, **options: int) -> Any:
    """Parameters of which none is zero or one."""
    leaves, tree = jax.tree.flatten(plain(make(config, **options)[1]))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def merged(config: ModelConfig, parameters: Any, **options: int) -> Any:
    return nnx.merge(make(config, **options)[0], nnx.State(parameters))


@functools.partial(jax.jit, static_argnums=0)
def forward(config: ModelConfig, parameters: Any, *inputs: Any) -> jax.Array:
    return merged(config, parameters)(*(inputs or INPUTS))


@functools.partial(jax.jit, static_argnums=0)
def gradient(config: ModelConfig, parameters: Any) -> Any:
    """Of a loss whose gradient by the output is nowhere zero, also where the output is."""
    return jax.grad(lambda p: ((forward(config, p) - 2 * IMAGES - 1) ** 2).mean())(parameters)


def names(tree: Any) -> dict[str, Any]:
    """Leaves by the path of their keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def assert_close(left: Any, right: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right)
