"""SVI as pure functions of one state: a step is a chunk of updates of a guide.

Guides, ELBO and update are NumPyro's, the optimizer is Optax's. Rows are split over the devices, or
taken in minibatches, by a weight for each row on what is observed there: rows / batch rows, and 0
for a row that fills up the last device. A guide keeps arrays of its first trace, so that each
function here makes its own. Opens no file.

Kucukelbir et al. (2017), Automatic differentiation variational inference.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_median
from numpyro.infer.svi import SVIState
from numpyro.infer.util import log_density, unconstrain_fn
from numpyro.primitives import Messenger

from .config import SviConfig
from .contract import Metrics, Outputs, State
from .errors import UserError
from .sites import Columns, bound_to_rows, latent, refuse_start, sites_of

type Batch = tuple[dict[str, Array], Array]
"""Columns and the weights of their rows: (update, row, …), with one update for the whole table."""
DEVICES = ("data", "fsdp", "tensor")
GUIDES: dict[str, Callable[..., autoguide.AutoGuide]] = {
    "normal": autoguide.AutoNormal,
    "multivariate": autoguide.AutoMultivariateNormal,
    "low_rank": autoguide.AutoLowRankMultivariateNormal,
    "laplace": autoguide.AutoLaplaceApproximation,
    "flow": autoguide.AutoIAFNormal,
}
MEMORY = 0.95  # of Adam for squares of gradients: the first ones may be 10 ** 10 times the others
LAST_RATE = 0.01  # of the learning rate, at the end of a run
FIRST_ROWS = 1000  # that the first state is made with
TOGETHER = 1 << 22  # rows times draws whose density is computed at once
START_UPDATES, START_RATE = 2000, 0.1  # of a guide that a chain begins at


@dataclass(frozen=True, eq=False)
class Fit:
    """The static arguments of a step."""

    config: SviConfig
    steps: int
    """Of the run: the learning rate falls until then."""
    seed: int
    model: Callable[..., None]
    """Of columns and weights."""
    columns: dict[str, np.ndarray]
    rows: int
    mesh: Mesh
    splits: bool
    """Whether the rows of the table may be split."""

    @property
    def batch_rows(self) -> int:
        """Of one update."""
        return min(self.config.batch_rows or self.rows, self.rows)


class RowWeights(Messenger):
    """Multiplies the log density of what is observed in the plate `row` by weights of the rows."""

    def __init__(self, weights: Float[Array, " row"]) -> None:
        super().__init__()
        self.weights = weights

    def process_message(self, msg: Any) -> None:
        """The frames of a site are complete here, outside of the model."""
        for frame in msg.get("cond_indep_stack", ()):
            if msg["type"] == "sample" and msg["is_observed"] and frame.name == "row":
                weights = self.weights.reshape(-1, *[1] * (-1 - frame.dim))
                msg["scale"] = weights if msg["scale"] is None else weights * msg["scale"]


def make_fit(
    config: SviConfig,
    steps: int,
    seed: int,
    model: Callable[..., None],
    columns: dict[str, np.ndarray],
    sizes: Mapping[str, int],
    mesh: Mesh,
) -> Fit:
    """Build the static parts. Minibatches of a model whose rows cannot be split are refused."""
    sites, bound = sites_of(model, columns, sizes), bound_to_rows(model, columns, sizes)
    if bound and 0 < config.batch_rows < sizes["row"]:
        raise UserError(
            got=f"--svi.batch-rows {config.batch_rows}, where {', '.join(bound)}",
            expected="a model whose rows are independent given what is sampled: all that is "
            "observed, and nothing else, in the plate row",
            do="leave --svi.batch-rows out, or change the model",
        )
    if config.guide == "flow" and sum(site["value"].size for site in latent(sites)) < 2:
        raise UserError(
            got="--svi.guide flow for a model with one parameter",
            expected="two or more, since a flow makes one depend on others",
            do="choose another --svi.guide",
        )

    def weighted(columns: Columns, weights: Float[Array, " row"]) -> None:
        with RowWeights(weights):
            model(**columns, sizes={**sizes, "row": weights.size})

    return Fit(config, steps, seed, weighted, columns, sizes["row"], mesh, not bound)


def batch_at(fit: Fit, cursor: int) -> Batch:
    """The rows of the updates of a step, split over all devices. The cursor counts rows."""
    if fit.batch_rows == fit.rows:
        return whole_table(fit)
    places = cursor + np.arange(fit.config.chunk * fit.batch_rows)
    chosen = np.empty_like(places)
    for epoch in range(places[0] // fit.rows, places[-1] // fit.rows + 1):
        of_epoch = places // fit.rows == epoch
        chosen[of_epoch] = _order(fit.seed, epoch, fit.rows)[places[of_epoch] % fit.rows]
    return _placed(fit, chosen.reshape(fit.config.chunk, -1))


def whole_table(fit: Fit) -> Batch:
    """All rows, with weight 1."""
    return _placed(fit, np.arange(fit.rows)[None])


def init_state(fit: Fit, key: Array) -> State:
    """First state: the guide around medians of the priors, seen with at most `FIRST_ROWS` rows."""
    key, begin = jax.random.split(key)
    svi = _made(fit)
    _, (params, opt_state) = svi.init(begin, *_first_rows(fit)).optim_state
    step = jnp.zeros((), jnp.int32)
    return {"step": step, "key": key, "params": params, "opt_state": opt_state}


def state_specs(state: State) -> Any:
    """Everything is on every device."""
    return jax.tree.map(lambda _: PartitionSpec(), state)


def fit_step(fit: Fit, state: State, batch: Batch) -> tuple[State, Metrics, Outputs]:
    """A chunk of updates; `loss` is the mean of their negative ELBO, in nats."""
    svi, chunk = _made(fit, state["key"], batch), fit.config.chunk
    first = state["step"] * chunk

    def update(held: Any, number: Array) -> tuple[Any, Array]:
        key = jax.random.fold_in(state["key"], first + number)
        before = SVIState((first + number, held), None, key)
        after, loss = svi.update(before, *_update_of(batch, number))
        return after.optim_state[1], loss

    held = state["params"], state["opt_state"]
    (params, opt_state), losses = jax.lax.scan(update, held, jnp.arange(chunk))
    # A gradient that is not finite shows in the parameters first.
    is_finite = jnp.isfinite(ravel_pytree(params)[0]).all()
    metrics = {"loss": jnp.where(is_finite, losses.mean(), jnp.nan)}
    state = state | {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
    return state, metrics, {}


def draw_guide(fit: Fit, state: State, table: Batch) -> Outputs:
    """Draws of the guide, (1, draw, …), under the names that NUTS has for its own.

    `lp` is log p(x, z) of a draw and `log_weight` its distance to log q(z), both in nats; `table`
    is the whole one.
    """
    svi, data = _made(fit, state["key"], table), _update_of(table, 0)
    guide, params = svi.guide, svi.get_params(SVIState((0, (state["params"], None)), None, None))
    if fit.config.guide == "laplace":  # is a point until here; the curvature makes it a normal
        curvature = guide.get_transform(params)
        guide = autoguide.AutoMultivariateNormal(fit.model, init_loc_fn=init_to_median)
        handlers.seed(guide, state["key"])(*data)
        params = {"auto_loc": curvature.loc, "auto_scale_tril": curvature.scale_tril}

    def draw(key: Array) -> Outputs:
        log_q, drawn = log_density(handlers.seed(guide, key), data, {}, params)
        model = handlers.replay(handlers.seed(fit.model, key), drawn)
        log_p, sites = log_density(model, data, {}, {})
        outputs = {
            # NaN stands for a draw that is not there.
            "sample_stats/lp": jnp.where(jnp.isnan(log_p), -jnp.inf, log_p),
            "sample_stats/log_weight": log_p - log_q,
        }
        named = [site for site in sites.values() if site["type"] == "deterministic"]
        for site in (*latent(sites), *named):
            outputs[f"posterior/{site['name']}"] = _without_filling(fit, site)
        return outputs

    key = jax.random.fold_in(state["key"], state["step"] * fit.config.chunk)
    together = max(1, min(100, TOGETHER // fit.rows))
    drawn = jax.lax.map(draw, jax.random.split(key, fit.config.draws), batch_size=together)
    return {name: value[None] for name, value in drawn.items()}


def check_start(fit: Fit) -> None:
    """Refuse a model whose ELBO is not finite where the guide begins; name the sites."""
    key = jax.random.key(fit.seed)

    def is_finite() -> Array:
        svi, data = _made(fit), _first_rows(fit)
        return jnp.isfinite(svi.evaluate(svi.init(key, *data), *data))

    if not jax.jit(is_finite)():
        columns, weights = _first_rows(fit)
        raise refuse_start(lambda **columns: fit.model(columns, weights), columns, key)


def point_of_guide(model: Callable[..., None], key: Array, columns: Columns) -> dict[str, Array]:
    """An unconstrained point for a chain: a draw of a normal guide that is fitted for it alone.

    Guides that begin apart find modes apart, so that R-hat still sees them.
    """
    guide = autoguide.AutoNormal(model)
    svi = _svi(guide, START_RATE, START_UPDATES)
    begin, draw = jax.random.split(key)
    fitted = svi.run(begin, START_UPDATES, progress_bar=False, stable_update=True, **columns)
    drawn = guide.sample_posterior(draw, fitted.params, **columns)
    found = {site["name"]: drawn[site["name"]] for site in latent(guide.prototype_trace)}
    return unconstrain_fn(model, (), dict(columns), found)


def _svi(guide: autoguide.AutoGuide, rate: float, updates: int, particles: int = 1) -> SVI:
    falling = optax.cosine_decay_schedule(rate, updates, LAST_RATE)
    optimizer = optax.adam(falling, b2=MEMORY)
    return SVI(guide.model, guide, optimizer, Trace_ELBO(num_particles=particles))


def _made(fit: Fit, key: Array | None = None, batch: Batch | None = None) -> SVI:
    """SVI with a guide that has seen the batch, whose first values nobody reads."""
    c = fit.config
    guide = GUIDES[c.guide](fit.model, init_loc_fn=init_to_median)
    svi = _svi(guide, c.learning_rate, fit.steps * c.chunk, c.particles)
    if batch is not None:
        svi.init(key, *_update_of(batch, 0))
    return svi


def _update_of(batch: Batch, number: Array | int) -> Any:
    return jax.tree.map(lambda x: x[number % x.shape[0]], batch)


def _first_rows(fit: Fit) -> tuple[Columns, Float[Array, " row"]]:
    rows = min(fit.rows, FIRST_ROWS) if fit.splits else fit.rows
    columns = {name: jnp.asarray(column[:rows]) for name, column in fit.columns.items()}
    return columns, jnp.full(rows, fit.rows / rows, jnp.float32)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> Int[np.ndarray, " row"]:
    return np.random.default_rng((seed, epoch)).permutation(rows)


def _placed(fit: Fit, chosen: Int[np.ndarray, "update row"]) -> Batch:
    """On the devices, filled up with rows of weight 0; copies on each where rows do not split."""
    filling = -chosen.shape[1] % fit.mesh.size if fit.splits else 0
    chosen = np.pad(chosen, ((0, 0), (0, filling)))
    weights = np.full(chosen.shape, fit.rows / (chosen.shape[1] - filling), np.float32)
    weights[:, weights.shape[1] - filling :] = 0
    spec = PartitionSpec(None, DEVICES) if fit.splits else PartitionSpec()
    sharding = NamedSharding(fit.mesh, spec)

    def placed(x: np.ndarray) -> Array:
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

    return {name: placed(column[chosen]) for name, column in fit.columns.items()}, placed(weights)


def _without_filling(fit: Fit, site: Any) -> Array:
    value = site["value"]
    for frame in site["cond_indep_stack"]:
        if frame.name == "row":
            axis = frame.dim - getattr(site.get("fn"), "event_dim", 0) + value.ndim
            value = jax.lax.slice_in_dim(value, 0, fit.rows, axis=axis)
    return value
