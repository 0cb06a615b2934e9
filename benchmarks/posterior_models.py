"""The four posteriors of posterior.py, each stated for NumPyro, Stan and PyMC; and what is asked of
their draws. Fits nothing.

Priors as in posteriordb; what its Stan code does row by row is done by vectors here, which is the
faster Stan.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

REFERENCES = Path(__file__).resolve().parents[1] / "tests" / "posteriordb"
LAST_YEAR, STEPS_A_YEAR = 20, 10  # Runge-Kutta: errors of 1e-5, where the noise is of 25%
JUDGED = {  # a posterior and the arrays whose effective sample size counts
    "eight_schools-eight_schools_noncentered": ("mu", "tau", "theta"),
    "radon_mn": ("alpha", "beta", "mu_alpha", "sigma_alpha", "sigma_y"),
    "logistic": ("intercept", "beta"),
    "hudson_lynx_hare-lotka_volterra": ("theta", "sigma", "z_init"),
}


def read_data(name):
    """As Stan takes it. `logistic` is simulated: 500 rows of 8 correlated predictors."""
    if name != "logistic":
        return json.loads((REFERENCES / name / "data.json").read_text())
    random, (rows, count) = np.random.default_rng(11), (500, 8)
    x = 0.7 * random.normal(size=(rows, count)) + 0.7 * random.normal(size=(rows, 1))
    logit = -0.5 + x @ random.normal(size=count) / 2
    y = (random.uniform(size=rows) < 1 / (1 + np.exp(-logit))).astype(int)
    return {"N": rows, "K": count, "X": x.round(4).tolist(), "y": y.tolist()}


def read_columns(name):
    """Its arrays, for NumPyro and PyMC."""
    found = {n: np.array(v, float) for n, v in read_data(name).items() if isinstance(v, list)}
    return found | {n: v.astype(int) - 1 for n, v in found.items() if n == "county_idx"}


def in_numpyro(name):
    """A function of the columns."""
    import numpyro
    import numpyro.distributions as dist

    def radon(log_radon, log_uppm, floor_measure, county_idx, **_):
        sigma_alpha = numpyro.sample("sigma_alpha", dist.HalfNormal(1))
        sigma_y = numpyro.sample("sigma_y", dist.HalfNormal(1))
        mu_alpha = numpyro.sample("mu_alpha", dist.Normal(0, 10))
        beta = numpyro.sample("beta", dist.Normal(0, 10).expand([2]).to_event(1))
        standard = numpyro.sample("alpha_raw", dist.Normal(0, 1).expand([85]).to_event(1))
        alpha = numpyro.deterministic("alpha", mu_alpha + sigma_alpha * standard)
        mean = alpha[county_idx] + log_uppm * beta[0] + floor_measure * beta[1]
        numpyro.sample("log_radon", dist.Normal(mean, sigma_y), obs=log_radon)

    def logistic(X, y, **_):
        intercept = numpyro.sample("intercept", dist.Normal(0, 1.5))
        beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=intercept + X @ beta), obs=y)

    if name in (own := {"radon_mn": radon, "logistic": logistic}):
        return own[name]
    sys.path.insert(0, str(REFERENCES))
    import models

    models.RK4_STEPS = STEPS_A_YEAR
    return models.MODELS[name]


def in_pymc(name):
    """A model with its data."""
    import pymc as pm
    import pytensor
    import pytensor.tensor as pt

    data = read_columns(name)
    with pm.Model() as model:
        if name.startswith("eight"):
            mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
            theta = pm.Deterministic("theta", mu + tau * pm.Normal("standard", 0, 1, shape=8))
            pm.Normal("y", theta, data["sigma"], observed=data["y"])
        elif name == "radon_mn":
            sigma_alpha, sigma_y = pm.HalfNormal("sigma_alpha", 1), pm.HalfNormal("sigma_y", 1)
            mu_alpha, beta = pm.Normal("mu_alpha", 0, 10), pm.Normal("beta", 0, 10, shape=2)
            standard = pm.Normal("alpha_raw", 0, 1, shape=85)
            alpha = pm.Deterministic("alpha", mu_alpha + sigma_alpha * standard)
            mean = alpha[data["county_idx"]] + data["log_uppm"] * beta[0]
            mean += data["floor_measure"] * beta[1]
            pm.Normal("log_radon", mean, sigma_y, observed=data["log_radon"])
        elif name == "logistic":
            intercept, beta = pm.Normal("intercept", 0, 1.5), pm.Normal("beta", 0, 1, shape=8)
            pm.Bernoulli("y", logit_p=intercept + data["X"] @ beta, observed=data["y"])
        else:
            means, scales = np.array([1, 0.05, 1, 0.05]), np.array([0.5, 0.05, 0.5, 0.05])
            theta = pm.TruncatedNormal("theta", means, scales, lower=0, shape=4)
            sigma = pm.LogNormal("sigma", -1, 1, shape=2)
            z_init = pm.LogNormal("z_init", np.log(10), 1, shape=2)
            h = 1 / STEPS_A_YEAR

            def slope(z):
                return z * pt.stack([theta[0] - theta[1] * z[1], -theta[2] + theta[3] * z[0]])

            def step(z, *_):
                k1 = slope(z)
                k2 = slope(z + h / 2 * k1)
                k3 = slope(z + h / 2 * k2)
                return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(z + h * k3))

            z = pytensor.scan(
                step,
                outputs_info=z_init,
                non_sequences=[theta],
                n_steps=LAST_YEAR * STEPS_A_YEAR,
                return_updates=False,
            )
            z = z[STEPS_A_YEAR - 1 :: STEPS_A_YEAR]
            pm.LogNormal("first", pt.log(z_init), sigma, observed=data["y_init"])
            pm.LogNormal("y", pt.log(z), sigma, observed=data["y"])
    return model


def in_stan(name):
    """The code of the program."""
    return STAN[name]


STAN = {
    "eight_schools-eight_schools_noncentered": """
data { int J; array[J] real y; array[J] real<lower=0> sigma; }
parameters { vector[J] standard; real mu; real<lower=0> tau; }
transformed parameters { vector[J] theta = mu + tau * standard; }
model {
  mu ~ normal(0, 5);
  tau ~ cauchy(0, 5);
  standard ~ normal(0, 1);
  y ~ normal(theta, sigma);
}""",
    "radon_mn": """
data {
  int N; int J; array[N] int county_idx;
  vector[N] log_uppm; vector[N] floor_measure; vector[N] log_radon;
}
parameters {
  vector[J] alpha_raw; vector[2] beta; real mu_alpha;
  real<lower=0> sigma_alpha; real<lower=0> sigma_y;
}
transformed parameters { vector[J] alpha = mu_alpha + sigma_alpha * alpha_raw; }
model {
  sigma_alpha ~ normal(0, 1);
  sigma_y ~ normal(0, 1);
  mu_alpha ~ normal(0, 10);
  beta ~ normal(0, 10);
  alpha_raw ~ normal(0, 1);
  log_radon ~ normal(alpha[county_idx] + log_uppm * beta[1] + floor_measure * beta[2], sigma_y);
}""",
    "logistic": """
data { int N; int K; matrix[N, K] X; array[N] int y; }
parameters { real intercept; vector[K] beta; }
model {
  intercept ~ normal(0, 1.5);
  beta ~ normal(0, 1);
  y ~ bernoulli_logit_glm(X, intercept, beta);
}""",
    "hudson_lynx_hare-lotka_volterra": """
functions {
  vector slope(real t, vector z, array[] real theta) {
    return [z[1] * (theta[1] - theta[2] * z[2]), z[2] * (-theta[3] + theta[4] * z[1])]';
  }
}
data { int N; array[N] real ts; array[2] real y_init; array[N, 2] real y; }
parameters {
  array[4] real<lower=0> theta; vector<lower=0>[2] z_init; array[2] real<lower=0> sigma;
}
model {
  array[N] vector[2] z = ode_rk45_tol(slope, z_init, 0, ts, 1e-5, 1e-3, 500, theta);
  theta[{1, 3}] ~ normal(1, 0.5);
  theta[{2, 4}] ~ normal(0.05, 0.05);
  sigma ~ lognormal(-1, 1);
  z_init ~ lognormal(log(10), 1);
  for (k in 1:2) {
    y_init[k] ~ lognormal(log(z_init[k]), sigma[k]);
    y[, k] ~ lognormal(log(z[, k]), sigma[k]);
  }
}""",
}


def judge(name, draws):
    """Least bulk ESS, and each mean with its standard error. draws: array -> (chain, draw, …)."""
    import arviz_stats

    ess, means = [], {}
    for array in JUDGED[name]:
        chains, kept = draws[array].shape[:2]
        for place, values in enumerate(np.reshape(draws[array], (chains, kept, -1)).T):
            x = np.asarray(values.T, float)
            label = f"{array}[{place + 1}]" if np.ndim(draws[array]) > 2 else array
            ess.append(float(arviz_stats.ess(x, method="bulk")))
            means[label] = (float(x.mean()), float(arviz_stats.mcse(x, method="mean")))
    return {"ess": min(ess), "means": means}


def cpu_s():
    """CPU seconds so far of this process and of all that it has started, ended or not."""
    used = time.process_time() + sum(os.times()[2:4])  # the first is the finer one
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            fields = Path("/proc", child, "stat").read_text().rpartition(")")[2].split()
            used += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return used
