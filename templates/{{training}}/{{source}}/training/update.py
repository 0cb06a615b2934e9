"""The gradient of a batch, and the update of a state, which a non-finite gradient leaves as it is.

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

LARGEST = 1e12  # norm of a gradient that is taken, after clipping
FASTEST = 1e3  # learning rate

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
    state: State,
    gradient: PyTree,
    means: Sums,
) -> tuple[State, Metrics]:
    """The state after clipping and `optimizer`, and `means` with norm, rates and `skipped`.

    Where a mean or the gradient is not finite, or so large that the new state might not be, all
    stays as it was but for `step` and `skipped`, which go up by one.
    """
    norm = optax.tree.norm(gradient)
    gradient = clip(gradient, norm, config.clip_norm)
    old = {name: state[name] for name in ("params", "opt_state")}
    rates = learning_rates(config, old["opt_state"])
    finite = all_finite((means, norm)) & stays_finite(config, norm, rates)
    # The gradient waits for the verdict, so that XLA writes the new state over the old one.
    waiting = jax.tree.map(lambda x: jnp.where(finite, x, 0), gradient)
    updates, opt_state = optimizer.update(waiting, old["opt_state"], old["params"])
    new = {"params": optax.apply_updates(old["params"], updates), "opt_state": opt_state}
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    new |= {"step": state["step"] + 1, "skipped": state["skipped"] + ~finite}
    metrics = means | {"grad_norm": norm} | rates
    return state | new, metrics | {"skipped": new["skipped"]}


def stays_finite(config: OptimConfig, norm: Float[Array, ""], rates: Metrics) -> Bool[Array, ""]:
    """Whether a finite state, made by updates alone, stays finite; norm: of the whole gradient.

    Moments are means of what was taken: none exceeds LARGEST or its square. Adam divides by EPSILON
    at least, so that a step moves a parameter by less than FASTEST * LARGEST / EPSILON / (1 -
    beta1), and decay makes none larger. Muon's directions are orthogonal up to the error of its
    iteration. To try each update first, and judge its result, took up to 1.5 times as long.
    """
    taken = jnp.minimum(norm, config.clip_norm) if config.clip_norm else norm
    slow = [(rate <= FASTEST) & (rate * config.weight_decay <= 2) for rate in rates.values()]
    return jnp.stack([taken <= LARGEST, *slow]).all()


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
