"""NUTS as pure functions of one state: a step is a chunk of draws of every chain.

The kernel is NumPyro's. Warm-up and sampling are one function, since the kernel's state counts its
draws, and adaptation is a part of that state. Chains are spread over the devices by `shard_map`, so
that none waits for the tree of another one; devices of the axis `tensor` share a chain, each with
a part of the rows, and add their gradients up. How the chains of a device share it decides the last
bits of the draws, and so is a part of the run's identity. Opens no file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float
from numpyro.infer import NUTS

from .config import NutsConfig
from .contract import Metrics, Outputs, State
from .metric import adapt, no_moments, window_ends
from .sites import Columns, refuse_start
from .svi import point_of_guide

CHAINS = PartitionSpec(("data", "fsdp"))  # the leading axis of all
ROWS = PartitionSpec("tensor")  # of a table, each part on devices of its own
STUCK = 1e3  # stands for an R-hat that is infinite: no chain moves
type Chain = dict[str, Array]
"""The kernel's state of one chain, or of all with a leading axis, under flat names."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """The static arguments of a step. One kernel belongs to one model and one length of warm-up."""

    kernel: NUTS
    config: NutsConfig
    chains: int
    together: bool
    """Whether the chains of a device run together (vmap) or one after the other."""
    columns: dict[str, np.ndarray]
    mesh: Mesh
    treedef: Any
    names: tuple[str, ...]


def make_sampler(
    config: NutsConfig,
    model: Callable[..., None],
    columns: dict[str, np.ndarray],
    sizes: Mapping[str, int],
    mesh: Mesh,
    chains: int,
) -> Sampler:
    """Build the static parts. The kernel is primed on shapes, which compiles nothing."""
    kernel = NUTS(
        partial(model, sizes=sizes),
        dense_mass=config.metric != "diagonal",
        target_accept_prob=config.target_accept,
        max_tree_depth=config.max_tree_depth,
    )
    begin = partial(kernel.init, num_warmup=config.warmup)
    shapes = jax.eval_shape(
        lambda key, columns: begin(key, model_kwargs=columns), jax.random.key(0), columns
    )
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    names = tuple(_name(path) for path, _ in leaves)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    together = config.layout == "vmap" or (config.layout == "auto" and not on_cpu)
    return Sampler(kernel, config, chains, together, columns, mesh, treedef, names)


def init_state(sampler: Sampler, key: Array, columns: Columns | None = None) -> State:
    """First state: each chain begins at a point of its own, uniform in [-2, 2] unconstrained, or
    at a draw of a guide of its own that is fitted from there.

    columns: others than the sampler's, of the same shapes
    """
    columns = sampler.columns if columns is None else columns
    begin, keys = partial(begin_chain, sampler), jax.random.split(key, sampler.chains)
    chain = spread(sampler.mesh, sampler.together, begin, keys, columns)
    sums = jnp.zeros((sampler.chains, _flat(chain).shape[1]))
    counts = jnp.zeros((sampler.chains,), jnp.int32)
    running = {"mean": sums, "within": sums, "between": sums, "divergences": counts}
    return {"step": jnp.zeros((), jnp.int32), "chain": chain, "running": running}


def begin_chain(sampler: Sampler, key: Array, columns: Columns) -> Chain:
    """A chain that has drawn nothing."""
    kernel, config = sampler.kernel, sampler.config
    from_guide = config.start == "svi"
    point = point_of_guide(kernel.model, key, columns) if from_guide else None
    state = kernel.init(key, config.warmup, point, (), columns)
    chain = dict(zip(sampler.names, jax.tree.leaves(state), strict=True))
    if config.metric == "low_rank":
        chain |= no_moments(sum(x.size for x in state.z.values()))
    return chain


def state_specs(state: State) -> Any:
    """All but the step is split by chains."""
    specs = jax.tree.map(lambda _: CHAINS, state)
    return specs | {"step": PartitionSpec()}


def sample_step(sampler: Sampler, state: State, columns: Columns) -> tuple[State, Metrics, Outputs]:
    """A chunk of draws of every chain; what chains have in common is computed after it."""
    drawn = state["step"] * sampler.config.chunk
    one, mesh = partial(next_chunk, sampler), sampler.mesh
    chain, outputs, chunk = spread(mesh, sampler.together, one, state["chain"], columns, drawn)
    warmup_steps = sampler.config.warmup // sampler.config.chunk
    # Counts restart when warm-up ends.
    chunks = jnp.where(state["step"] < warmup_steps, state["step"], state["step"] - warmup_steps)
    running = _running(state["running"], chunk, chunks, sampler.config.chunk)
    rhat, ess = agreement(running, chunks + 1, sampler.config.chunk)
    metrics = {
        "rhat": rhat,
        "min_ess": ess,
        "min_ess_per_draw": ess / ((chunks + 1) * sampler.config.chunk * sampler.chains),
        "divergences": running["divergences"].sum().astype(jnp.float32),
        "step_size": chain["adapt_state.step_size"].mean(),
        "leapfrogs": chunk["leapfrogs"].mean(),
        "accept": chunk["accept"].mean(),
        "log_density": -chunk["potential"].mean(),
        "warming_up": (state["step"] < warmup_steps).astype(jnp.float32),
    }
    return {"step": state["step"] + 1, "chain": chain, "running": running}, metrics, outputs


def agreement(
    running: dict[str, Array], chunks: Array | int, chunk: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Largest R-hat and smallest effective sample size of all unconstrained parameters so far.

    From sums of each chain, so that no draw has to be kept: R-hat without split or ranks (Gelman
    and Rubin 1992), ESS by the means of chunks. `diagnose` has the exact figures.
    """
    mean, chains = running["mean"], running["mean"].shape[0]
    within = (running["within"] / jnp.maximum(chunks * chunk - 1, 1)).mean(0)
    apart = mean.var(0, ddof=1)
    variance = within * (1 - 1 / (chunks * chunk)) + apart
    rhat = jnp.where(within > 0, jnp.sqrt(variance / jnp.where(within > 0, within, 1)), STUCK)
    of_means = running["between"].sum(0) + chunks * ((mean - mean.mean(0)) ** 2).sum(0)
    of_means /= chunks * chains - 1
    ratio = jnp.where(of_means > 0, variance / jnp.where(of_means > 0, of_means, 1), 1 / chunk)
    return rhat.max(), (chains * chunks * ratio).min()


def next_chunk(
    sampler: Sampler, chain: Chain, columns: Columns, drawn: Array | int
) -> tuple[Chain, Outputs, Any]:
    """The next draws of one chain: its state, draws and statistics, and sums over the chunk.

    drawn: how many it has drawn, which is the same in all chains.
    """
    kernel, config = sampler.kernel, sampler.config
    ends = jnp.array(window_ends(config.warmup))

    def draw(held: Any, number: Array) -> tuple[Any, Any]:
        state, moments = held
        state = kernel.sample(state, (), columns)
        if config.metric == "low_rank":
            state, moments = adapt(state, moments, number, ends)
        kept = (state.z, state.potential_energy, state.energy, state.diverging)
        shown = (*kept, state.num_steps, state.accept_prob, state.adapt_state.step_size)
        return (state, moments), shown

    first = jax.tree.unflatten(sampler.treedef, [chain[name] for name in sampler.names])
    moments = {name: chain[name] for name in chain if name not in sampler.names}
    numbers = drawn + jnp.arange(config.chunk)
    (last, moments), shown = jax.lax.scan(draw, (first, moments), numbers)
    z, potential, energy, diverging, leapfrogs, accept, step_size = shown
    posterior = jax.vmap(kernel.postprocess_fn((), columns))(z)
    depth = jnp.ceil(jnp.log2(leapfrogs.astype(jnp.float32) + 1)).astype(jnp.int32)
    stats = {
        **{"energy": energy, "lp": -potential, "diverging": diverging, "n_steps": leapfrogs},
        **{"acceptance_rate": accept, "step_size": step_size, "tree_depth": depth},
        "reached_max_treedepth": leapfrogs >= 2**config.max_tree_depth - 1,
    }
    outputs = {f"posterior/{name}": value for name, value in posterior.items()}
    outputs |= {f"sample_stats/{name}": value for name, value in stats.items()}
    flat = jnp.concatenate([z[name].reshape(config.chunk, -1) for name in sorted(z)], axis=1)
    sums = {
        **{"mean": flat.mean(0), "within": ((flat - flat.mean(0)) ** 2).sum(0)},
        **{"divergences": diverging.sum().astype(jnp.int32), "accept": accept.mean()},
        **{"leapfrogs": leapfrogs.mean(), "potential": potential.mean()},
    }
    state = dict(zip(sampler.names, jax.tree.leaves(last), strict=True))
    return state | moments, outputs, sums


def _running(old: dict[str, Array], new: Any, chunks: Array, chunk: int) -> dict[str, Array]:
    """The sums of each chain with a chunk more, from none on where `chunks` is 0 (Chan 1979)."""
    old = {name: jnp.where(chunks > 0, value, 0) for name, value in old.items()}
    apart, share = new["mean"] - old["mean"], 1 / (chunks + 1)
    return {
        "mean": old["mean"] + apart * share,
        "within": old["within"] + new["within"] + apart**2 * chunk * chunks * share,
        "between": old["between"] + apart**2 * chunks * share,
        "divergences": old["divergences"] + new["divergences"],
    }


def spread(mesh: Mesh, together: bool, one: Callable[..., Any], chains: Any, *shared: Any) -> Any:
    """`one(chain, *shared)` of every chain, each on its device; `together` as in `Sampler`."""

    def on_device(chains: Any, *shared: Any) -> Any:
        each = lambda chain: one(chain, *shared)  # noqa: E731
        return jax.vmap(each)(chains) if together else jax.lax.map(each, chains)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(CHAINS, *[PartitionSpec()] * len(shared)),
        out_specs=CHAINS,
        axis_names={"data", "fsdp"},  # rows are split over the third by the partitioner
        check_vma=False,  # the kernel's loops begin with constants
    )(chains, *shared)


def _flat(chain: Chain) -> Float[Array, "chain parameter"]:
    sites = [chain[name] for name in sorted(chain) if name.startswith("z.")]
    return jnp.concatenate([site.reshape(site.shape[0], -1) for site in sites], axis=1)


def _name(path: Any) -> str:
    """A leaf of the kernel's state; the metric's key is the tuple of all its sites."""
    parts = ["block" if str(k).startswith("[(") else _plain(k) for k in path]
    return ".".join(parts)


def _plain(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def check_start(sampler: Sampler, seed: int) -> None:
    """Refuse a model whose chains find no point to begin at, and name the sites to look at."""
    key = jax.random.key(seed)

    def is_finite() -> Array:
        chain = init_state(sampler, key)["chain"]
        return jnp.isfinite(chain["potential_energy"]).all() & jnp.isfinite(_flat(chain)).all()

    if not jax.jit(is_finite)():
        raise refuse_start(sampler.kernel.model, sampler.columns, key)
