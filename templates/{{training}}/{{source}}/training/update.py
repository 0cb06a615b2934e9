"""The gradient of a batch, and the update of a state, which a non-finite result leaves as it is.

Pure functions of a state {"params", "opt_state", "step", "skipped", ...}. Knows no model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from ..contract import Metrics, State
from .optim import make_schedule
from .optim_config import OptimConfig

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

    Where a mean, the gradient or any float of the new parameters and optimizer state is not finite,
    all stays as it was but for `step` and `skipped`, which go up by one. labels: as in
    `make_optimizer`.
    """
    norm = optax.tree.norm(gradient)
    gradient = clip(gradient, norm, config.clip_norm)
    old = {name: state[name] for name in ("params", "opt_state")}

    def moved(gradient: PyTree) -> PyTree:
        updates, opt_state = optimizer.update(gradient, old["opt_state"], old["params"])
        return {"params": optax.apply_updates(old["params"], updates), "opt_state": opt_state}

    tried = moved(gradient)
    params = jax.tree.map(partial(bounded, config), labels, old["params"], tried["params"])
    finite = all_finite((means, norm, params, tried["opt_state"]))
    # Computed again, from a gradient that waits for the verdict: XLA only reduces the first result
    # and writes this one over the old state. A selection between the first result and the old state
    # would keep up to 1.5 copies of the parameters more.
    waiting = jax.tree.map(lambda x: jnp.where(finite, x, 0), gradient)
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved(waiting), old)
    new |= {"step": state["step"] + 1, "skipped": state["skipped"] + ~finite}
    metrics = means | {"grad_norm": norm} | learning_rates(config, old["opt_state"])
    return state | new, metrics | {"skipped": new["skipped"]}


def bounded(config: OptimConfig, label: str, old: Array, new: Array) -> Array:
    """What is finite where `new` is, without Muon's matrix products: `new`, or a bound of it.

    Muon's directions are orthogonal up to its iteration's error: no number of one exceeds
    1.3 sqrt(max(1, rows / columns)) once the momentum is finite. The bound is many times that.
    """
    if config.optimizer != "muon" or label != "matrix":
        return new
    step = config.muon_learning_rate * (sum(old.shape) + config.weight_decay * jnp.abs(old).max())
    return jnp.abs(old).max() + step


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
