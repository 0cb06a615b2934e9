"""Images from noise: ODE and SDE samplers over a grid of times, and guidance. Knows no network.

Pure functions of a denoiser, (x_t, t) -> (x_hat, eps_hat). None asks it about t = 0, where eps_hat
is undefined: the last step goes to x_hat.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from .config import SampleConfig, SamplerName
from .objectives import Denoiser, Images, Path, rate

# Of EDM's stochastic sampler, as tuned for ImageNet-64 (arXiv:2206.00364, table 5).
CHURN_FROM, CHURN_TO, CHURN_NOISE = 0.05, 50.0, 1.003

type Scalar = Float[Array, ""]
type Index = Int[Array, ""]
type Trajectory = Float[Array, "N B H W C"]


class Problem(NamedTuple):
    """What every sampler is given beside the noise."""

    path: Path
    denoise: Denoiser
    times: Float[Array, " N+1"]
    keys: Key[Array, " B"]
    """One for each image; only `churn` draws from them."""
    churn: float = 0.0
    """S_churn: how much of the noise is fresh."""


type Step = Callable[[Problem, Index, Images, Images], tuple[Images, Images]]
"""(problem, step, x_t, x_hat of the step before) -> (x at the next time, x_hat)."""


def image_keys(key: jax.Array, indices: Int[Array, " B"]) -> Key[Array, " B"]:
    """A key for each image that depends on its index alone, and so on no batch or device."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def draw_noise(keys: Key[Array, " B"], shape: tuple[int, ...], draw: Index | int = 0) -> Images:
    """Unit noise of each image; shape: (height, width, channels).

    draw: 0 is what sampling starts from, `churn` takes 1 and more, so that both may share keys.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, draw), shape))(keys)


def sample(
    config: SampleConfig,
    path: Path,
    denoise: Denoiser,
    noise: Images,
    keys: Key[Array, " B"],
    *,
    keep: bool = False,
) -> Images | Trajectory:
    """Images from unit noise.

    keep: return the estimate of the image at every time instead; the last one is the image.
    """
    problem = Problem(path, denoise, path.grid(config.sampler_steps), keys, config.churn)
    # What the path leaves of the data at its greatest time, at most 1/80 of the noise, is left out.
    return SAMPLERS[config.sampler](problem, noise * path.sigma(problem.times[0]), keep)


def run_steps(step: Step, problem: Problem, x: Images, keep: bool) -> Images | Trajectory:
    """A scan of `step` over the grid."""

    def body(carry: tuple[Images, Images], index: Index) -> tuple[Any, Any]:
        x, x_hat = step(problem, index, *carry)
        return (x, x_hat), x_hat if keep else None

    steps = jnp.arange(len(problem.times) - 1)
    (x, _), estimates = jax.lax.scan(body, (x, jnp.zeros_like(x)), steps)
    return estimates if keep else x


def mix(path: Path, x_hat: Images, eps_hat: Images, t: Scalar) -> Images:
    """x_t of these estimates."""
    return path.alpha(t) * x_hat + path.sigma(t) * eps_hat


def velocity(path: Path, x_hat: Images, eps_hat: Images, t: Scalar) -> Images:
    """dx/dt of the probability-flow ODE (arXiv:2011.13456)."""
    return rate(path.alpha, t) * x_hat + rate(path.sigma, t) * eps_hat


def euler(problem: Problem, index: Index, x: Images, last_x_hat: Images) -> tuple[Images, Images]:
    """One evaluation a step, first order. On the cosine path it is DDIM (arXiv:2010.02502)."""
    estimates = problem.denoise(x, problem.times[index])
    return mix(problem.path, *estimates, problem.times[index + 1]), estimates[0]


def heun_step(problem: Problem, x: Images, now: Scalar, after: Scalar) -> tuple[Images, Images]:
    """Heun's method in t from one time to another; to t = 0 Euler's."""
    path, denoise = problem.path, problem.denoise
    x_hat, eps_hat = denoise(x, now)
    guess = mix(path, x_hat, eps_hat, after)

    def corrected() -> Images:
        slope = velocity(path, x_hat, eps_hat, now)
        return x + (after - now) / 2 * (slope + velocity(path, *denoise(guess, after), after))

    return jax.lax.cond(after > 0, corrected, lambda: guess), x_hat


def heun(problem: Problem, index: Index, x: Images, last_x_hat: Images) -> tuple[Images, Images]:
    """Two evaluations a step, second order (arXiv:2206.00364, algorithm 1)."""
    return heun_step(problem, x, problem.times[index], problem.times[index + 1])


def dpm_solver(
    problem: Problem, index: Index, x: Images, last_x_hat: Images
) -> tuple[Images, Images]:
    """One evaluation a step, second order: DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2).

    Of first order are the first step, as it has no estimate before it, and those beside a time at
    which the solver's variable, the log of signal over noise, is infinite: t = 0, linear t = 1.
    """
    path, times = problem.path, problem.times

    def log_snr(t: Scalar) -> Scalar:
        return jnp.log(path.alpha(t) / path.sigma(t))

    before, now, after = times[index - 1], times[index], times[index + 1]
    x_hat, _ = problem.denoise(x, now)
    ratio = (log_snr(after) - log_snr(now)) / (log_snr(now) - log_snr(before))
    usable = (index > 0) & (after > 0)
    extrapolated = x_hat + jnp.where(usable, ratio / 2, 0.0) * (x_hat - last_x_hat)
    kept = path.sigma(after) / path.sigma(now)
    return kept * x + (path.alpha(after) - kept * path.alpha(now)) * extrapolated, x_hat


def churn(
    problem: Problem,
    index: Index,
    x: Images,
    last_x_hat: Images,
    *,
    noise: float = CHURN_NOISE,
) -> tuple[Images, Images]:
    """Fresh noise, then a step of Heun's method from the higher level (arXiv:2206.00364, alg. 2).

    noise: S_noise. Works on x / alpha, whose noise level is sigma / alpha.
    """
    path, times = problem.path, problem.times
    now, steps = times[index], len(times) - 1
    level = path.sigma(now) / path.alpha(now)
    inside = (level >= CHURN_FROM) & (level <= CHURN_TO)
    factor = 1 + jnp.where(inside, min(problem.churn / steps, 2**0.5 - 1), 0.0)
    raised = jnp.where(inside, path.time_at(jnp.log(factor * level)), now)
    fresh = noise * draw_noise(problem.keys, x.shape[1:], index + 1)
    # alpha(raised) / alpha(now), and what then lacks to sigma(raised); both hold at alpha = 0.
    kept = path.sigma(raised) / (path.sigma(now) * factor)
    x = kept * x + path.sigma(raised) * jnp.sqrt(1 - factor**-2) * fresh
    return heun_step(problem, x, raised, times[index + 1])


def adaptive(
    problem: Problem, x: Images, keep: bool, *, tolerance: float = 1e-4
) -> Images | Trajectory:
    """Tsit5 of diffrax down to the least time, then x_hat; each step is chosen for the worst image.

    An image therefore depends on the others of its batch, to about the tolerance.
    Raises where 4096 steps do not suffice.
    """
    import diffrax  # takes seconds

    path, denoise = problem.path, problem.denoise

    def field(t: Any, x: Images, _: None) -> Images:
        return velocity(path, *denoise(x, t), t)

    def worst(error: Images) -> Scalar:
        return jnp.sqrt(jnp.mean(error**2, axis=(1, 2, 3))).max()

    times = problem.times[:-1].at[-1].set(path.least) if keep else jnp.array([path.least])
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        problem.times[0],
        times[-1],
        None,
        x,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(tolerance, tolerance, norm=worst),
    )
    estimates = jax.lax.map(lambda at: denoise(*at)[0], (solution.ys, times))
    return estimates if keep else estimates[-1]


SAMPLERS: dict[SamplerName, Callable[[Problem, Images, bool], Images | Trajectory]] = {
    "euler": partial(run_steps, euler),
    "heun": partial(run_steps, heun),
    "dpm++": partial(run_steps, dpm_solver),
    "churn": partial(run_steps, churn),
    "adaptive": adaptive,
}


def guided(
    strong: Denoiser,
    weak: Denoiser,
    scale: float | Float[Array, "B 1 1 1"],
    noise_from: float,
    noise_to: float,
    path: Path,
) -> Denoiser:
    """Extrapolates from `weak` through `strong`: weak + scale (strong - weak).

    weak: the unconditional prediction (classifier-free guidance, arXiv:2207.12598) or a worse
    network (autoguidance, arXiv:2406.02507); scale 1 never evaluates it. Outside of [noise_from,
    noise_to] `strong` acts alone (arXiv:2404.07724). These are shares of noise,
    sigma / (alpha + sigma): t itself on the linear path, sigma / (1 + sigma) on EDM's, so that an
    interval means the same noise on every path.
    """
    if isinstance(scale, int | float) and scale == 1:
        return strong

    def denoise(x_t: Images, t: Scalar) -> tuple[Images, Images]:
        near = strong(x_t, t)

        def extrapolated() -> tuple[Images, Images]:
            return jax.tree.map(lambda far, near: far + scale * (near - far), weak(x_t, t), near)

        share = path.sigma(t) / (path.alpha(t) + path.sigma(t))
        inside = (share >= noise_from) & (share <= noise_to)
        return jax.lax.cond(inside, extrapolated, lambda: near)

    return denoise
