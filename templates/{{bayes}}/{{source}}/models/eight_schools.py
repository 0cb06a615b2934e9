"""Eight schools: how much does coaching raise test scores, and do the schools differ?

Data: estimated effect of the coaching of each school, and its standard error, points of the SAT.
Rubin (1981), Estimation in parallel randomized experiments, table 1; in Gelman et al., Bayesian
Data Analysis, section 5.5. Priors as in posteriordb, eight_schools_noncentered.

The effects are sampled as standard normals and scaled after: the scale `tau` may be near zero,
where the plain form is a funnel (eight_schools_centred.py).
"""

from collections.abc import Mapping

import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.handlers import reparam
from numpyro.infer.reparam import LocScaleReparam

COLUMNS = {"school": "group", "error": "positive", "effect": "real"}
OUTCOME = "effect"


def example() -> dict[str, list]:
    """The table of the paper."""
    return {
        "school": list("ABCDEFGH"),
        "effect": [28, 8, -3, 7, -1, 1, 18, 12],
        "error": [15, 10, 16, 11, 9, 11, 10, 18],
    }


def centred(
    school: Int[Array, " row"],
    error: Float[Array, " row"],
    sizes: Mapping[str, int],
    effect: Float[Array, " row"] | None = None,
) -> None:
    """Effects drawn around a common mean, in the plain form."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", sizes["school"]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with numpyro.plate("row", sizes["row"]):
        numpyro.sample("effect", dist.Normal(theta[school], error), obs=effect)


model = reparam(centred, config={"theta": LocScaleReparam(centered=0)})
