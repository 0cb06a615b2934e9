"""The gradient of a batch, and the update of a state, which a non-finite result leaves as it is.

Pure functions of a state {"params", "opt_state", "step", "skipped", ...}. Knows no model.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from ..contract import Metrics, State
from .optim import make_schedule
from .optim_config import OptimConfig

EPSILON = 1e-8  # Optax's default, in the denominator of Adam

type Sums = dict[str, Float[Array, ""]]
type LossFn = Callable[[PyTree, PyTree], tuple[Float[Array, ""], Sums]]
"""(parameters, micro-batch) -> (summed objective, {"weight": number of terms, other sums})."""


def mean_gradient(loss_fn: LossFn, parameters: PyTree, batch: PyTree) -> tuple[Sums, PyTree]:
    """Means over all micro-batches (the leading axis of `batch`), and the objective's gradient.

    Sums and weights are added up before the one division: any split of a batch gives the same
    gradient, however unevenly its weights fall.
    """
    grad_fn = jax.grad(loss_fn, has_aux=True)

    def add(total: Any, micro_batch: PyTree) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grad_fn(parameters, micro_batch)), None

    first = jax.tree.map(lambda x: x[0], batch)
    if jax.tree.leaves(batch)[0].shape[0] == 1:
        gradient, sums = grad_fn(parameters, first)
    else:  # from zeros: a first part outside the scan would compile the model twice
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(grad_fn, parameters, first))
        (gradient, sums), _ = jax.lax.scan(add, zeros, batch)
    weight = jnp.maximum(sums.pop("weight"), 1.0)
    return jax.tree.map(lambda x: x / weight, (sums, gradient))


def init_update(
    optimizer: optax.GradientTransformation, parameters: PyTree, key: jax.Array
) -> State:
    """The first state of a training; `key` is the base of all randomness in a step."""
    return {
        "params": parameters,
        "opt_state": optimizer.init(parameters),
        "step": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
        "key": key,
    }


def update(
    config: OptimConfig,
    optimizer: optax.GradientTransformation,
    labels: PyTree,
    state: State,
    gradient: PyTree,
    means: Sums,
) -> tuple[State, Metrics]:
    """The state after clipping and `optimizer`, and `means` with norm, rates and `skipped`.

    Where a mean, the gradient or any float of the new parameters and optimizer state might not be
    finite, all stays as it was but for `step` and `skipped`, which go up by one. labels: as in
    `make_optimizer`.
    """
    norm = optax.tree.norm(gradient)
    gradient = clip(gradient, norm, config.clip_norm)
    old = {name: state[name] for name in ("params", "opt_state")}
    rates = learning_rates(config, old["opt_state"])
    finite = all_finite((means, norm, bounds(config, labels, old, norm, rates)))
    # The gradient waits for the verdict, so that XLA writes the new state over the old one.
    waiting = jax.tree.map(lambda x: jnp.where(finite, x, 0), gradient)
    updates, opt_state = optimizer.update(waiting, old["opt_state"], old["params"])
    new = {"params": optax.apply_updates(old["params"], updates), "opt_state": opt_state}
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    new |= {"step": state["step"] + 1, "skipped": state["skipped"] + ~finite}
    metrics = means | {"grad_norm": norm} | rates
    return state | new, metrics | {"skipped": new["skipped"]}


def bounds(
    config: OptimConfig, labels: PyTree, old: State, norm: Float[Array, ""], rates: Metrics
) -> list[Float[Array, ""]]:
    """What no moment and no parameter exceeds after an update; norm: of the gradient, unclipped.

    Where they are finite, so is the update. They read the old state once; to try the update first,
    and look at the result, took up to 1.5 times as long. They are generous: without clipping, a
    norm of 1e14 may be too much, for one number of Adam's would be divided by EPSILON alone.
    """
    params, moments = largest(old["params"]), largest(old["opt_state"])
    norm = jnp.minimum(norm, config.clip_norm) if config.clip_norm else norm
    # Adam divides both means by what they lack at first, then one by the root of the other.
    first = jnp.maximum(moments, norm) / (1 - config.beta1)
    second = (moments + norm**2) / (1 - config.beta2)
    moved = rates["learning_rate"] * (first / EPSILON + config.weight_decay * params)
    if config.optimizer == "muon":
        # Its directions are orthogonal up to the error of its iteration: no number of one exceeds
        # 1.3 sqrt(max(1, rows / columns)).
        sizes = jax.tree.map(
            lambda label, x: sum(x.shape) * (label == "matrix"), labels, old["params"]
        )
        size = max(jax.tree.leaves(sizes))
        moved += rates["muon_learning_rate"] * (size + config.weight_decay * params)
    return [second, params + moved]


def largest(tree: PyTree) -> Float[Array, ""]:
    """The largest magnitude of all floats in a tree; NaN if one is."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.abs(x).max() for x in floats]).max()


def clip(gradient: PyTree, norm: Float[Array, ""], limit: float) -> PyTree:
    """The gradient, scaled down to a global norm of `limit` where it is larger; 0 = never."""
    if not limit:
        return gradient
    return jax.tree.map(lambda x: jax.lax.select(norm < limit, x, x / norm * limit), gradient)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every float in a tree is finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def learning_rates(config: OptimConfig, opt_state: PyTree) -> Metrics:
    """The learning rates of the step that begins with this optimizer state."""
    # The optimizer's own count, which a skipped step does not raise.
    fraction = make_schedule(config)(optax.tree.get_all_with_path(opt_state, "count")[0][1])
    found = {"learning_rate": config.learning_rate * fraction}
    if config.optimizer == "muon":
        found["muon_learning_rate"] = config.muon_learning_rate * fraction
    return found
