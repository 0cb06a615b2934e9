"""Makes the `Workload` of a calibration, and judges its ranks. Computes nothing itself."""

import functools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

from .calibration import (
    AT_ONCE,
    RANKS,
    Calibration,
    Fits,
    Subject,
    calibrate_step,
    fit_by_nuts,
    fit_by_svi,
    init_state,
    judge_ranks,
)
from .config import Config
from .contract import Artifact, Beat, Section, State, Workload
from .errors import UserError
from .nuts import make_sampler
from .posterior.draws import gather_outputs
from .posterior.page import to_image
from .records import mirror
from .runtime.sink import NpzFiles, read_outputs
from .svi import make_fit
from .workload import begun_with, code_sha256, read_data


def settings_of(config: Config, simulations: int) -> Config:
    """The settings of the run that calibrates those of a fit, in a folder within the fit's."""
    if config.method == "nuts" and config.nuts.warmup < 5 * RANKS:
        raise UserError(
            got=f"--nuts.warmup {config.nuts.warmup}",
            expected=f"at least {5 * RANKS}: as many draws follow, and every fifth is ranked",
            do=f"give {5 * RANKS} or more, so that ranked draws are far apart",
        )
    run = replace(
        config.run,
        run_dir=f"{config.run.run_dir.rstrip('/')}/calibration",
        steps=-(-simulations // AT_ONCE),
        log_every_steps=1,
        eval_every_steps=0,
        save_every_steps=5,
    )
    return replace(config, run=run, nuts=replace(config.nuts, chunk=config.nuts.warmup))


def make_calibration(fitted: Config, config: Config, mesh: Mesh) -> Workload:
    """Simulations from the model of a fit, and fits of them; config: of `settings_of`."""
    if AT_ONCE % mesh.size:
        raise UserError(
            got=f"{mesh.size} devices",
            expected=f"a number that divides {AT_ONCE}, the simulations of a step",
            do="show JAX fewer devices",
        )
    model, prepared = read_data(config)
    same = {"table_sha256": prepared.sha256, "model_sha256": code_sha256(model)}
    _check_same(fitted, same)
    columns, sizes = prepared.arrays, prepared.sizes
    sampler = make_sampler(config.nuts, model.model, columns, sizes, mesh, AT_ONCE)
    identity: dict[str, Any] = {"nuts.layout": "vmap" if sampler.together else "map"}
    identity |= same | {"ranks": RANKS}
    means: tuple[str, ...] = ("accept", "diverging", "leapfrogs")
    fit: Fits = partial(fit_by_nuts, sampler)
    if config.method == "svi":
        settings = replace(config.svi, draws=RANKS - 1, batch_rows=0)
        steps, seed = fitted.run.steps, config.run.seed
        guide = make_fit(settings, steps, seed, model.model, columns, sizes, mesh)
        means, fit = ("loss",), partial(fit_by_svi, guide)
        identity |= {f"svi.{name}": value for name, value in vars(settings).items()}
        identity |= {"svi.steps": steps}
    judged = tuple(getattr(model, "JUDGED", ()))
    subject = Subject(sampler.kernel.model, model.OUTCOME, fit, mesh, judged, sampler.together)
    placed = jax.device_put(columns, NamedSharding(mesh, PartitionSpec()))

    @functools.cache
    def sink(folder: Path) -> NpzFiles:
        return NpzFiles(folder)

    def found(state: State) -> Calibration:
        files = sink(_outputs(config))
        files.write(int(state["step"]))
        files.durable()
        gather_outputs(config.run.run_dir)
        return read_calibration(config)

    def finish(state: State, beat: Beat) -> tuple[dict[str, Any], dict[str, Section]]:
        calibration = found(state)
        failed = len(calibration.failed)
        return {"calibrated": not failed, "failed": failed}, {"Calibration": calibration.words()}

    def artifacts(state: State, beat: Beat) -> dict[str, Artifact]:
        return {"ranks": draw_curves(found(state))}

    return Workload(
        init=init_state,
        step=partial(calibrate_step, subject),
        batch=lambda cursor: placed,
        specs=lambda state: jax.tree.map(lambda _: PartitionSpec(), state),
        rate=("simulations", AT_ONCE),
        means=means,
        finish=finish,
        artifacts=artifacts,
        sink=sink,
        identity=identity,
    )


def _check_same(fitted: Config, same: dict[str, str]) -> None:
    begun = begun_with(fitted)
    if changed := [name for name in same if begun and begun[name] != same[name]]:
        raise UserError(
            got=f"{' and '.join(changed)} other than those of {fitted.run.run_dir}",
            expected="the table and the model of that fit",
            do="put them back, or calibrate them in a new --run-dir",
        )


def read_calibration(config: Config) -> Calibration:
    """What the ranks on disk say."""
    ranks = read_outputs(_outputs(config))
    del ranks["step"]
    return judge_ranks({name: x.reshape(-1, *x.shape[2:]) for name, x in ranks.items()})


def draw_curves(calibration: Calibration) -> np.ndarray:
    """Curves less the diagonal, so that what leaves the band is seen."""
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes, at = figure.subplots(), calibration.at
    low, high = calibration.band - at
    axes.fill_between(at, low, high, step="mid", color="0.88", label="uniform, all together")
    for number, (name, curve) in enumerate(calibration.curves.items()):
        failed = name in calibration.failed
        style = {"linewidth": 1.8, "label": name} if failed else {"linewidth": 0.8, "alpha": 0.6}
        axes.plot(at, curve - at, color=f"C{number % 10}", **style)
    axes.set(xlabel="rank / number of ranked draws", ylabel="share of ranks below, less uniform")
    axes.legend(fontsize="small", frameon=False)
    return to_image(figure)


def _outputs(config: Config) -> Path:
    return mirror.local(config.run.run_dir) / "outputs"
