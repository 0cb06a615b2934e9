"""Stopping distances: what curve leads from the speed of a car to its stopping distance?

Data: speed in miles an hour and stopping distance in feet of 50 cars of the 1920s. Ezekiel (1930),
Methods of Correlation Analysis. A network with one hidden layer, whose weights have normal priors:
Neal (1996), Bayesian Learning for Neural Networks. The forward pass is a Flax NNX module.

Weights are not identified, since hidden units may swap places: only the curve and the noise are
judged.
"""

from collections.abc import Mapping

import jax
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Float

COLUMNS = {"x": "predictors", "distance": "standardised"}
OUTCOME = "distance"
JUDGED = ("curve", "noise")
HIDDEN = 8
SPEED = [4, 4, 7, 7, 8, 9, 10, 10, 10, 11, 11, 12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15]
SPEED += [15, 15, 16, 16, 17, 17, 17, 18, 18, 18, 18, 19, 19, 19, 20, 20, 20, 20, 20, 22, 23, 24]
SPEED += [24, 24, 24, 25]
DISTANCE = [2, 10, 4, 22, 16, 10, 18, 26, 34, 17, 28, 14, 20, 24, 28, 26, 34, 34, 46, 26, 36, 60]
DISTANCE += [80, 20, 26, 54, 32, 40, 32, 40, 50, 42, 56, 76, 84, 36, 46, 68, 32, 48, 52, 56, 64]
DISTANCE += [66, 54, 70, 92, 93, 120, 85]


def example() -> dict[str, list]:
    """The cars, by speed."""
    return {"speed": SPEED, "distance": DISTANCE}


class Network(nnx.Module):
    """One hidden layer of tanh units."""

    def __init__(self, inputs: int, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(inputs, HIDDEN, rngs=rngs)
        self.readout = nnx.Linear(HIDDEN, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "row predictor"]) -> Float[Array, " row"]:
        return self.readout(jax.nn.tanh(self.hidden(x)))[:, 0]


def model(
    x: Float[Array, "row predictor"],
    sizes: Mapping[str, int],
    distance: Float[Array, " row"] | None = None,
) -> None:
    """A curve with normal noise; the outcome is standardised."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Network(sizes["predictor"], nnx.Rngs(0))))

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
        # The readout is scaled so that the prior of the curve does not depend on the width.
        scale = HIDDEN**-0.5 if path[0] == "readout" else 1.0
        prior = dist.Normal(0, scale).expand(leaf.shape).to_event(len(leaf.shape))
        return numpyro.sample(".".join(map(str, path)), prior)

    leaves = nnx.to_flat_state(shapes)
    weights = nnx.from_flat_state([(p, v.replace(draw(p, v.get_value()))) for p, v in leaves])
    noise = numpyro.sample("noise", dist.HalfNormal(1))
    with numpyro.plate("row", sizes["row"]):
        curve = numpyro.deterministic("curve", nnx.merge(graph, weights)(x))
        numpyro.sample("distance", dist.Normal(curve, noise), obs=distance)
