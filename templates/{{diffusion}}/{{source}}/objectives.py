"""Paths from data to noise, what a network may predict on them, and the loss. Trains nothing.

Letters: x data, eps unit noise, t time, which grows with noise; x_t = alpha(t) x + sigma(t) eps.
x_hat and eps_hat are estimates of x and eps, given x_t. Noise over signal is sigma / alpha, with no
regard to the spread of the data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .config import ObjectiveConfig, ObjectiveName

type Images = Float[Array, "B H W C"]
type Times = Float[Array, "*#B"]
"""One time for each image, or a scalar for all."""
type Curve = Callable[[Array], Array]
type Network = Callable[[Images, Float[Array, " B"]], Images]
"""(scaled x_t, conditioning number) -> prediction."""
type Denoiser = Callable[[Images, Float[Array, ""]], tuple[Images, Images]]
"""(x_t, t) -> (x_hat, eps_hat)."""
type Space = Literal["x", "eps", "v", "score", "F"]

# EDM's least and greatest noise over signal (arXiv:2206.00364, table 1). The least is a quarter of
# a level of 8-bit images in [-1, 1]. At the greatest what is left of the data is lost in the noise.
LEAST, GREATEST = 0.002, 80.0
RHO = 7.0  # of EDM's grid
# Of a squared error that is measured in another space. That of an x-prediction in v grows like
# 1/t^2 on the linear path; JiT (arXiv:2511.13720) bounds t from below by 0.05.
MAX_FLAT_WEIGHT = 1 / 0.05**2


@dataclass(frozen=True)
class Path:
    """How data become noise: functions of t, which broadcast."""

    alpha: Curve
    sigma: Curve
    least: float  # of the times that are trained on and integrated over
    greatest: float
    time_at: Curve  # log of noise over signal -> t
    spaced: Curve  # [0, 1] -> [least, greatest] as the sampler spaces its steps
    grid: Callable[[int], Float[Array, " N+1"]]  # times of N steps, from the greatest down to 0
    condition: Curve = lambda t: t  # the number of about unit scale that tells a network the time


def edm_spacing(u: Array) -> Array:
    """Sigma that is linear in u when its RHO-th root is taken (arXiv:2206.00364, equation 5)."""
    low, high = LEAST ** (1 / RHO), GREATEST ** (1 / RHO)
    return (low + u * (high - low)) ** RHO


TURN = math.pi / 2
# At t = 1 the cosine path has no signal, so that a prediction of eps does not say what x is. It
# ends where EDM's does: an error of eps_hat is then 80 times as large in x_hat, and 158 times at
# the end of DDPM's linear schedule.
COSINE_LEAST, COSINE_GREATEST = math.atan(LEAST) / TURN, math.atan(GREATEST) / TURN

# Flow matching (arXiv:2210.02747, arXiv:2209.03003). x, v and F are defined at t = 1 too.
LINEAR = Path(
    alpha=lambda t: 1 - t,
    sigma=lambda t: t,
    least=LEAST,
    greatest=1.0,
    time_at=jax.nn.sigmoid,
    spaced=lambda u: LEAST + u * (1 - LEAST),
    grid=lambda steps: jnp.linspace(1.0, 0.0, steps + 1),
)
# Variance preserving (arXiv:2102.09672, without its offset).
COSINE = Path(
    alpha=lambda t: jnp.cos(TURN * t),
    sigma=lambda t: jnp.sin(TURN * t),
    least=COSINE_LEAST,
    greatest=COSINE_GREATEST,
    time_at=lambda log_ratio: jnp.arctan(jnp.exp(log_ratio)) / TURN,
    spaced=lambda u: COSINE_LEAST + u * (COSINE_GREATEST - COSINE_LEAST),
    grid=lambda steps: jnp.linspace(COSINE_GREATEST, 0.0, steps + 1),
)
# EDM (arXiv:2206.00364): noise is added to data that keep their scale, and t is sigma.
EDM = Path(
    alpha=jnp.ones_like,
    sigma=lambda t: t,
    least=LEAST,
    greatest=GREATEST,
    time_at=jnp.exp,
    spaced=edm_spacing,
    grid=lambda steps: jnp.append(edm_spacing(jnp.linspace(1.0, 0.0, steps)), 0.0),
    condition=lambda t: jnp.log(t) / 4,
)


@dataclass(frozen=True)
class Objective:
    """A path, what the network predicts on it, and in which space a flat loss is measured."""

    path: Path
    predicts: Space
    loss: Space
    scales_input: bool = False  # to unit variance
    log_noise: tuple[float, float] = (0.0, 1.0)  # mean and std of the log of noise over signal


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "flow-v": Objective(LINEAR, "v", "v"),
    "flow-x": Objective(LINEAR, "x", "v"),  # JiT
    "edm": Objective(EDM, "F", "F", scales_input=True, log_noise=(-1.2, 1.2)),
    "ddpm-eps": Objective(COSINE, "eps", "eps"),
    "ddpm-v": Objective(COSINE, "v", "v"),  # pi/2 times the v of arXiv:2202.00512
}


def rate(curve: Curve, t: Times) -> Times:
    """Derivative of a curve with respect to t."""
    return jax.jvp(curve, (t,), (jnp.ones_like(t),))[1]


def total_std(path: Path, t: Times, sigma_data: float) -> Times:
    """Standard deviation of x_t, where that of the data is sigma_data; 1 over it is EDM's c_in."""
    return jnp.sqrt((path.alpha(t) * sigma_data) ** 2 + path.sigma(t) ** 2)


def coefficients(path: Path, space: Space, t: Times, sigma_data: float) -> tuple[Array, Array]:
    """(a, b) of what is predicted: a x + b eps.

    F is what EDM's network returns, so that D = c_skip x_t + c_out F (arXiv:2206.00364, table 1),
    on x_t / alpha of any path.
    """
    alpha, sigma, zero, one = path.alpha(t), path.sigma(t), jnp.zeros_like(t), jnp.ones_like(t)
    match space:
        case "x":
            return one, zero
        case "eps":
            return zero, one
        case "v":
            return rate(path.alpha, t), rate(path.sigma, t)
        case "score":
            return zero, -1 / sigma
        case "F":
            std = total_std(path, t, sigma_data)
            return sigma / (sigma_data * std), -alpha * sigma_data / std


def determinant(path: Path, space: Space, t: Times, sigma_data: float) -> Times:
    """Of the equations x_t = alpha x + sigma eps, prediction = a x + b eps."""
    a, b = coefficients(path, space, t, sigma_data)
    return path.alpha(t) * b - path.sigma(t) * a


def over_images(t: Times) -> Array:
    """With three axes more, to be multiplied with images."""
    return t[..., None, None, None]


def combine(
    path: Path, space: Space, x: Images, eps: Images, t: Times, sigma_data: float
) -> Images:
    """What a network that predicts in `space` should return for this x and eps: its target."""
    a, b = coefficients(path, space, over_images(t), sigma_data)
    return a * x + b * eps


def separate(
    path: Path, space: Space, x_t: Images, prediction: Images, t: Times, sigma_data: float
) -> tuple[Images, Images]:
    """(x_hat, eps_hat) of a prediction at x_t; `combine` takes them to any other space.

    Not finite where the prediction does not determine them: x at sigma = 0, eps at alpha = 0.
    """
    t = over_images(t)
    a, b = coefficients(path, space, t, sigma_data)
    det = determinant(path, space, t, sigma_data)
    x_hat = (b * x_t - path.sigma(t) * prediction) / det
    return x_hat, (path.alpha(t) * prediction - a * x_t) / det


def error_ratio(path: Path, source: Space, target: Space, t: Times, sigma_data: float) -> Times:
    """Size of an error of a prediction, measured in `target`, over its size in `source`.

    At a fixed x_t, alpha dx + sigma deps = 0: all errors are multiples of each other.
    """
    source_det = determinant(path, source, t, sigma_data)
    return jnp.abs(determinant(path, target, t, sigma_data) / source_det)


def loss_weight(config: ObjectiveConfig, t: Times) -> Times:
    """Factor of the squared error in the space in which the network predicts.

    flat: all times alike, in the loss space of the objective. min-snr: min(SNR, gamma) in x
    (arXiv:2303.09556). edm: lambda(sigma) in x (arXiv:2206.00364), which is flat in F.
    """
    row = OBJECTIVES[config.name]

    def squared_ratio(space: Space) -> Array:
        return error_ratio(row.path, row.predicts, space, t, config.sigma_data) ** 2

    match config.weight:
        case "flat":
            return jnp.minimum(squared_ratio(row.loss), MAX_FLAT_WEIGHT)
        case "min-snr":
            snr = (row.path.alpha(t) / row.path.sigma(t)) ** 2
            return jnp.minimum(snr, config.min_snr_gamma) * squared_ratio("x")
        case "edm":
            return squared_ratio("F")


def sample_times(config: ObjectiveConfig, key: jax.Array, count: int) -> Float[Array, " {count}"]:
    """Times of all images of a micro-batch, within the range of the path.

    logit-normal: the log of noise over signal is normal. On the linear path that is the
    logit-normal t of arXiv:2403.03206, on the EDM path EDM's log-normal sigma. uniform: along the
    sampler's steps, which is uniform in t but for EDM. Stratified: one time from each of `count`
    parts of equal probability (arXiv:2107.00630, appendix I.1), in random order.
    """
    path, usual = OBJECTIVES[config.name].path, OBJECTIVES[config.name].log_noise
    within, order = jax.random.split(key)
    quantile = jax.random.uniform(within, (count,))
    if config.stratified:
        quantile = (jax.random.permutation(order, count) + quantile) / count
    if config.times == "uniform":
        return path.spaced(quantile)
    given = config.time_mean, config.time_std
    mean, std = (own if of is None else of for of, own in zip(given, usual, strict=True))
    log_ratio = mean + std * jax.scipy.special.ndtri(quantile)
    return jnp.clip(path.time_at(log_ratio), path.least, path.greatest)


def apply_network(config: ObjectiveConfig, network: Network, x_t: Images, t: Times) -> Images:
    """float32 prediction at x_t, whose input and noise level are scaled as the objective says."""
    row = OBJECTIVES[config.name]
    std = total_std(row.path, t, config.sigma_data) if row.scales_input else jnp.ones_like(t)
    condition = jnp.broadcast_to(row.path.condition(t), x_t.shape[:1])
    return network(x_t / over_images(std), condition).astype(jnp.float32)


def losses(
    config: ObjectiveConfig, network: Network, x: Images, eps: Images, t: Float[Array, " B"]
) -> Float[Array, " B"]:
    """Weighted mean squared error of each image."""
    row = OBJECTIVES[config.name]
    x_t = row.path.alpha(over_images(t)) * x + row.path.sigma(over_images(t)) * eps
    target = combine(row.path, row.predicts, x, eps, t, config.sigma_data)
    error = apply_network(config, network, x_t, t) - target
    return loss_weight(config, t) * jnp.mean(error**2, axis=(1, 2, 3))


def make_denoiser(config: ObjectiveConfig, network: Network) -> Denoiser:
    """What samplers and likelihood call: the network's prediction as (x_hat, eps_hat)."""
    row = OBJECTIVES[config.name]

    def denoise(x_t: Images, t: Float[Array, ""]) -> tuple[Images, Images]:
        prediction = apply_network(config, network, x_t, t)
        return separate(row.path, row.predicts, x_t, prediction, t, config.sigma_data)

    return denoise
