"""Baseball with partial pooling: the third rung, where players are drawn from one population.

Data, columns and likelihood are those of pooled.py. The population's spread is estimated with the
abilities, which are sampled as standard normals and scaled after: a small spread is no funnel then.
"""

from collections.abc import Mapping

import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.handlers import reparam
from numpyro.infer.reparam import LocScaleReparam

from .pooled import COLUMNS, OUTCOME, example, linear, observe

__all__ = ["COLUMNS", "OUTCOME", "example", "model"]


def centred(
    player: Int[Array, " row"],
    at_bats: Int[Array, " row"],
    x: Float[Array, "row predictor"],
    sizes: Mapping[str, int],
    hits: Int[Array, " row"] | None = None,
) -> None:
    """Abilities around the common one, in the plain form."""
    common = numpyro.sample("common", dist.Normal(0, 1.5))
    spread = numpyro.sample("spread", dist.HalfNormal(1))
    with numpyro.plate("player", sizes["player"]):
        ability = numpyro.sample("ability", dist.Normal(common, spread))
    observe(ability[player] + linear(x, sizes), at_bats, hits, sizes)


model = reparam(centred, config={"ability": LocScaleReparam(centered=0)})
