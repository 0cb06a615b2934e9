"""AIDS in Belgium: did the growth of new cases slow down?

Data: new cases in each year from 1981 to 1993. Venables and Ripley (2002), Modern Applied
Statistics with S; the growth is quadratic on the log scale, as in Wood (2017), Generalized Additive
Models, section 3.3. Poisson regression of any count.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from .pooled import linear

COLUMNS = {"x": "predictors", "cases": "count"}
OUTCOME = "cases"
CASES = [12, 14, 33, 50, 67, 74, 123, 141, 165, 204, 253, 246, 240]  # from 1981 on


def example() -> dict[str, list]:
    """Years since 1987, which is in the middle, and their squares."""
    years = [year - 6 for year in range(len(CASES))]
    return {"year": years, "year_squared": [year**2 for year in years], "cases": CASES}


def model(
    x: Float[Array, "row predictor"],
    sizes: Mapping[str, int],
    cases: Int[Array, " row"] | None = None,
) -> None:
    """Log rate that is linear in the predictors."""
    intercept = numpyro.sample("intercept", dist.Normal(0, 5))
    rate = jnp.exp(intercept + linear(x, sizes))
    with numpyro.plate("row", sizes["row"]):
        numpyro.sample("cases", dist.Poisson(rate), obs=cases)
