"""Baseball, complete pooling: the first rung, where all players share one ability.

How well does a player bat for the rest of the season, after 45 times at bat? Data: hits of 18
players in the season of 1970. Efron and Morris (1975), Data analysis using Stein's estimator and
its generalizations, table 1. For any outcome that counts successes among trials; columns named as
predictors add a linear term, on the scale of log odds.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

COLUMNS = {"player": "group", "at_bats": "count", "x": "predictors", "hits": "count of at_bats"}
OUTCOME = "hits"
HITS = {
    **{"Clemente": 18, "F. Robinson": 17, "F. Howard": 16, "Johnstone": 15, "Berry": 14},
    **{"Spencer": 14, "Kessinger": 13, "L. Alvarado": 12, "Santo": 11, "Swoboda": 11},
    **{"Unser": 10, "Williams": 10, "Scott": 10, "Petrocelli": 10, "E. Rodriguez": 10},
    **{"Campaneris": 9, "Munson": 8, "Alvis": 7},
}


def example() -> dict[str, list]:
    """The players after their first 45 times at bat."""
    return {"player": [*HITS], "hits": [*HITS.values()], "at_bats": [45] * len(HITS)}


def linear(x: Float[Array, "row predictor"], sizes: Mapping[str, int]) -> Float[Array, " row"]:
    """Slopes of predictors, which are standardised; nothing where there are none."""
    if not sizes["predictor"]:
        return jnp.zeros(sizes["row"])
    with numpyro.plate("predictor", sizes["predictor"]):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
    return x @ slope


def observe(
    logit: Float[Array, " row"],
    at_bats: Int[Array, " row"],
    hits: Int[Array, " row"] | None,
    sizes: Mapping[str, int],
) -> None:
    """Hits among times at bat."""
    with numpyro.plate("row", sizes["row"]):
        numpyro.sample("hits", dist.Binomial(at_bats, logits=logit), obs=hits)


def model(
    player: Int[Array, " row"],
    at_bats: Int[Array, " row"],
    x: Float[Array, "row predictor"],
    sizes: Mapping[str, int],
    hits: Int[Array, " row"] | None = None,
) -> None:
    """One ability for all players."""
    ability = numpyro.sample("ability", dist.Normal(0, 1.5))
    observe(ability + linear(x, sizes), at_bats, hits, sizes)
