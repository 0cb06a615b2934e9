"""A mixture of Gaussians with full covariances, of images of 2 x 2 x 1: all in closed form."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ..objectives import Denoiser, Path

SHAPE = (2, 2, 1)
DIMS = 4


@dataclass(frozen=True)
class Mixture:
    """K components in D numbers; a covariance is given by its axes and the variances along them."""

    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K, D)
    axes: np.ndarray  # (K, D, D), columns
    variances: np.ndarray  # (K, D)

    def noised(self, path: Path, t: jax.Array) -> "Mixture":
        """The mixture of x_t."""
        alpha, sigma, of = path.alpha(t), path.sigma(t), self.on_device()
        variances = alpha**2 * of.variances + sigma**2
        return Mixture(of.weights, alpha * of.means, of.axes, variances)

    def on_device(self) -> "Mixture":
        """Arrays of JAX, in the precision that is enabled now."""
        parts = self.weights, self.means, self.axes, self.variances
        return Mixture(*(jnp.asarray(part, float) for part in parts))

    def along(self, x: jax.Array) -> jax.Array:
        """Distances from each mean along the axes, (B, K, D)."""
        return jnp.einsum("bke,ked->bkd", x.reshape(-1, 1, DIMS) - self.means, self.axes)

    def log_terms(self, x: jax.Array) -> jax.Array:
        """Log of weight times density of each component, (B, K)."""
        terms = self.along(x) ** 2 / self.variances + jnp.log(2 * jnp.pi * self.variances)
        return jnp.log(self.weights) - terms.sum(-1) / 2

    def log_density(self, x: jax.Array) -> jax.Array:
        """Nats of each image."""
        return jax.nn.logsumexp(self.on_device().log_terms(x), axis=-1)

    def mean(self) -> np.ndarray:
        return self.weights @ self.means

    def covariance(self) -> np.ndarray:
        centred = self.means - self.mean()
        own = np.einsum("kde,ke,kfe->kdf", self.axes, self.variances, self.axes)
        return np.einsum("k,kde->de", self.weights, own + centred[:, :, None] * centred[:, None])

    def draw(self, count: int, seed: int = 0) -> np.ndarray:
        """Images, float32."""
        rng = np.random.default_rng(seed)
        which = rng.choice(len(self.weights), count, p=self.weights)
        along = np.sqrt(self.variances[which]) * rng.normal(size=(count, DIMS))
        x = self.means[which] + np.einsum("bde,be->bd", self.axes[which], along)
        return x.reshape(count, *SHAPE).astype(np.float32)


def mixture(seed: int = 0, components: int = 3, spread: float = 0.7) -> Mixture:
    """Standard deviations of 0.15 to 0.4 along random axes; means of `spread` in each pixel."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(components, DIMS, DIMS)))[0]
    variances = rng.uniform(0.15, 0.4, size=(components, DIMS)) ** 2
    weights = rng.uniform(1, 2, size=components)
    means = spread * rng.normal(size=(components, DIMS))
    return Mixture(weights / weights.sum(), means, axes, variances)


def ball(mean: np.ndarray, std: float) -> Mixture:
    """One Gaussian that is as wide in every direction."""
    return Mixture(np.ones(1), mean[None], np.eye(DIMS)[None], np.full((1, DIMS), std**2))


def estimates(of: Mixture, path: Path, x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means of x and eps given x_t, by Gaussian conditioning in each component."""
    noised, of = of.noised(path, t), of.on_device()
    share = jax.nn.softmax(noised.log_terms(x_t), axis=-1)
    precise = noised.along(x_t) / noised.variances
    x_hat = path.alpha(t) * jnp.einsum("bkd,ked->bke", of.variances * precise, of.axes)
    eps_hat = path.sigma(t) * jnp.einsum("bkd,ked->bke", precise, of.axes)
    mix = lambda parts: jnp.einsum("bk,bkd->bd", share, parts).reshape(x_t.shape)  # noqa: E731
    return mix(of.means + x_hat), mix(eps_hat)


def denoiser(of: Mixture, path: Path) -> Denoiser:
    """What the best possible network says."""
    return lambda x_t, t: estimates(of, path, x_t, t)
