"""O-rings: how likely is damage to a joint of the Space Shuttle at the temperature of a launch?

Data: whether any primary O-ring showed thermal distress in the 23 launches before the Challenger
accident, and the temperature of the joint, degrees Fahrenheit. Dalal, Fowlkes and Hoadley (1989),
Risk analysis of the Space Shuttle, table 1. Logistic regression of any binary outcome.
"""

from collections.abc import Mapping

import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from .pooled import linear

COLUMNS = {"x": "predictors", "distress": "binary"}
OUTCOME = "distress"
FAHRENHEIT = [66, 70, 69, 68, 67, 72, 73, 70, 57, 63, 70, 78, 67, 53, 67, 75, 70, 81, 76, 79, 75]
FAHRENHEIT += [76, 58]
DISTRESSED = {1, 8, 9, 10, 13, 20, 22}  # by position in the order of flights


def example() -> dict[str, list]:
    """The launches in the order of their flights."""
    distress = [int(flight in DISTRESSED) for flight in range(len(FAHRENHEIT))]
    return {"temperature": FAHRENHEIT, "distress": distress}


def model(
    x: Float[Array, "row predictor"],
    sizes: Mapping[str, int],
    distress: Int[Array, " row"] | None = None,
) -> None:
    """Log odds that are linear in the predictors."""
    intercept = numpyro.sample("intercept", dist.Normal(0, 1.5))
    logit = intercept + linear(x, sizes)
    with numpyro.plate("row", sizes["row"]):
        numpyro.sample("distress", dist.Bernoulli(logits=logit), obs=distress)
