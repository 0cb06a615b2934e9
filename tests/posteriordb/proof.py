"""Draws from reference posteriors with a project's sampler, and prints how far apart they are.

    python tests/posteriordb/proof.py PACKAGE [POSTERIOR …] > figures.json

z of a parameter x, and of x², is the difference of means over both Monte Carlo standard errors. In
double precision, so that no difference is of rounding.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import arviz_stats  # noqa: E402
import numpy as np  # noqa: E402
from models import MODELS  # noqa: E402

HERE = Path(__file__).parent
WARMUP, CHUNK, STEPS = 1000, 250, 20


def draw(package: str, name: str, seed: int) -> dict[str, np.ndarray]:
    """Array -> draws (chain, draw, …), as a step of a fit leaves them."""

    def part(module: str) -> Any:
        return importlib.import_module(f"{package}.{module}")

    nuts, compiled, sharding = map(part, ("nuts", "runtime.compiled", "runtime.sharding"))
    data = json.loads((HERE / name / "data.json").read_text())
    columns = {n: np.array(v, float) for n, v in data.items() if isinstance(v, list)}
    settings = part("config").NutsConfig(warmup=WARMUP, chunk=CHUNK)
    mesh = sharding.make_mesh(part("run_config").MeshConfig(), jax.devices())

    def model(sizes: Any, **columns: Any) -> None:
        MODELS[name](**columns)

    sampler = nuts.make_sampler(settings, model, columns, {}, mesh, max(4, mesh.size))
    workload = part("contract").Workload(
        init=lambda key: nuts.init_state(sampler, key),
        step=lambda state, batch: nuts.sample_step(sampler, state, batch),
        batch=lambda cursor: columns,
        specs=nuts.state_specs,
    )
    kept = []
    with jax.set_mesh(mesh):
        _, shardings = compiled.abstract_state(workload, seed, mesh)
        state = compiled.initialise(workload, seed, shardings)
        step = compiled.jit_step(workload, shardings, mesh)
        for number in range(STEPS):
            state, _, outputs = step(state, columns)
            if number >= WARMUP // CHUNK:
                kept.append(jax.device_get(outputs))
    return {n: np.concatenate([k[n] for k in kept], axis=1) for n in kept[0]}


def compare(name: str, draws: dict[str, np.ndarray]) -> dict[str, Any]:
    """The largest |z|, the root mean square of z, and how well the chains agree."""
    found: dict[str, Any] = {"z": {}, "ess": np.inf, "rhat": 0.0}
    for power, kind in ((1, "mean_value"), (2, "mean_squared_value")):
        reference = json.loads((HERE / name / f"{kind}.json").read_text())
        rows = zip(reference["names"], reference[kind], reference["mcse_mean"], strict=True)
        for parameter, mean, mcse in rows:
            site, _, place = parameter.rstrip("]").partition("[")
            values = draws[f"posterior/{site}"].astype(float)
            values = values[..., int(place) - 1] if place else values
            own = float(arviz_stats.mcse(values**power, method="mean"))
            z = (float((values**power).mean()) - mean) / np.hypot(own, mcse)
            found["z"][f"{parameter}^{power}"] = z
            found["ess"] = min(found["ess"], float(arviz_stats.ess(values, method="bulk")))
            found["rhat"] = max(found["rhat"], float(arviz_stats.rhat(values, method="rank")))
    z = np.array([*found.pop("z").values()])
    divergences = int(draws["sample_stats/diverging"].sum())
    return found | {
        "largest_z": float(abs(z).max()),
        "rms_z": float((z**2).mean() ** 0.5),
        "quantities": z.size,
        "divergences": divergences,
    }


def main(package: str, *names: str) -> None:
    figures = {}
    for name in names or MODELS:
        began_s = time.perf_counter()
        figures[name] = compare(name, draw(package, name, seed=0))
        figures[name]["seconds"] = time.perf_counter() - began_s
        print(name, figures[name], file=sys.stderr, flush=True)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
