"""The models of seven reference posteriors as NumPyro functions of their data. Fits nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

RK4_STEPS = 40  # a year: the error of the orbit is far below the noise


def _flat(name: str, count: int) -> jax.Array:
    improper = dist.ImproperUniform(constraints.real, (), (count,))
    return numpyro.sample(name, improper)


def auto_regression(y: jax.Array, **_: Any) -> None:
    """arK: five lags."""
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([5]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    lags = jnp.stack([y[4 - k : len(y) - 1 - k] for k in range(5)], axis=1)
    numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[5:])


def earnings(earn: jax.Array, height: jax.Array, male: jax.Array, **_: Any) -> None:
    """logearn_interaction: flat priors."""
    beta = _flat("beta", 4)
    sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    mean = beta[0] + beta[1] * height + beta[2] * male + beta[3] * height * male
    numpyro.sample("y", dist.Normal(mean, sigma), obs=jnp.log(earn))


def eight_schools(y: jax.Array, sigma: jax.Array, **_: Any) -> None:
    """eight_schools_noncentered."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    standard = numpyro.sample("standard", dist.Normal(0, 1).expand([8]).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * standard)
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def kid_scores(kid_score: jax.Array, mom_hs: jax.Array, mom_iq: jax.Array, **_: Any) -> None:
    """kidscore_momhsiq: flat priors of the coefficients."""
    beta = _flat("beta", 3)
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq
    numpyro.sample("y", dist.Normal(mean, sigma), obs=kid_score)


def lynx_and_hares(y: jax.Array, y_init: jax.Array, **_: Any) -> None:
    """lotka_volterra: an ordinary differential equation, here by Runge-Kutta steps."""
    means, scales = jnp.array([1, 0.05, 1, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    prior = dist.TruncatedNormal(means, scales, low=0).to_event(1)
    theta = numpyro.sample("theta", prior)
    sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1).expand([2]).to_event(1))
    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10), 1).expand([2]).to_event(1))

    def slope(z: jax.Array) -> jax.Array:
        hares, lynx = z
        growth = jnp.stack([theta[0] - theta[1] * lynx, -theta[2] + theta[3] * hares])
        return growth * z

    def step(z: jax.Array, _: None) -> tuple[jax.Array, None]:
        h = 1 / RK4_STEPS
        k1 = slope(z)
        k2 = slope(z + h / 2 * k1)
        k3 = slope(z + h / 2 * k2)
        k4 = slope(z + h * k3)
        return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    def year(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        z, _ = jax.lax.scan(step, z, length=RK4_STEPS)
        return z, z

    _, z = jax.lax.scan(year, z_init, length=len(y))
    numpyro.sample("first", dist.LogNormal(jnp.log(z_init), sigma).to_event(1), obs=y_init)
    numpyro.sample("y", dist.LogNormal(jnp.log(z), sigma).to_event(2), obs=y)


def mixture(y: jax.Array, **_: Any) -> None:
    """low_dim_gauss_mix: the means are in order."""
    prior = dist.Normal(0, 2).expand([2]).to_event(1)
    ordered = dist.ImproperUniform(constraints.ordered_vector, (), (2,))
    mu = numpyro.sample("mu", ordered)
    numpyro.factor("prior", prior.log_prob(mu))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def regression(X: jax.Array, y: jax.Array, **_: Any) -> None:
    """blr: correlated columns."""
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([5]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


MODELS: dict[str, Callable[..., None]] = {
    "arK-arK": auto_regression,
    "earnings-logearn_interaction": earnings,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "hudson_lynx_hare-lotka_volterra": lynx_and_hares,
    "kidiq-kidscore_momhsiq": kid_scores,
    "low_dim_gauss_mix-low_dim_gauss_mix": mixture,
    "sblrc-blr": regression,
}
