"""Makes the `Workload` of a fit from table, model and sampler. Computes nothing itself."""

import ast
import functools
import hashlib
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from . import models
from .config import Config
from .contract import Artifact, Beat, Section, State, Workload
from .criticised import make_page
from .errors import UserError
from .nuts import Sampler, axes_of, check_start, init_state, make_sampler, sample_step, state_specs
from .posterior.diagnosis import MOST_RHAT, Verdict, agreement, judge
from .posterior.draws import DrawStore, Layout, lay_out, read_draws
from .posterior.table import Prepared, prepare, read_table
from .records import mirror, store
from .records.provenance import versions
from .run_config import to_dict
from .runtime.agree import from_first
from .runtime.distributed import barrier, unique

log = logging.getLogger(__name__)

ROWS_SHOWN = 40  # of the report's table
TABLE = "table.npz"  # in DIR/inputs: the prepared columns


def make_workload(config: Config, mesh: Mesh) -> Workload:
    """The fit of a model to a table: the user's, or the example of the model."""
    model = models.load(config.model.name)
    path = config.data.path
    prepared = prepare(read_table(path) if path else model.example(), model.COLUMNS, config.data)
    sampler = _sampler(config, model, prepared, mesh)
    if not _begun_with(config):
        check_start(sampler, config.run.seed)
    layout = _layout(config, model, prepared, sampler)
    n, page = config.nuts, make_page(model, prepared, layout.attributes["judged"], config.run.seed)
    if jax.process_index() == 0:
        kept = layout.draws(config.run.steps)
        words = "%d chains: %d draws of warm-up, then %d that are kept; a step is %d"
        log.info(words, sampler.chains, n.warmup, kept, n.chunk)

    @functools.cache
    def sink(folder: Path) -> DrawStore:
        return DrawStore(folder, layout)

    def kept_draws(state: State) -> Any:
        """All draws so far, in process 0; the others wait until theirs are on disk."""
        draws = sink(mirror.local(config.run.run_dir) / "outputs")
        draws.write(int(state["step"]))
        draws.durable()
        barrier("draws")
        return draws.folder

    def evaluate(state: State, beat: Beat) -> dict[str, float]:
        if not n.target_ess or layout.draws(int(state["step"])) < n.chunk:
            return {}
        folder = kept_draws(state)
        beat()
        return from_first(unique("ess"), lambda: _ess(folder, layout.attributes["judged"]))

    def finish(state: State, beat: Beat) -> tuple[dict[str, Any], dict[str, Section]]:
        folder, drawn = kept_draws(state), layout.draws(int(state["step"]))
        if jax.process_index():
            return {}, {}
        lay_out(folder, layout, drawn, drawn)  # a run that has ended early leaves no room behind
        beat()
        verdict = judge(read_draws(folder), layout.attributes["judged"])
        return _summary(verdict), page(folder, drawn)[1] | _sections(verdict)

    def artifacts(state: State, beat: Beat) -> dict[str, Artifact]:
        folder = kept_draws(state)
        return {} if jax.process_index() else page(folder, layout.draws(int(state["step"])))[0]

    columns = jax.device_put(prepared.arrays, NamedSharding(mesh, PartitionSpec()))
    return replace(
        _on_shapes(sampler),
        batch=lambda cursor: columns,
        evaluate=evaluate if n.target_ess else None,
        artifacts=artifacts,
        finish=finish,
        done=partial(_has_reached, n.target_ess),
        sink=sink,
        run_files={TABLE: prepared.packed()},
        identity=_identity(model, prepared, sampler),
    )


def make_dry_workload(config: Config, mesh: Mesh) -> Workload:
    """The same on the example of the model, whose draws nobody keeps."""
    model = models.load(config.model.name)
    data = replace(config.data, path="", columns=(), predictors=(), index="")
    prepared = prepare(model.example(), model.COLUMNS, data)
    sampler = _sampler(config, model, prepared, mesh)
    columns = jax.device_put(prepared.arrays, NamedSharding(mesh, PartitionSpec()))
    return replace(_on_shapes(sampler), batch=lambda cursor: columns)


def _identity(model: Any, prepared: Prepared, sampler: Sampler) -> dict[str, Any]:
    return {
        "table_sha256": prepared.sha256,
        "model_sha256": code_sha256(Path(str(model.__file__))),
        "nuts.chains": sampler.chains,
        "nuts.layout": "vmap" if sampler.together else "map",
    }


def _sampler(config: Config, model: Any, prepared: Prepared, mesh: Mesh) -> Sampler:
    chains = config.nuts.chains or _begun_with(config) or max(4, mesh.size)
    if chains % mesh.size:
        raise UserError(
            got=f"{chains} chains on {mesh.size} devices",
            expected="as many chains on each device",
            do=f"run on a number of devices that divides {chains}, or begin a run in a new "
            f"--run-dir with --nuts.chains {-(-chains // mesh.size) * mesh.size}",
        )
    arrays, sizes = prepared.arrays, prepared.sizes
    return make_sampler(config.nuts, model.model, arrays, sizes, mesh, chains)


def _begun_with(config: Config) -> int:
    """The chains of the run in the run folder; 0 where none has begun."""
    begun = store.place(config.run.run_dir) / "config.json"
    return from_first(
        unique("chains"),
        lambda: store.exists(begun) and store.read_json(begun)["identity"].get("nuts.chains", 0),
    )


def _on_shapes(sampler: Sampler) -> Workload:
    return Workload(
        init=partial(init_state, sampler),
        step=partial(sample_step, sampler),
        batch=lambda cursor: sampler.columns,
        specs=state_specs,
        stride=sampler.config.chunk,
        rate=("draws", sampler.chains * sampler.config.chunk),
        means=("accept", "leapfrogs"),
        nonfinite="stop",  # without its draws the chain would be another one
    )


def _layout(config: Config, model: Any, prepared: Prepared, sampler: Sampler) -> Layout:
    workload, chunk = _on_shapes(sampler), config.nuts.chunk
    state = jax.eval_shape(workload.init, jax.random.key(0))
    _, _, outputs = jax.eval_shape(workload.step, state, prepared.arrays)
    axes = axes_of(model.model, prepared.arrays, prepared.sizes)

    def dims(path: str, rank: int) -> tuple[str, ...]:
        site = path.removeprefix("posterior/")
        named = axes.get(site, {})
        return tuple(named.get(i - rank, f"{site}_dim_{i}") for i in range(rank))

    return Layout(
        arrays={
            path: (x.shape[2:], np.dtype(x.dtype), dims(path, x.ndim - 2))
            for path, x in outputs.items()
        },
        coords=prepared.coords,
        chains=sampler.chains,
        chunk=chunk,
        warmup_steps=config.nuts.warmup // chunk,
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
    rows = [*verdict.rows.items()][:ROWS_SHOWN]
    shown = {
        name: f"mean {row['mean']:.4g}, sd {row['sd']:.3g}, R-hat {row['rhat']:.4f}, "
        f"bulk ESS {row['ess_bulk']:.0f}, tail ESS {row['ess_tail']:.0f}"
        for name, row in rows
    }
    return {"Verdict": verdict.words(), "Parameters, the least agreed on first": shown}


def code_sha256(file: Path) -> str:
    """Of a model's code: `records.provenance` finds no module that is imported by its name."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            texts = (ast.Expr, ast.Constant)
            node.body = [  # type: ignore[attr-defined]
                n for n in body if not (isinstance(n, texts[0]) and isinstance(n.value, texts[1]))
            ]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
