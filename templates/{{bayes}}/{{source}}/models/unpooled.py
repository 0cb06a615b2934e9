"""Baseball without pooling: the second rung, where no player says anything about another.

Data, columns and likelihood are those of pooled.py.
"""

from collections.abc import Mapping

import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from .pooled import COLUMNS, OUTCOME, example, linear, observe

__all__ = ["COLUMNS", "OUTCOME", "example", "model"]


def model(
    player: Int[Array, " row"],
    at_bats: Int[Array, " row"],
    x: Float[Array, "row predictor"],
    sizes: Mapping[str, int],
    hits: Int[Array, " row"] | None = None,
) -> None:
    """Abilities with a wide prior each."""
    with numpyro.plate("player", sizes["player"]):
        ability = numpyro.sample("ability", dist.Normal(0, 1.5))
    observe(ability[player] + linear(x, sizes), at_bats, hits, sizes)
