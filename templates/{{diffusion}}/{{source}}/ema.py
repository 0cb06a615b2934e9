"""Averages of the parameters over the updates, and those of other lengths from saved ones.

Pure functions of trees of arrays. Opens no file; no gradient passes through it.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .config import EmaConfig
from .errors import UserError

# A buffer of integers is no parameter: an average would spoil it.
type Params = PyTree[Float[Array, "..."]]

WIDEST = 12**-0.5  # relative width of the average that weighs all updates alike
# By how much of its norm a profile may be missed. Of an average of white noise as much is missed;
# of parameters, which move smoothly, less.
WORST = 0.1
RIDGE = 1e-8  # weighs the rounding of float32 averages, so that it is not multiplied by thousands


def init_ema(config: EmaConfig, params: Params) -> dict[str, Params]:
    """Name of each average -> a float32 copy of the parameters.

    The names are `decay-0.999`, `power-0.05`, … UserError where no such average exists.
    """
    for decay in config.decays:
        if not 0 <= decay < 1:
            raise UserError(
                got=f"--ema.decays {decay:g}",
                expected="decays of at least 0 and below 1",
                do="choose one such as 0.999, which averages over a thousand updates",
            )
    names = shares(config, jnp.ones((), jnp.int32))
    return {name: jax.tree.map(lambda x: jnp.array(x, jnp.float32), params) for name in names}


def update_ema(
    config: EmaConfig,
    ema: dict[str, Params],
    params: Params,
    count: Int[Array, ""],
    moved: Bool[Array, ""],
) -> dict[str, Params]:
    """The averages once `params`, the parameters after an update, are in them.

    count: updates so far, with this one. Where not `moved`, none was made: `count` is not read and
    every average stays, bit for bit.
    """

    def average(share: Float[Array, ""], old: Params) -> Params:
        # Selected number by number, and added to what is there, so that XLA writes over the old
        # average; a product with a share of 0 would turn -0 into 0.
        return jax.tree.map(lambda a, x: jnp.where(moved, a + share * (x - a), a), old, params)

    return {name: average(share, ema[name]) for name, share in shares(config, count).items()}


def shares(config: EmaConfig, count: Int[Array, ""]) -> dict[str, Float[Array, ""]]:
    """Name of each average -> the share that the parameters after update `count` get in it.

    A decay warms up as min(decay, (1 + n) / (10 + n)), as in TensorFlow's and flow_matching's
    averages. A power average keeps (1 - 1/n)^(gamma + 1) (EDM2, arXiv:2312.02696, section 3.1), so
    that the parameters after update k weigh as k^(gamma + 1) - (k - 1)^(gamma + 1). Its first share
    is 1: the initial parameters are in none.
    """
    n = count.astype(jnp.float32)
    kept = {f"decay-{decay:g}": jnp.maximum(1 - decay, 9 / (10 + n)) for decay in config.decays}
    # 1 minus a power would lose most digits of a share of 1e-5.
    log = jnp.log1p(-1 / n)
    return kept | {f"power-{s:g}": -jnp.expm1((exponent(s) + 1) * log) for s in config.power_stds}


def exponent(std: float) -> float:
    """gamma of the power average whose weights, at update t, have a standard deviation of std * t.

    The largest root of gamma + 1 = std^2 (gamma + 2)^2 (gamma + 3) (EDM2, section 3.1). UserError
    where weights that never fall are not so wide.
    """
    if not 0 < std <= WIDEST:
        raise UserError(
            got=f"an average of relative width {std:g}",
            expected=f"more than 0 and at most {WIDEST:.4f}, which weighs all updates alike",
            do="choose one such as 0.05 or 0.1",
        )
    return float(np.roots([std**2, std**2, -1, 1]).real.max()) - 2  # in x = gamma + 2


def width(gamma: float) -> float:
    """The relative width of a power average: undoes `exponent`."""
    return float((gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5))


def post_hoc_weights(
    snapshot_steps: Sequence[float], snapshot_gammas: Sequence[float], step: float, gamma: float
) -> Float[np.ndarray, " K"]:
    """Weights whose sum of K saved power averages comes nearest to that of `gamma` at `step`.

    Steps are counts of updates. UserError where the nearest is not near.
    """
    missed = np.inf
    if 0 < step <= max(snapshot_steps, default=0):
        weights, missed = nearest(snapshot_steps, snapshot_gammas, step, gamma)
    if missed > WORST:
        widths = ", ".join(sorted({f"{width(g):g}" for g in snapshot_gammas})) or "any"
        saved = f"{len(set(snapshot_steps))} steps up to {max(snapshot_steps, default=0):g}"
        raise UserError(
            got=f"an average of relative width {width(gamma):g} at step {step:g}",
            expected=f"one near to those that are saved, of width {widths} at {saved}",
            do="choose a nearer one; for others, train with --ema.power-stds about that width and "
            "a smaller --keep-every-steps, so that more checkpoints stay",
        )
    return weights


def nearest(
    snapshot_steps: Sequence[float], snapshot_gammas: Sequence[float], step: float, gamma: float
) -> tuple[Float[np.ndarray, " K"], float]:
    """The weights, and by how much of its norm they miss the profile that is asked for.

    Least squares between the profiles of the averages (EDM2, section 3.2). Beyond the paper, the
    weights add up to 1, so that parameters that did not move are given exactly, and stay small.
    """
    steps, gammas = np.asarray(snapshot_steps, float), np.asarray(snapshot_gammas, float)
    size = inner(step, gamma, step, gamma)
    among = inner(steps[:, None], gammas[:, None], steps, gammas) / size
    aim = inner(steps, gammas, step, gamma) / size
    # The minimum where the weights add up to 1; the last unknown is a Lagrange multiplier.
    system = np.pad(among + RIDGE * np.eye(len(aim)), (0, 1), constant_values=1.0)
    system[-1, -1] = 0.0
    weights = np.linalg.solve(system, np.append(aim, 1.0))[:-1]
    return weights, max(0.0, float(weights @ among @ weights - 2 * weights @ aim + 1)) ** 0.5


def inner(
    step: np.ndarray | float,
    gamma: np.ndarray | float,
    other_step: np.ndarray | float,
    other_gamma: np.ndarray | float,
) -> np.ndarray:
    """Inner products of two profiles of weights, (gamma + 1) t^gamma / step^(gamma + 1) up to step.

    Broadcasts. Only a ratio of at most 1 is raised to a power, which overflows nowhere.
    """
    first, last = np.minimum(step, other_step), np.maximum(step, other_step)
    power = np.where(np.less(step, other_step), other_gamma, gamma)
    factor = (gamma + 1.0) * (other_gamma + 1.0) / (gamma + other_gamma + 1.0)
    return np.asarray(factor * (first / last) ** power / last)


def combine(trees: Iterable[Params], weights: Float[np.ndarray, " K"]) -> Params:
    """The weighted sum of K trees, which are taken one after the other: a generator may load them.

    Leaves are float32 and stay on their devices; beside the sum at most two trees are held.
    """

    def add(total: Params | None, tree: Params, weight: Float[Array, ""]) -> Params:
        scaled = jax.tree.map(lambda x: weight * x, tree)
        return scaled if total is None else jax.tree.map(jnp.add, total, scaled)

    add_to, total = jax.jit(add, donate_argnums=0), None
    for tree, weight in zip(trees, weights, strict=True):
        total = add_to(total, tree, jnp.float32(weight))
    return total
