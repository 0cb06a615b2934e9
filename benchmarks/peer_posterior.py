"""NumPyro's own MCMC, blackjax, PyStan and nutpie as workers, and simuk; in their environment.

Each `build_…` compiles for a model of posterior_models.py and returns a function seed -> draws by
array, (chain, draw, …), and the gradients that were taken for them. All aim to accept 0.8.
"""

import importlib.metadata
import os
import tempfile
import time

import numpy as np
from grown import serve
from posterior_models import cpu_s, in_numpyro, in_pymc, in_stan, judge, read_columns, read_data

CHAINS, TARGET = 4, 0.8
now = {}  # name and draw: what `build` leaves for `run`


def prepare_numpyro(name, draws, method):
    """Compiles in its runs; with the bar on and chains in sequence, in the first one only."""
    import jax
    import numpyro
    from numpyro.infer import MCMC, NUTS

    # Begins by a draw of the priors, which may be one whose orbit leaves the numbers.
    numpyro.enable_validation(False)
    columns = _as_jax(name)
    kernel = NUTS(in_numpyro(name), target_accept_prob=TARGET)
    sampler = MCMC(
        kernel, num_warmup=draws, num_samples=draws, num_chains=CHAINS, chain_method=method
    )

    def draw(seed):
        sampler.run(jax.random.key(seed), extra_fields=("num_steps",), **columns)
        found = jax.device_get(sampler.get_samples(group_by_chain=True))
        return found, int(sampler.get_extra_fields()["num_steps"].sum())

    return draw


def build_numpyro(name, draws, method):
    """Its first run is the build."""
    draw = prepare_numpyro(name, draws, method)
    draw(0)
    return draw


def build_blackjax(name, draws, metric):
    """Window adaptation and NUTS, chains one after the other in one program."""
    import blackjax
    import jax
    from numpyro.infer.util import initialize_model

    about = initialize_model(jax.random.key(0), in_numpyro(name), model_kwargs=_as_jax(name))
    low_rank = metric == "low_rank"
    adaptation = blackjax.window_adaptation_low_rank if low_rank else blackjax.window_adaptation

    def density(z):
        return -about.potential_fn(z)

    def chain(key):
        begin, warm, go = jax.random.split(key, 3)
        leaves, shape = jax.tree.flatten(about.param_info.z)
        keys = jax.random.split(begin, len(leaves))
        leaves = [
            jax.random.uniform(k, x.shape, minval=-2, maxval=2)
            for k, x in zip(keys, leaves, strict=True)
        ]
        adapt = adaptation(blackjax.nuts, density, target_acceptance_rate=TARGET)
        (state, found), _ = adapt.run(warm, jax.tree.unflatten(shape, leaves), draws)
        nuts = blackjax.nuts(density, **found)

        def step(state, key):
            state, info = nuts.step(key, state)
            return state, (state.position, info.num_integration_steps)

        _, (z, gradients) = jax.lax.scan(step, state, jax.random.split(go, draws))
        return jax.vmap(about.postprocess_fn)(z), gradients

    def all_chains(seed):
        return jax.lax.map(chain, jax.random.split(jax.random.key(seed), CHAINS))

    program = jax.jit(all_chains).lower(np.int32(0)).compile()

    def draw(seed):
        found, gradients = jax.device_get(program(np.int32(seed)))
        return found, int(gradients.sum())

    return draw


def build_stan(name, draws):
    """As pip brings it: httpstan. Its cache of programs is empty at first."""
    os.environ["XDG_CACHE_HOME"] = empty_folder()
    os.chdir(now["folder"].name)  # it leaves object files where it runs
    import stan

    def built(seed):
        return stan.build(in_stan(name), data=read_data(name), random_seed=seed)

    built(0)

    def draw(seed):
        fit = built(seed).sample(num_chains=CHAINS, num_warmup=draws, num_samples=draws)
        found = {
            n: np.reshape(fit[n], (-1, draws, CHAINS)).T
            if fit.dims[i]
            else fit[n].reshape(-1, CHAINS).T
            for i, n in enumerate(fit.param_names)
        }
        return found, int(fit["n_leapfrog__"].sum())

    return draw


def build_nutpie(name, draws, adaptation):
    """PyMC's density by numba. PyTensor's cache of programs is empty at first."""
    os.environ["PYTENSOR_FLAGS"] = f"base_compiledir={empty_folder()}"
    import nutpie

    program = nutpie.compile_pymc_model(in_pymc(name))

    def draw(seed):
        how = {"draws": draws, "tune": draws, "chains": CHAINS, "target_accept": TARGET}
        how |= {"seed": seed, "adaptation": adaptation, "progress_bar": False}
        tree = nutpie.sample(program, **how, save_warmup=False)
        found = {str(n): x.values for n, x in tree["posterior"].data_vars.items()}
        return found, int(tree["sample_stats"]["n_steps"].sum())

    return draw


BUILDS = {
    "numpyro": build_numpyro,
    "blackjax": build_blackjax,
    "pystan": build_stan,
    "nutpie": build_nutpie,
}


def build(side, name, draws, **how):
    """Compile; CPU seconds since the process began."""
    now.update(name=name, draw=BUILDS[side](name, draws, **how))
    return {"cpu": cpu_s(), "version": f"{side} {importlib.metadata.version(side)}"}


def run(seed):
    """Warm up and draw; seconds, gradients of the draws that are kept, and what they say."""
    began = time.perf_counter(), cpu_s()
    draws, gradients = now["draw"](seed)
    wall, cpu = time.perf_counter() - began[0], cpu_s() - began[1]
    return {"wall": wall, "cpu": cpu, "gradients": gradients} | judge(now["name"], draws)


def fit(name, draws):
    """All of a fit by NumPyro's MCMC, for a process that does nothing else."""
    drawn, _ = prepare_numpyro(name, draws, "sequential")(0)
    return judge(name, drawn)


def simulate(simulations, draws):
    """Seconds a simulation of a calibration of eight schools by simuk on NumPyro's MCMC."""
    from numpyro.infer import NUTS
    from simuk import SBC

    name = "eight_schools-eight_schools_noncentered"
    eight_schools, data = in_numpyro(name), _as_jax(name)

    def model(sigma, y=None):
        eight_schools(y, sigma)

    began = time.perf_counter(), cpu_s()
    sampling = {"num_warmup": draws, "num_samples": draws, "num_chains": 1}
    calibration = SBC(
        NUTS(model), num_simulations=simulations, sample_kwargs=sampling, data_dir=data, seed=0
    )
    calibration.run_simulations()
    wall, cpu = time.perf_counter() - began[0], cpu_s() - began[1]
    return {"wall": wall / simulations, "cpu": cpu / simulations}


def empty_folder():
    """Until the process ends."""
    now["folder"] = tempfile.TemporaryDirectory()
    return now["folder"].name


def _as_jax(name):
    import jax.numpy as jnp

    return {n: jnp.asarray(v) for n, v in read_columns(name).items()}


if __name__ == "__main__":
    serve(build, run, fit, simulate)
