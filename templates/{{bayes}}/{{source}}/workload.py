"""Makes the `Workload` of a fit from table, model and method. Computes nothing itself."""

import functools
import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from . import models
from .config import Config
from .contract import Artifact, Beat, Section, State, Workload
from .criticised import Page, make_page
from .fit_nuts import nuts_method
from .fit_svi import svi_method
from .method import Method
from .posterior.diagnosis import MOST_RHAT, Verdict, agreement, judge
from .posterior.draws import DrawStore, Layout, gather_outputs, lay_out, read_draws
from .posterior.table import Prepared, prepare, read_table
from .records import mirror, store
from .records.provenance import sources, versions
from .run_config import to_dict
from .runtime.agree import from_first
from .runtime.distributed import unique
from .sites import axes_of

log = logging.getLogger(__name__)

METHODS = {"nuts": nuts_method, "svi": svi_method}
ROWS_SHOWN = 40  # of the report's table
FIGURES = {
    **{"mean": "mean {:.4g}", "sd": "sd {:.3g}", "rhat": "R-hat {:.4f}"},
    **{"ess_bulk": "bulk ESS {:.0f}", "ess_tail": "tail ESS {:.0f}"},
    "shift": "{:.2g} sd from the mean by importance",
}
TABLE = "table.npz"  # in DIR/inputs: the prepared columns


def make_workload(config: Config, mesh: Mesh) -> Workload:
    """The fit of a model to a table: the user's, or the example of the model."""
    model, prepared = read_data(config)
    n, begun = config.nuts, begun_with(config)
    method = METHODS[config.method](config, model, prepared, mesh, begun)
    if not begun:
        method.check_start()
    layout = _layout(config, model, prepared, method)
    page = make_page(model, prepared, layout.attributes["judged"], config.run.seed)
    if jax.process_index() == 0:
        log.info("%s", method.words)

    sink, kept_draws = _make_keeping(config, method, layout)

    def evaluate(state: State, beat: Beat) -> dict[str, float]:
        if not n.target_ess or layout.draws(int(state["step"])) < n.chunk:
            return {}
        folder, _ = kept_draws(state)
        beat()
        return from_first(unique("ess"), lambda: _ess(folder, layout.attributes["judged"]))

    def note(folder: Path, count: int) -> None:
        noted = replace(layout, attributes=layout.attributes | method.notes())
        lay_out(folder, noted, count, count)  # a run that has ended early leaves no room behind

    def artifacts(state: State, beat: Beat) -> dict[str, Artifact]:
        folder, count = kept_draws(state)
        if jax.process_index():
            return {}
        # A guide is judged by its notes, and the figures begin with the worst parameters.
        if method.draw and count:
            note(folder, count)
        return _drawn(page, folder, count)[0]

    def finish(state: State, beat: Beat) -> tuple[dict[str, Any], dict[str, Section]]:
        folder, count = kept_draws(state)
        if jax.process_index():
            return {}, {}
        note(folder, count)
        beat()
        verdict = judge(read_draws(folder), layout.attributes["judged"])
        return _summary(verdict), _drawn(page, folder, count)[1] | _sections(verdict)

    return replace(
        method.workload,
        evaluate=evaluate if n.target_ess and not method.draw else None,
        artifacts=artifacts,
        finish=finish,
        done=partial(_has_reached, n.target_ess),
        sink=sink,
        run_files={TABLE: prepared.packed()},
        identity={
            "table_sha256": prepared.sha256,
            "model_sha256": code_sha256(model),
            **method.workload.identity,
        },
    )


def _make_keeping(
    config: Config, method: Method, layout: Layout
) -> tuple[Callable[[Path], DrawStore], Callable[[State], tuple[Path, int]]]:
    """The sink, and what brings all draws of a state to disk: where they are, and how many."""
    made: list[int] = []  # steps at which a method has drawn all at once

    @functools.cache
    def sink(folder: Path) -> DrawStore:
        return DrawStore(folder, layout)

    def kept_draws(state: State) -> tuple[Path, int]:
        step = int(state["step"])
        draws, count = sink(mirror.local(config.run.run_dir) / "outputs"), layout.draws(step)
        if method.draw and count and step not in made:
            draws.add(step, method.draw(state))
            made.append(step)
        draws.write(step)
        draws.durable()
        return gather_outputs(config.run.run_dir), count

    return sink, kept_draws


def _drawn(page: Callable[[Path, int], Page], folder: Path, count: int) -> Page:
    """The page, or why there is none: a verdict does not depend on figures."""
    try:
        return page(folder, count)
    except Exception as error:
        log.warning("no figures of the fit: %r", error)
        return {}, {"Figures": f"None could be drawn: {error!r}"}


def read_data(config: Config) -> tuple[Any, Prepared]:
    """The module of the model, and the table for it."""
    model, path = models.load(config.model.name), config.data.path
    table = read_table(path) if path else model.example()
    return model, prepare(table, model.COLUMNS, config.data)


def make_dry_workload(config: Config, mesh: Mesh) -> Workload:
    """The same on the example of the model, whose draws nobody keeps."""
    model = models.load(config.model.name)
    data = replace(config.data, path="", columns=(), predictors=(), index="")
    prepared = prepare(model.example(), model.COLUMNS, data)
    return METHODS[config.method](config, model, prepared, mesh, begun_with(config)).workload


def begun_with(config: Config) -> dict[str, Any]:
    """The identity of the run in the run folder; empty where none has begun."""
    begun = store.place(config.run.run_dir) / "config.json"
    return from_first(
        unique("begun"), lambda: store.read_json(begun)["identity"] if store.exists(begun) else {}
    )


def _layout(config: Config, model: Any, prepared: Prepared, method: Method) -> Layout:
    axes = axes_of(model.model, prepared.arrays, prepared.sizes)
    chains, chunk = next(iter(method.outputs.values())).shape[:2]

    def dims(path: str, rank: int) -> tuple[str, ...]:
        site = path.removeprefix("posterior/")
        named = axes.get(site, {})
        return tuple(named.get(i - rank, f"{site}_dim_{i}") for i in range(rank))

    return Layout(
        arrays={
            path: (x.shape[2:], np.dtype(x.dtype), dims(path, x.ndim - 2))
            for path, x in method.outputs.items()
        },
        coords=prepared.coords,
        chains=chains,
        chunk=chunk,
        warmup_steps=method.warmup_steps,
        steps=config.run.steps,
        attributes={
            "model": config.model.name,
            "judged": list(getattr(model, "JUDGED", ())),
            "table_sha256": prepared.sha256,
            "scales": {name: list(scale) for name, scale in prepared.scales.items()},
            "seed": config.run.seed,
            "inference_library": "numpyro",
            "versions": versions(),
            "config": to_dict(config),
        },
    )


def _ess(folder: Path, judged: list[str]) -> dict[str, float]:
    posterior = read_draws(folder)["posterior"].to_dataset()
    rows = agreement(posterior[judged] if judged else posterior).values()
    return {
        "rhat_rank": max(row["rhat"] for row in rows),
        "ess_bulk": min(row["ess_bulk"] for row in rows),
        "ess_tail": min(row["ess_tail"] for row in rows),
    }


def _has_reached(target_ess: float, values: dict[str, float]) -> bool:
    ess = min(values.get("ess_bulk", 0.0), values.get("ess_tail", 0.0))
    return 0 < target_ess <= ess and values["rhat_rank"] <= MOST_RHAT


def _summary(verdict: Verdict) -> dict[str, Any]:
    return {"trusted": verdict.is_good, **verdict.figures}


def _sections(verdict: Verdict) -> dict[str, Section]:
    shown = {
        name: ", ".join(form.format(row[key]) for key, form in FIGURES.items() if key in row)
        for name, row in [*verdict.rows.items()][:ROWS_SHOWN]
    }
    return {"Verdict": verdict.words(), "Parameters, the least agreed on first": shown}


def code_sha256(model: Any) -> str:
    """Of a model's code and what it imports here: `sources` of a run sees no import by name."""
    found = sources(start=f"models/{Path(str(model.__file__)).name}")
    return hashlib.sha256(repr(found).encode()).hexdigest()
